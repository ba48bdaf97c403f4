"""Asks a port which Kafka cluster answers there, with one request and no client.

The request is Kafka's Metadata request, version 2, for no topic
(https://kafka.apache.org/protocol#The_Messages_Metadata). A broker answers it once it takes part in
its cluster.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_METADATA: Final = 3
_VERSION: Final = 2
_CORRELATION: Final = 0x7469_6465
_LARGEST: Final = 1 << 20
"""No answer about a broker and no topic has more bytes than this."""


def cluster_at(host: str, port: int, timeout_s: float) -> str | None:
    """Return the id of the cluster whose broker listens on a port without TLS or SASL.

    Args:
        host: The host.
        port: The port.
        timeout_s: The most that connecting and each read may take.

    Returns:
        The id; "" if something else listens there, or it did not answer; None if nothing listens.
    """
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except (ConnectionRefusedError, TimeoutError):
        return None
    with connection:
        try:
            return _ask(connection)
        except (OSError, ValueError, struct.error):
            return ""


def _ask(connection: socket.socket) -> str:
    client = b"tidemill"
    body = struct.pack(">hhih", _METADATA, _VERSION, _CORRELATION, len(client)) + client
    body += struct.pack(">i", 0)  # no topics
    connection.sendall(struct.pack(">i", len(body)) + body)
    (size,) = struct.unpack(">i", _read(connection, 4))
    if not 8 <= size <= _LARGEST:
        raise ValueError("not an answer of Kafka")
    answer = _read(connection, size)
    correlation, brokers = struct.unpack_from(">ii", answer)
    if correlation != _CORRELATION or brokers < 1:
        raise ValueError("not an answer of Kafka")
    at = 8
    for _ in range(brokers):
        _, at = _text(answer, at + 4)  # after the number of the node, its host
        _, at = _text(answer, at + 4)  # after the port, its rack
    name, _ = _text(answer, at)
    if not name:
        raise ValueError("not an answer of Kafka")
    return name


def _text(answer: bytes, at: int) -> tuple[str, int]:
    """Read a text that may be null, which has the length -1; return it and where it ends."""
    (length,) = struct.unpack_from(">h", answer, at)
    end = at + 2 + max(0, length)
    return answer[at + 2 : end].decode(), end


def _read(connection: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        piece = connection.recv(size - len(read))
        if not piece:
            raise ValueError("not an answer of Kafka")
        read += piece
    return read
