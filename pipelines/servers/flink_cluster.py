"""A Flink session cluster on this machine, with what Beam needs to run Python on it.

Four processes, each with its own class: the JobManager and one TaskManager of Flink, Beam's job
server, which translates pipelines for them, and a pool that starts Python workers. A fifth, the
supervisor, starts again which of them has ended (`pipelines.servers.supervise`).

Promises:

* `ClusterServer.start` returns when the process answers: the JobManager its REST interface, the
  TaskManager by being registered there, the others on their ports. Whatever else listens on a port
  is an error, and is left alone.
* A process that does not start says why: the error ends with the last lines of its log. That of the
  process before it is kept beside, as ``NAME.before.log``.
* Each can be killed and started again by itself. A job that ran is lost with JobManager or
  TaskManager; a stream goes on from its own savepoint (`pipelines.engines.flink`).

Everything listens on 127.0.0.1 only, without passwords.
"""

from __future__ import annotations

import abc
import json
import os
import re
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import ServerNotStarted
from tidemill.pipelines.servers.flink_settings import (
    HEAP_MB,
    FlinkPorts,
    flink_settings,
    java_options,
)
from tidemill.pipelines.servers.jars import fetched_jars
from tidemill.pipelines.servers.java import find_java
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.locked_jars import FLINK
from tidemill.pipelines.servers.ports import require_free
from tidemill.pipelines.servers.processes import RunningProcess, await_answer, start
from tidemill.pipelines.servers.python_path import python_command
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.file_errors import named_for

START_S: Final = 180.0
"""How long a process may take to start; on an idle machine each takes some seconds."""

_ANSWER_S: Final = 5.0
_SENT: Final = re.compile(
    "beam-(model|runners|sdks)-|classgraph-|flink-(?!shaded-|rpc-akka-)|gcsio-|google-|guava-"
    "|jackson-|kryo-|util-"
)
"""The names of the jars whose classes need more than Java's own path has."""

_POOL: Final = "tidemill.pipelines.engines.worker_pool"
_SUPERVISE: Final = "tidemill.pipelines.servers.supervise"


class ClusterServer(abc.ABC):
    """A process of the cluster; it outlives the one that started it.

    Args:
        folder: Where settings and logs of the whole cluster are.
        ports: The ports of the whole cluster.

    Attributes:
        name: Its name, as `tidemill up` shows it.
        process: The process, once it was started.
    """

    name: str

    def __init__(self, folder: Path, ports: FlinkPorts) -> None:
        self.folder = folder.absolute()
        self.ports = ports
        self.process: RunningProcess | None = None

    @property
    @abc.abstractmethod
    def port(self) -> int:
        """The port that tells it from another one."""

    @property
    def listens(self) -> Sequence[int]:
        """All ports that must be free before it starts."""
        return (self.port,)

    @property
    def log(self) -> Path:
        """The file with its messages."""
        return self.folder / f"{self.name.lower().replace(' ', '-')}.log"

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Return the program and its arguments."""

    @abc.abstractmethod
    def answers(self) -> bool:
        """Tell whether it answers."""

    def start(self, before: Callable[[RunningProcess], None] | None = None) -> float:
        """Start the process and wait until it answers.

        Args:
            before: Called with the process before it runs, to record it.

        Returns:
            The seconds that it took.

        Raises:
            ForeignServer: Another program listens on one of its ports.
            ServerNotStarted: It ended, or did not answer in time.
            JavaMissing: There is no Java.
            JarsMissing: The jars are not here, and could not be fetched.
            WrongJar: One of the jars is not the locked one.
            FileError: The folder cannot be written.
        """
        began = time.monotonic()
        for port in self.listens:
            require_free(HOST, port, self.name)
        with named_for(self.folder):
            (self.folder / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.log.exists():
                self.log.replace(self.log.with_suffix(".before.log"))
            self.log.write_bytes(b"")
        write_text(self.folder / "config.yaml", flink_settings(self.folder, self.ports))
        self.process = start(self.command(), self.log, before)
        try:
            self.await_answer()
        except BaseException:
            self.process.end(0.0)
            raise
        return time.monotonic() - began

    def await_answer(self, timeout_s: float = START_S) -> None:
        """Wait until the process answers.

        Args:
            timeout_s: How long it may take.

        Raises:
            ServerNotStarted: It ended, or did not answer in time.
        """
        assert self.process is not None
        where = f"on port {self.port}"
        await_answer(self.name, where, self.log, timeout_s, self.process.is_alive, self.answers)

    def _java(self, heap_mb: int, *arguments: str) -> list[str]:
        classes = os.pathsep.join(map(str, fetched_jars(FLINK)))
        return [str(find_java()), *java_options(heap_mb), "-cp", classes, *arguments]

    def _asked(self, path: str) -> Any:
        """Return the JobManager's answer; None without one."""
        return ask_rest(f"http://{HOST}:{self.ports.rest}", path)


class JobManager(ClusterServer):
    """Flink's JobManager."""

    name = "Flink JobManager"

    @property
    def port(self) -> int:
        """The port of its REST interface."""
        return self.ports.rest

    @property
    def listens(self) -> Sequence[int]:
        """All ports that must be free before it starts."""
        return self.ports.rest, self.ports.jobmanager

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return self._java(
            HEAP_MB["jobmanager"],
            "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
            "--configDir",
            str(self.folder),
            "--executionMode",
            "cluster",
        )

    def answers(self) -> bool:
        """Tell whether its REST interface answers."""
        return self._asked("/overview") is not None


class PortlessServer(ClusterServer):
    """A process without a port that others know."""

    @property
    def port(self) -> int:
        """That of the JobManager, which tells one cluster from another."""
        return self.ports.rest

    @property
    def listens(self) -> Sequence[int]:
        """No port must be free before it starts."""
        return ()


class TaskManager(PortlessServer):
    """Flink's TaskManager; its ports are chosen anew, and the JobManager knows them."""

    name = "Flink TaskManager"

    @property
    def _id_file(self) -> Path:
        return self.folder / "taskmanager.id"

    def command(self) -> list[str]:
        """Return the program and its arguments; each process has an id of its own."""
        id_ = f"tidemill-{secrets.token_hex(4)}"
        write_text(self._id_file, id_)
        return self._java(
            HEAP_MB["taskmanager"],
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
            "--configDir",
            str(self.folder),
            f"-Dtaskmanager.resource-id={id_}",
        )

    def answers(self) -> bool:
        """Tell whether the JobManager knows it.

        Raises:
            ServerNotStarted: There is no JobManager any more.
        """
        if not _takes_connections(self.ports.rest):
            raise ServerNotStarted(
                f"{self.name} finds no JobManager on port {self.ports.rest}: it has ended meanwhile"
            )
        found = self._asked("/taskmanagers") or {"taskmanagers": []}
        try:
            mine = self._id_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return any(one["id"] == mine for one in found["taskmanagers"])


class JobServer(ClusterServer):
    """Beam's job server, which submits pipelines to the JobManager."""

    name = "Beam job server"

    @property
    def port(self) -> int:
        """The port on which it takes jobs."""
        return self.ports.job

    @property
    def listens(self) -> Sequence[int]:
        """All ports that must be free before it starts."""
        return self.ports.job, self.ports.artifacts

    def command(self) -> list[str]:
        """Return the program and its arguments.

        The job server sends its class path to the JobManager with every job, jar by jar, and the
        TaskManager fetches it, though both have all of it: that takes a tenth of a second for each
        jar. So most of them are on the path of Java's own classes, where it does not look.
        """
        jars = fetched_jars(FLINK)
        sent = [str(jar) for jar in jars if _SENT.match(jar.name)]
        own = [str(jar) for jar in jars if not _SENT.match(jar.name)]
        return [
            str(find_java()),
            *java_options(HEAP_MB["job server"]),
            f"-Xbootclasspath/a:{os.pathsep.join(own)}",
            "-cp",
            os.pathsep.join(sent),
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            f"--flink-master={HOST}:{self.ports.rest}",
            f"--flink-conf-dir={self.folder}",
            f"--job-host={HOST}",
            f"--job-port={self.ports.job}",
            f"--artifact-port={self.ports.artifacts}",
            "--expansion-port=-1",
            f"--artifacts-dir={self.folder / 'artifacts'}",
        ]

    def answers(self) -> bool:
        """Tell whether its port takes connections."""
        return _takes_connections(self.port)


class WorkerPool(ClusterServer):
    """The pool that starts Python workers, of this program's Python."""

    name = "Beam worker pool"

    @property
    def port(self) -> int:
        """The port on which it is asked for workers."""
        return self.ports.workers

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        log = self.folder / "workers.log"
        return [*python_command(_POOL), f"--port={self.port}", f"--log={log}"]

    def answers(self) -> bool:
        """Tell whether its port takes connections."""
        return _takes_connections(self.port)


SERVERS: Final = (JobManager, TaskManager, JobServer, WorkerPool)
"""The processes of a cluster, in the order in which they are started."""


class Supervisor(PortlessServer):
    """The process that starts again what has ended of `SERVERS`."""

    name = "Flink supervisor"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        places = [f"--folder={self.folder.parent}", f"--rest={self.ports.rest}"]
        places += [f"--job={self.ports.job}", f"--workers={self.ports.workers}"]
        return [*python_command(_SUPERVISE), *places]

    def answers(self) -> bool:
        """Tell whether it has begun to watch."""
        return SUPERVISES in self.log.read_text(encoding="utf-8", errors="replace")


SUPERVISES: Final = "watches over the Flink cluster"
"""What a supervisor writes to its log when it begins."""


def ask_rest(address: str, path: str) -> Any:
    """Ask the REST interface of a JobManager.

    Args:
        address: ``http://HOST:PORT``.
        path: The path, with its slash.

    Returns:
        Its answer, decoded; None without one.
    """
    with (
        # A JobManager may be lost in the middle of its answer.
        suppress(OSError, ValueError, HTTPException),
        urllib.request.urlopen(f"{address}{path}", timeout=_ANSWER_S) as answer,
    ):
        return json.load(answer)
    return None


def _takes_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), _ANSWER_S):
        return True
    return False
