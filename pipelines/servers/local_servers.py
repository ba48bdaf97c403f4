"""What `tidemill up` starts and `tidemill down` ends: Kafka, Redis and Flink, of one folder.

Promises:

* **Exactly what was started is ended.** Each server is recorded before it runs: its number, the
  time at which its process started, its port. The record has a checksum. A process that got the
  number of a server later is never signalled, nor is a server that someone else has started.
* **It can be repeated.** A server that runs is left as it is. One that was killed is started again
  on its data. An interrupted `LocalServers.up` is continued by the next one.
* **A supervised Flink cluster** starts again by itself what ends of it, until `LocalServers.stop`
  (`pipelines.servers.supervise`).
* **One at a time.** Of two calls on one folder the second waits for the first.
* **Data stay** until `LocalServers.remove`.

The folder is one that this module has made: a folder that holds something else is refused, since
`remove` would remove it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError, ServerNotStarted
from tidemill.pipelines.servers.flink_cluster import (
    SERVERS,
    ClusterServer,
    JobManager,
    Supervisor,
    TaskManager,
)
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.kafka_broker import STOP_S, KafkaBroker
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.processes import RunningProcess
from tidemill.pipelines.servers.redis_server import RedisServer
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.locks import lock
from tidemill.serving.files.records import RecordFormat, read_record, write_record

KAFKA: Final = "Kafka"
REDIS: Final = "Redis"

FLINK: Final = "flink"
"""The folder of the Flink cluster, all of whose processes share it."""

_RECORD: Final = "servers.json"
_LOCK: Final = "servers.lock"
_OURS: Final = (_RECORD, _LOCK, ".gitignore", "kafka", "redis", FLINK)
"""What stands in the folder; unfinished files have these names and more behind them."""

_FORMAT: Final = RecordFormat(
    name="tidemill-servers",
    version=1,
    fields=frozenset({"servers"}),
    remedy="look with `ps` which servers still run, end them yourself, and remove that file",
)


@dataclass(frozen=True)
class LocalServer:
    """A server of the folder.

    Attributes:
        name: `KAFKA`, `REDIS`, or the name of a process of `flink_cluster`.
        port: Its port on 127.0.0.1.
        pid: The number of its process.
        started: When the process started, as the system shows it.
        seconds: How long it took to start; None if it ran already, or is no more.
    """

    name: str
    port: int
    pid: int
    started: str
    seconds: float | None = None

    @property
    def address(self) -> str:
        """Where it listens, ``HOST:PORT``."""
        return f"{HOST}:{self.port}"

    @property
    def process(self) -> RunningProcess:
        """Its process."""
        return RunningProcess(self.pid, self.started)


class LocalServers:
    """The servers of one folder.

    Args:
        folder: Where their data, logs and record are. It is new, empty or one of an earlier call.

    Raises:
        ConfigurationError: It is a file, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        with named_for(self.folder):
            held = {path.name for path in self.folder.iterdir()} if folder.exists() else set()
        # The lock is the first file that is made here, and the last that is left.
        ours = {name for name in held if _LOCK in held and name.startswith(_OURS)}
        if others := held - ours:
            raise ConfigurationError(
                f"{self.folder} holds {min(others)!r}, which no server has written: name a new "
                "folder with --folder"
            )

    def start_kafka(self, port: int) -> LocalServer:
        """Start the Kafka broker, unless it runs.

        Args:
            port: Its port.

        Returns:
            The broker, which answers.

        Raises:
            ForeignServer: Another program listens on the port.
            ServerNotStarted: It did not start, or it runs on another port.
            JavaMissing: There is no Java.
            JarsMissing: Kafka's jars are not here, and could not be fetched.
            WrongJar: One of the jars is not the locked one.
            DamagedState: The record is damaged.
            FileError: The folder cannot be written.
        """
        broker = KafkaBroker(self.folder / "kafka", port, outlives=True)
        with self._alone():
            return self._start(KAFKA, port, broker)

    def start_redis(self, port: int, program: Path) -> LocalServer:
        """Start Redis, unless it runs.

        Args:
            port: Its port.
            program: From `find_redis`.

        Returns:
            The server, which answers.

        Raises:
            ForeignServer: Another program listens on the port.
            ServerNotStarted: It did not start, or it runs on another port.
            DamagedState: The record is damaged.
            FileError: The folder cannot be written.
        """
        with self._alone():
            return self._start(REDIS, port, RedisServer(self.folder / "redis", port, program))

    def start_flink(self, ports: FlinkPorts) -> Iterator[LocalServer]:
        """Start the processes of a Flink cluster, one after the other, unless they run.

        Args:
            ports: Their ports.

        Yields:
            Each process, when it answers.

        Raises:
            ForeignServer: Another program listens on one of the ports.
            ServerNotStarted: One did not start, or runs on another port.
            JavaMissing: There is no Java.
            JarsMissing: The jars are not here, and could not be fetched.
            WrongJar: One of the jars is not the locked one.
            DamagedState: The record is damaged.
            FileError: The folder cannot be written.
        """
        for kind in SERVERS:
            yield self.start_of_flink(kind, ports)

    def start_of_flink(self, kind: type[ClusterServer], ports: FlinkPorts) -> LocalServer:
        """Start a process of a Flink cluster, unless it runs; arguments and errors as there."""
        server = kind(self.folder / FLINK, ports)
        with self._alone():
            if kind is JobManager and not self.runs(JobManager.name):
                # Its tasks are lost with the JobManager, and it may not find the new one.
                self._end(TaskManager.name)
            return self._start(server.name, server.port, server)

    def supervise_flink(self, ports: FlinkPorts) -> LocalServer:
        """Start the supervisor of a Flink cluster, unless it runs.

        Args:
            ports: The ports of the cluster, all of whose processes were started.

        Returns:
            The supervisor; until `stop` it starts again what ends.

        Raises:
            ServerNotStarted: It did not start, or watches over a cluster with other ports.
            DamagedState: The record is damaged.
            FileError: The folder cannot be written.
        """
        return self.start_of_flink(Supervisor, ports)

    def runs(self, name: str) -> bool:
        """Tell whether a server that was started runs.

        Raises:
            DamagedState: The record is damaged.
        """
        known = self.recorded().get(name)
        return known is not None and known.process.is_alive()

    def _end(self, name: str) -> None:
        if (known := self.recorded().get(name)) is not None:
            known.process.end(0.0)
            self._forget(name)

    def _start(
        self, name: str, port: int, server: KafkaBroker | RedisServer | ClusterServer
    ) -> LocalServer:
        """Start a server, unless it runs; the caller holds the lock."""
        known = self.recorded().get(name)
        if known is not None and known.process.is_alive():
            if known.port != port:
                raise ServerNotStarted(
                    f"{name} of {self.folder} runs already, on port {known.port}: end it with "
                    f"`tidemill down` to move it to port {port}"
                )
            server.process = known.process
            server.await_answer()
            return known

        started: list[LocalServer] = []

        def record(process: RunningProcess) -> None:
            started.append(LocalServer(name, port, process.pid, process.started))
            self._record(started[-1])

        try:
            seconds = server.start(record)
        except BaseException:
            if started and not started[-1].process.is_alive():
                self._forget(name)
            raise
        return replace(started[-1], seconds=seconds)

    def stop(self) -> list[tuple[LocalServer, bool]]:
        """End the servers that were started, the last one first; their data stay.

        Returns:
            Each server that was recorded, and whether it still ran.

        Raises:
            ServerNotStopped: A process cannot be ended.
            DamagedState: The record is damaged.
        """
        if not (self.folder / _RECORD).exists():
            return []
        # A supervisor would start again what is ended. It may be starting something, with the lock.
        supervisor = self.recorded().get(Supervisor.name)
        did_run = supervisor is not None and supervisor.process.end(STOP_S)
        with self._alone():
            stopped = []
            for server in reversed(self._in_order()):
                ran = server.process.end(STOP_S)
                stopped.append((server, ran or (server == supervisor and did_run)))
                self._forget(server.name)
            return stopped

    def _in_order(self) -> list[LocalServer]:
        """Return the servers that were started, with the supervisor behind all others."""
        found = list(self.recorded().values())
        return sorted(found, key=lambda server: server.name == Supervisor.name)

    def remove(self) -> bool:
        """End the servers and remove their data.

        Returns:
            Whether there was anything.

        Raises:
            ServerNotStopped: A process cannot be ended.
            DamagedState: The record is damaged.
            FileError: A file cannot be removed.
        """
        if not self.folder.exists():
            return False
        self.stop()
        with self._alone(), named_for(self.folder):
            found = [path for path in self.folder.iterdir() if path.name != _LOCK]
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return bool(found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with named_for(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        what = f"start or stop the servers of {self.folder}"
        with lock(self.folder / _LOCK, what, wait=True):
            yield

    def recorded(self) -> dict[str, LocalServer]:
        """Return the servers that were started and not ended by `stop`, by name.

        Raises:
            DamagedState: The record is damaged.
        """
        path = self.folder / _RECORD
        if not path.exists():
            return {}
        servers = (LocalServer(**entry) for entry in read_record(path, _FORMAT)["servers"])
        return {server.name: server for server in servers}

    def _record(self, server: LocalServer) -> None:
        self._write({**self.recorded(), server.name: server})

    def _forget(self, name: str) -> None:
        self._write({key: kept for key, kept in self.recorded().items() if key != name})

    def _write(self, servers: dict[str, LocalServer]) -> None:
        write_text(self.folder / ".gitignore", "*\n")
        entries = [
            {key: value for key, value in asdict(server).items() if key != "seconds"}
            for server in servers.values()
        ]
        write_record(self.folder / _RECORD, _FORMAT, {"servers": entries})
