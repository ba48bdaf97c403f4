"""SQLite connections for many threads and processes: one per thread and file.

* Neither two threads nor two processes share a connection.
* A connection belongs to the file that it was opened on: if the file was removed or replaced, a new
  connection is opened, so that nothing is written to a file that has no name any more.
* Opening does not create a file; `create_file` does.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tidemill.serving.online.per_thread import PerThread

BUSY_TIMEOUT_S: Final = 60.0
"""How long a writer waits for other writers."""

_PRAGMAS: Final = (
    "synchronous = NORMAL",
    "cache_size = -65536",  # KiB; the default of 2 MiB holds the rows of few entities
    "wal_autocheckpoint = 10000",  # pages: each checkpoint waits for the disk, so ten times fewer
)


# By path: a connection, and the device and inode of the file that it was opened on.
_connections = PerThread[str, tuple[sqlite3.Connection, tuple[int, int]]]()


def create_file(path: str) -> None:
    """Create an empty database with a write-ahead log, and its directory, if they don't exist.

    Raises:
        OSError: The place cannot be written.
        sqlite3.Error: The file is not a database.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
    sqlite = _connection(path)
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            sqlite.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # SQLite does not wait here, whatever the timeout: it would deadlock with another
            # process that creates the same file.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)


@contextmanager
def transaction(path: str, *, write: bool) -> Iterator[sqlite3.Connection]:
    """Open a transaction: committed at the end, rolled back by an exception.

    Args:
        path: The database's file.
        write: True takes the lock for writing at once, so the transaction cannot fail half-way for
            lack of it; False sees one snapshot of the database.

    Raises:
        FileNotFoundError: There is no such file.
        sqlite3.Error: The database refused, or stayed locked for `BUSY_TIMEOUT_S`.
    """
    sqlite = _connection(path)
    sqlite.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield sqlite
    except BaseException:
        if sqlite.in_transaction:  # a full disk, for example, has rolled back already
            sqlite.execute("ROLLBACK")
        raise
    sqlite.execute("COMMIT")


def write_anew(path: str) -> None:
    """Write the file anew from what it holds, and empty its write-ahead log.

    Raises:
        FileNotFoundError: There is no such file.
        sqlite3.Error: The database refused, or stayed locked for `BUSY_TIMEOUT_S`.
    """
    sqlite = _connection(path)
    sqlite.execute("VACUUM")
    is_busy, *_ = sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise sqlite3.OperationalError("database is locked: a reader keeps its write-ahead log")


def close(path: str) -> None:
    """Close this thread's connection to a file, if there is one."""
    if (opened := _connections.pop(path)) is not None:
        opened[0].close()


def _connection(path: str) -> sqlite3.Connection:
    status = os.stat(path)  # noqa: PTH116 - at every use, and a Path would cost more than the call
    inode = (status.st_dev, status.st_ino)
    opened = _connections.get(path)
    if opened is not None and opened[1] == inode:
        return opened[0]
    close(path)
    sqlite = _open(path)
    _connections.put(path, (sqlite, inode))
    return sqlite


def _open(path: str) -> sqlite3.Connection:
    sqlite = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=rw",
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        uri=True,
    )
    for pragma in _PRAGMAS:
        sqlite.execute(f"PRAGMA {pragma}")
    return sqlite
