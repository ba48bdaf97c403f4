"""Locks between processes of one machine, on files; each says who holds it.

A lock is `flock` on a file, so it ends with its process, also by ``kill -9``. Children that the
process has forked keep it, children that it has executed do not. The file stays, because removing
it would let two processes lock two files of one name. It must not be on a network file system
without locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import Locked
from tidemill.serving.files.file_errors import named_for

_WAIT_S: Final = 0.05
_PATIENCE_S: Final = 0.5


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        pid: Its number.
        host: Its machine.
        command: Its command line.
        since: When it took the lock: ISO 8601, UTC.
    """

    pid: int
    host: str
    command: str
    since: str

    @staticmethod
    def here(command: str | None = None) -> Holder:
        """Describe this process; ``command`` replaces its command line, which may be secret."""
        since = write_instant(time.time_ns() // 1_000_000_000 * SECOND)
        command = " ".join(sys.argv)[:200] if command is None else command
        return Holder(os.getpid(), socket.gethostname(), command, since)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}) since {self.since}"


@contextmanager
def lock(
    path: Path, what: str, *, wait: bool = False, command: str | None = None
) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: The lock's file; its folder is made.
        what: What only one process may do, as the error names it.
        wait: Whether to wait until it is free; else a held lock is an error.
        command: What the file says of this process in place of its command line; None for that.

    Raises:
        Locked: Another process holds it.
        FileError: The file cannot be made.
    """
    with named_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Append mode keeps the holder's record until the lock is ours.
        file = path.open("a+")
    with file:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Who only looks (`is_locked`) holds it for an instant.
                if not wait and time.monotonic() > deadline:
                    raise Locked(
                        f"{path.parent}: only one process at a time may {what}, and "
                        f"{_holder(path)} does; wait for it (`--wait`), or end it"
                    ) from None
                time.sleep(_WAIT_S)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(Holder.here(command))))
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Tell whether another process holds a lock."""
    if not path.exists():
        return False
    # Also whoever may only read it can ask.
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(path: Path) -> str:
    try:
        return str(Holder(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):  # it has the lock, and writes its record next
        return "another process"
