"""Ports of this machine: one that is free, and who has one that is taken."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

from tidemill.features.errors import ForeignServer

_LISTENING: Final = "0A"
"""The state of a listening socket in ``/proc/net/tcp``."""


class ReservedPort:
    """A free port that the system gives to no other program while this is open.

    The port is bound and not listened on, so clients are refused. A server that sets SO_REUSEADDR,
    as Java, Redis and Python's servers do, can bind it all the same and listen.

    Args:
        host: The address.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port up."""
        self._socket.close()

    def __enter__(self) -> ReservedPort:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def require_free(host: str, port: int, server: str) -> None:
    """Check that no program listens on a port.

    Args:
        host: The address.
        port: The port.
        server: The server that is to listen there, as the error names it.

    Raises:
        ForeignServer: A program listens there; the error names it, where the system tells.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except PermissionError as error:
            raise ForeignServer(
                f"{server} cannot listen on port {port} of {host} ({error.strerror}): choose one "
                "from 1024 up"
            ) from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise ForeignServer(
        f"{server} cannot listen on port {port} of {host}: {listener(port)} does; end it yourself, "
        "or choose another port"
    )


def listener(port: int) -> str:
    """Return the number and the command of the process that listens on a port.

    Only Linux tells, and only of processes of the same user; else it is "another program".
    """
    other = "another program"
    if sys.platform != "linux":
        return other
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(opened.readlink()) in wanted:
                process = opened.parents[1]
                command = (process / "cmdline").read_text(errors="replace")
                return f"process {process.name} ({_in_short(command.split(chr(0))[:-1])})"
        except OSError:  # it has ended, or belongs to another user
            continue
    return other


def _in_short(words: list[str]) -> str:
    """Return the program and the last argument of a command: Java's are long in between."""
    program = Path(words[0]).name if words else "?"
    between = [" ..."] if len(words) > 2 else []
    return "".join([program, *between, *(f" {word[-60:]}" for word in words[1:][-1:])])


def _inodes(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port, on any address."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found
