"""A proxy in front of Redis servers that leads to another one after a chosen reply.

As a failover does: the clients' address stays, and the server behind it has older data.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from types import TracebackType

from tests.support.redis_server import HOST, free_port
from tidemill.serving.stores.redis_place import RedisPlace


class SwitchingProxy:
    """Passes each connection on to the present server; counts replies.

    Args:
        ports: The servers.

    Attributes:
        place: Where the proxy is.
        replies: Number of replies that were passed on.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.place = RedisPlace(host=HOST, port=free_port())
        self.replies = 0
        self._ports = list(ports)
        self._now = 0
        self._after: dict[int, int] = {}
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server((HOST, self.place.port))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> SwitchingProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self._close_all()

    @property
    def server(self) -> int:
        """The number of the present server."""
        return self._now

    def switch_after(self, after: dict[int, int]) -> None:
        """Lead to other servers: by number of replies from now, the server from then on."""
        with self._lock:
            self.replies = 0
            self._after = dict(after)
            self._lead(after.get(0))

    def lead_to(self, server: int) -> None:
        """Lead to a server from now on."""
        self.switch_after({0: server})

    def _lead(self, server: int | None) -> None:
        if server is not None and server != self._now:
            self._now = server
            self._close_all()

    def _close_all(self) -> None:
        for one in self._open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already
        self._open = []

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the proxy is closed
            with self._lock:
                server = socket.create_connection((HOST, self._ports[self._now]))
                self._open += [client, server]
            for source, target, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pass_on, args=(source, target, is_reply), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        parser = _Replies()
        with source, target:
            try:
                while data := source.recv(1 << 16):
                    for piece in parser.cut(data) if is_reply else [data]:
                        target.sendall(piece)
                        if is_reply:
                            self._count()
            except OSError:
                return  # the other side is gone
            finally:
                for one in (source, target):
                    try:
                        one.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        continue  # it is closed already

    def _count(self) -> None:
        with self._lock:
            self.replies += 1
            self._lead(self._after.get(self.replies))


class _Replies:
    """Cuts a stream of RESP replies at their ends."""

    def __init__(self) -> None:
        self._data = b""

    def cut(self, data: bytes) -> list[bytes]:
        """Return whole replies; the rest waits for more."""
        self._data += data
        out = []
        while (end := _end(self._data, 0)) is not None:
            out.append(self._data[:end])
            self._data = self._data[end:]
        return out


def _end(data: bytes, at: int) -> int | None:
    """Return where the reply at a place ends; None if it is not all there."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return None
    kind, number = data[at : at + 1], data[at + 1 : line]
    end = line + 2
    if kind == b"$":
        length = int(number)
        end += 0 if length < 0 else length + 2
        return end if end <= len(data) else None
    if kind == b"*":
        place: int | None = end
        for _ in range(max(int(number), 0)):
            place = _end(data, place)  # type: ignore[arg-type]
            if place is None:
                return None
        return place
    return end
