"""A Kafka broker on this machine: one process, its data in a folder, nothing replicated.

Promises:

* `KafkaBroker.start` returns when the broker answers a request for metadata with the id of its own
  cluster. Whatever else listens on its port is an error, and is left alone.
* A broker that does not start says why: the error ends with the last lines of its log.
* What a client was told is written stays, through `KafkaBroker.kill` and `KafkaBroker.stop`, until
  the folder is removed. (A loss of power may lose what the system had not yet written to the disk.)
* By default the broker dies with the process that started it, however that ends. With
  ``outlives=True`` it stays.

Below the folder there are ``data/``, ``server.properties`` and ``broker.log``. The broker listens
on 127.0.0.1 only.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedState, ForeignServer, ServerNotStarted
from tidemill.pipelines.servers.jars import fetched_jars
from tidemill.pipelines.servers.java import find_java
from tidemill.pipelines.servers.kafka_probe import cluster_at
from tidemill.pipelines.servers.kafka_settings import (
    HOST,
    Mechanism,
    Protocol,
    User,
    broker_settings,
    properties,
)
from tidemill.pipelines.servers.locked_jars import KAFKA
from tidemill.pipelines.servers.ports import ReservedPort, listener, require_free
from tidemill.pipelines.servers.processes import Guard, RunningProcess, await_answer, start
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.file_errors import named_for

START_S: Final = 120.0
"""How long a broker may take to start; on an idle machine it takes a few seconds."""

STOP_S: Final = 30.0
"""How long a broker may take to end by itself, before it is killed."""

_FORMAT_S: Final = 120.0
_ANSWER_S: Final = 5.0
_JAVA_OPTIONS: Final = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


class KafkaBroker:
    """A broker, running or not.

    Args:
        folder: Where its data, settings and log are; it may hold those of an earlier broker.
        ports: The port of each listener; one without TLS and SASL is among them. A number is the
            port of that one alone.
        users: The users of the listeners with SASL. Those with SCRAM are written when the folder is
            new, and never changed.
        key_store: For listeners with TLS, a PEM file with private key and certificate.
        settings: Further settings of the broker, which take precedence.
        outlives: Whether it goes on when this process ends.

    Raises:
        ValueError: No port without TLS and SASL, or a port with TLS without a key store.
    """

    def __init__(
        self,
        folder: Path,
        ports: Mapping[Protocol, int] | int,
        users: Sequence[User] = (),
        key_store: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        outlives: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.ports = {Protocol.PLAINTEXT: ports} if isinstance(ports, int) else dict(ports)
        if Protocol.PLAINTEXT not in self.ports:
            raise ValueError("the broker needs a PLAINTEXT port, on which it is asked if it runs")
        if key_store is None and {Protocol.SSL, Protocol.SASL_SSL} & self.ports.keys():
            raise ValueError("a listener with TLS needs a key store")
        self._users = tuple(users)
        self._key_store = None if key_store is None else key_store.absolute()
        self._settings = dict(settings or {})
        self._outlives = outlives
        self._guard: Guard | None = None
        self.process: RunningProcess | None = None

    @property
    def bootstrap(self) -> str:
        """The address for clients, ``HOST:PORT``, without TLS and SASL."""
        return self.address(Protocol.PLAINTEXT)

    def address(self, protocol: Protocol) -> str:
        """Return the address of a listener, ``HOST:PORT``."""
        return f"{HOST}:{self.ports[protocol]}"

    @property
    def log(self) -> Path:
        """The file with the broker's warnings and errors."""
        return self.folder / "broker.log"

    @property
    def cluster_id(self) -> str:
        """The id of the cluster, which was made with the data.

        Raises:
            DamagedState: The data do not name it.
        """
        path = self._data / "meta.properties"
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "cluster.id" and value:
                return value.replace("\\", "")
        raise DamagedState(
            f"{path} does not name the cluster: Kafka's data in {self._data} are damaged; remove "
            "that folder, and all topics with it"
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(
        self,
        before: Callable[[RunningProcess], None] | None = None,
        timeout_s: float = START_S,
    ) -> float:
        """Start the broker and wait until it answers.

        Args:
            before: Called with the broker's process before it runs, to record it.
            timeout_s: How long it may take.

        Returns:
            The seconds that it took.

        Raises:
            ForeignServer: Another program listens on one of the ports.
            ServerNotStarted: The broker ended, or did not answer in time.
            JavaMissing: There is no Java.
            JarsMissing: Kafka's jars are not here, and could not be fetched.
            WrongJar: One of the jars is not the locked one.
            FileError: The folder cannot be written.
        """
        if self.is_alive():
            raise ServerNotStarted(f"this broker runs already: {self.process}")
        began = time.monotonic()
        for port in self.ports.values():
            require_free(HOST, port, "Kafka")
        classes = os.pathsep.join(str(jar) for jar in fetched_jars(KAFKA))
        java = find_java()
        with named_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ReservedPort(HOST) as controller:
            if not self._data.exists():
                self._format(java, classes, controller.port)
            settings = self._write_settings("server.properties", self._data, controller.port)
            with named_for(self.log):
                self.log.write_bytes(b"")
            command = [java, *_JAVA_OPTIONS, "-cp", classes, "kafka.Kafka", settings]
            self.process = start([str(word) for word in command], self.log, before)
            if not self._outlives:
                self._guard = Guard(self.process)
            try:
                self.await_answer(timeout_s)
            except BaseException:
                self.kill()
                raise
        return time.monotonic() - began

    def await_answer(self, timeout_s: float = START_S) -> None:
        """Wait until the running process answers; `start` has done that already.

        Args:
            timeout_s: How long it may take.

        Raises:
            ForeignServer: A broker of another cluster answers.
            ServerNotStarted: The process ended, or nothing answered in time.
        """
        ours = self.cluster_id
        port = self.ports[Protocol.PLAINTEXT]

        def is_ours(found: str | None) -> bool:
            if found not in (None, "", ours):
                raise ForeignServer(
                    f"{listener(port)}, a broker of the cluster {found}, has taken port {port} of "
                    f"{HOST} while Kafka started: end it yourself, or choose another port"
                )
            return found == ours and all(self._accepts(port) for port in self.ports.values())

        ask = partial(cluster_at, HOST, port, _ANSWER_S)
        where = f"on port {port}"
        await_answer("Kafka", where, self.log, timeout_s, self.is_alive, ask, is_ours)

    def is_alive(self) -> bool:
        """Tell whether the broker's process runs."""
        return self.process is not None and self.process.is_alive()

    def stop(self) -> None:
        """Let the broker end by itself; kill it if it takes longer than `STOP_S`."""
        self._end(STOP_S)

    def kill(self) -> None:
        """Kill the broker with SIGKILL; its data stay."""
        self._end(0.0)

    def pause(self) -> None:
        """Stop the process (SIGSTOP): it answers nothing until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process continue (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or not self.process.send(number):
            raise ServerNotStarted(f"the broker in {self.folder} does not run")

    def _end(self, patience_s: float) -> None:
        guard, self._guard = self._guard, None
        process, self.process = self.process, None
        if guard is not None:
            guard.dismiss()
        if process is not None:
            process.end(patience_s)

    def _format(self, java: Path, classes: str, controller_port: int) -> None:
        """Make the data of a new cluster, in a folder that gets its name when they are complete."""
        for abandoned in self.folder.glob("data.*.unfinished"):
            shutil.rmtree(abandoned)
        unfinished = self.folder / f"data.{uuid.uuid4().hex}.unfinished"
        settings = self._write_settings("format.properties", unfinished, controller_port)
        command = [str(java), *_JAVA_OPTIONS, "-cp", classes, "kafka.tools.StorageTool", "format"]
        command += ["--cluster-id", _new_cluster_id(), "--config", str(settings)]
        for user in self._users:
            if user.mechanism is not Mechanism.PLAIN:
                how = f"{user.mechanism.value}=[name={user.name},password={user.password}]"
                command += ["--add-scram", how]
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_FORMAT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServerNotStarted(
                f"Kafka has not made its data in {self.folder} within {_FORMAT_S:.0f} s: see what "
                "keeps the machine busy, and try again"
            ) from None
        if ended.returncode != 0:
            said = ended.stdout.decode(errors="replace").strip()[-2_000:]
            raise ServerNotStarted(f"Kafka cannot make its data in {self.folder}:\n{said}")
        settings.unlink()
        unfinished.rename(self._data)

    def _write_settings(self, name: str, data: Path, controller_port: int) -> Path:
        settings = broker_settings(
            data, self.ports, controller_port, self._users, self._key_store, self._settings
        )
        path = self.folder / name
        with atomic_write(path) as unfinished:
            unfinished.touch(mode=0o600)  # it may hold passwords
            unfinished.write_text(properties(settings), encoding="ascii")
        return path

    @staticmethod
    def _accepts(port: int) -> bool:
        with suppress(OSError), socket.create_connection((HOST, port), _ANSWER_S):
            return True
        return False


def _new_cluster_id() -> str:
    """Return a random id as Kafka writes them: 22 letters of base64, the first not a hyphen."""
    while True:
        written = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not written.startswith("-"):
            return written
