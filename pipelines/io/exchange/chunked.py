"""Large files in an exchange: never whole in memory, and checked wherever they are read.

An object has the bytes of the file, and behind them an entry (`pipelines.io.exchange.sealed`) with
its place, its size and a checksum of each chunk. So any part of it can be read and checked alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.exchange.journal import patiently
from tidemill.pipelines.io.exchange.names import Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.sealed import SOMEBODY, removed, told
from tidemill.pipelines.io.framing import Bytes, Kind, decode_document
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.file_errors import named_for

CHUNK: Final = 1 << 18
"""The bytes that have a checksum together."""
_BLOCK: Final = 16 * CHUNK
"""The bytes that are sent, or copied, at once."""
_LENGTH: Final = 8
_MOST: Final = 1 << 26
"""No entry has more bytes: such a file had four terabytes."""
_TAIL: Final = 1 << 16
"""The bytes at an object's end that are read first: of most objects its whole entry."""


def put_file(objects: Objects, name: str, path: Path) -> None:
    """Write a file as an object, also while the storage is away for a while.

    Raises:
        ExchangeError: It cannot be written.
        FileError: The file cannot be read.
    """
    patiently(lambda: objects.put_pieces(name, _pieces(path, objects.place(name))))


def _pieces(path: Path, place: str) -> Iterator[Bytes]:
    checks: list[int] = []
    size = 0
    with named_for(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            checks += _checks(block)
            size += len(block)
            yield block
    fields = {"place": place, "bytes": size, "chunk": CHUNK}
    entry = b"".join(told(Told.CHUNKED, fields, [np.array(checks, "<u4").tobytes()]))
    yield entry + len(entry).to_bytes(_LENGTH, "little")


def _checks(block: Bytes) -> Iterator[int]:
    view = memoryview(block)
    return (zlib.crc32(view[at : at + CHUNK]) for at in range(0, view.nbytes, CHUNK))


class ChunkedObject:
    """Reads an object that `put_file` has written.

    Args:
        objects: The storage.
        name: Its name.

    Attributes:
        size: How many bytes the file has.

    Raises:
        DamagedState: It is not what was written there, or was removed.
        ExchangeError: The storage is away, or refuses.
    """

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects, self._name, self._place = objects, name, objects.place(name)
        tail = self._range(-_TAIL, _TAIL)
        length = int.from_bytes(tail.slice(max(tail.size - _LENGTH, 0)).to_pybytes(), "little")
        if tail.size - _LENGTH < length <= _MOST:
            tail = self._range(-length - _LENGTH, length + _LENGTH)
        if not 0 < length <= tail.size - _LENGTH:
            raise self._damaged("does not end as it was written")
        entry = tail.slice(tail.size - _LENGTH - length, length)
        found = decode_document(entry, Kind.EXCHANGED, self._place, SOMEBODY, Told.CHUNKED)
        if found.fields["place"] != self._place or found.fields["chunk"] != CHUNK:
            raise self._damaged(
                f"is what was written at {found.fields['place']}, which somebody has put there"
            )
        self.size: int = found.fields["bytes"]
        self._checks = np.frombuffer(found.blobs[0], "<u4")

    def _range(self, start: int, size: int) -> pa.Buffer:
        found = patiently(lambda: self._objects.get_range(self._name, start, size))
        if found is None:
            raise removed(self._place)
        return found

    def _damaged(self, what: str) -> DamagedState:
        return DamagedState(f"{self._place}: {what}; {SOMEBODY}")

    def read(self, start: int, size: int) -> pa.Buffer:
        """Read a part of the file, which has it, as a buffer whose address Arrow is content with.

        Raises:
            DamagedState: It is not what was written there.
            ExchangeError: The storage is away, or refuses.
        """
        first = start // CHUNK * CHUNK
        stop = min(-(-(start + size) // CHUNK) * CHUNK, self.size)
        found = self._range(first, stop - first)
        self._check(first, found)
        aligned = pa.allocate_buffer(size)
        np.frombuffer(aligned, np.uint8)[:] = np.frombuffer(found, np.uint8, size, start - first)
        return aligned

    def copy_to(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            DamagedState: It is not what was written there.
            ExchangeError: The storage is away, or refuses.
            FileError: The file cannot be written.
        """
        patiently(lambda: self._copy_to(path))

    def _copy_to(self, path: Path) -> None:
        at = 0
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            for block in self._objects.blocks(self._name, _BLOCK):
                mine = block.slice(0, min(block.size, self.size - at))
                self._check(at, mine)
                file.write(mine)
                at += mine.size
            if at < self.size:
                raise removed(self._place) if not at else self._damaged("was cut short")

    def _check(self, start: int, data: pa.Buffer) -> None:
        """Check chunks; the first begins at ``start``."""
        first = start // CHUNK
        if list(_checks(data)) != self._checks[first : first + -(-data.size // CHUNK)].tolist():
            raise self._damaged("was changed since it was written")
