"""Frames of another version, and damaged frames."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VERSION_AT = 10
_CHECKSUM_AT = 24
_HEADER_BYTES = 32


def of_version(data: bytes, version: int) -> bytes:
    """Change the version of a frame; its checksum is right."""
    changed = bytearray(data)
    changed[_VERSION_AT : _VERSION_AT + 2] = version.to_bytes(2, "little")
    prefix = zlib.crc32(changed[:_CHECKSUM_AT])
    checksum = zlib.crc32(changed[_HEADER_BYTES:], prefix)
    changed[_CHECKSUM_AT:_HEADER_BYTES] = struct.pack("<Q", checksum)
    return bytes(changed)


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Damage bytes in many ways: drop all of them, drop the end, flip a bit, ..."""
    yield "empty", b""
    for keep in sorted(
        {1, 7, 8, 20, 31, 32, len(data) // 2, len(data) - 1} & set(range(len(data)))
    ):
        yield f"the first {keep} bytes", data[:keep]
    yield "one byte more", data + b"\0"
    for at in range(0, len(data), max(1, len(data) // 97)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        yield f"another bit {at % 8} of byte {at}", bytes(changed)
    yield "zeros", bytes(len(data))
    yield "text", b"not what it was"
    yield "other JSON", b'{"a": [1, 2]}'


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def bomb(path: Path) -> bytes:
    """A pickle that makes a file when it is loaded."""
    return pickle.dumps(_Bomb(path), protocol=5)
