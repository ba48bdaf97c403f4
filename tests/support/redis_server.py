"""A real Redis for tests: started on a free port, killed, started again with its data or without.

Where there is no redis-server, tests that want one are skipped, except under ``CI=true``: there
they fail, since a suite that never met the real server must not pass.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

HOST = "127.0.0.1"
_START_S = 60.0


def program(name: str, package: str) -> str:
    """Return a program's path; without it the test is skipped, or under CI=true fails."""
    path = shutil.which(name)
    if path is not None:
        return path
    message = f"{name} is not installed (Debian: apt-get install {package})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@dataclass(frozen=True)
class Certificate:
    """A certificate that signed itself."""

    cert: Path
    key: Path

    @staticmethod
    def made_in(folder: Path, name: str, host: str = "localhost,IP:127.0.0.1") -> Certificate:
        made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
        subprocess.run(
            [
                *(program("openssl", "openssl"), "req", "-x509", "-nodes", "-days", "2"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{host}"),
                *("-keyout", str(made.key), "-out", str(made.cert)),
            ],
            check=True,
            capture_output=True,
        )
        return made


class RedisServer:
    """A redis-server of this test; it keeps nothing on disk unless its options say so.

    Args:
        folder: Where its data and its log are; it may hold those of an earlier server.
        options: Its options as in redis.conf, ``{"maxmemory": "4mb"}``.
        users: Lines of ``ACL SETUSER``, ``"writer on >secret ~tm:* +@all"``.
        tls: Its certificate: it then speaks nothing but TLS.
    """

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

    @property
    def place(self) -> RedisPlace:
        """Where it is, for the default user."""
        tls = None if self.tls is None else RedisTls(ca=self.tls.cert)
        return RedisPlace(host=HOST, port=self.port, tls=tls)

    def start(self, until_loaded: bool = True) -> None:
        """Start it and wait until it answers and, if wanted, has read its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "redis.log"
        self._process = subprocess.Popen(self._command(), stdout=log.open("ab"), stderr=-2)
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                self.client().ping()
                return
            except redis.AuthenticationError:
                return  # the default user has a password, so it answers
            except redis.BusyLoadingError:
                if not until_loaded:
                    return
                time.sleep(0.01)
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    end = log.read_text()[-2_000:]
                    raise RuntimeError(f"redis-server did not start:\n{end}") from None
                time.sleep(0.01)

    def _command(self) -> list[str]:
        words = [program("redis-server", "redis-server"), "--dir", str(self.folder)]
        words += ["--bind", HOST]
        if self.tls is None:
            words += ["--port", str(self.port)]
        else:
            words += ["--port", "0", "--tls-port", str(self.port)]
            words += ["--tls-cert-file", str(self.tls.cert), "--tls-key-file", str(self.tls.key)]
            words += ["--tls-ca-cert-file", str(self.tls.cert)]
        for name, value in self.options.items():
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
        return redis.Redis(host=HOST, port=self.port, socket_timeout=10, retry=once, **tls)

    def kill(self) -> None:
        """Kill it with -9: what it had not written is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it end by itself: it saves where its options say so."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it answer nothing until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
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


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
