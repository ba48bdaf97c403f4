"""Ports of this machine: one that is free, and whether one is taken."""

from __future__ import annotations

import errno
import socket
from types import TracebackType


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


def is_taken(host: str, port: int) -> bool:
    """Tell whether a program listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False
