"""What an Arrow IPC stream says that it holds, added up before any of it is decoded.

A stream is frames: a continuation mark, the length of the metadata, the metadata (a flatbuffer),
and a body of buffers (Arrow columnar format 1.5, "IPC Streaming Format"). A reader allocates what
the metadata says, and a compressed buffer says itself how long it will be. A few bytes can so ask
for any amount of memory. `check` therefore reads all frames first, allocates nothing, and refuses a
stream

* whose frames or buffers reach past its bytes, or that has bytes after its end;
* whose buffers are longer decompressed, together, than is allowed;
* that has more values or rows than are allowed: a column of nulls has no buffers and any length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from tidemill.features.rows.rejected import Reason

_CONTINUATION: Final = 0xFFFFFFFF
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_OLD_COMPRESSION: Final = b"ARROW:experimental_compression"
_NOT_COMPRESSED: Final = -1
_LENGTH_PREFIX: Final = 8
_PAIR: Final = struct.Struct("<2q")
_FILE_MAGIC: Final = b"ARROW1"


class _BrokenStream(ValueError):
    """The bytes are not a stream."""


def check(
    stream: bytes, *, most_bytes: int, most_values: int, most_rows: int
) -> tuple[Reason, str] | None:
    """Read the frames of a stream.

    Args:
        stream: The bytes.
        most_bytes: The most bytes of all buffers together, decompressed.
        most_values: The most values of all columns, nested ones and dictionaries included.
        most_rows: The most rows.

    Returns:
        Why the stream is not to be decoded; None if it may be.
    """
    try:
        total_bytes, total_values, total_rows = _sizes(stream)
    except _BrokenStream as error:
        return Reason.BROKEN_ARROW, f"{error}; expected an Arrow IPC stream"
    if total_bytes > most_bytes or total_values > most_values or total_rows > most_rows:
        return Reason.TOO_LARGE, (
            f"found {total_bytes:,} bytes in {total_values:,} values of {total_rows:,} rows, "
            f"expected at most {most_bytes:,}, {most_values:,} and {most_rows:,}; "
            "divide the rows among messages"
        )
    return None


def _sizes(stream: bytes) -> tuple[int, int, int]:
    """Return the bytes, the values and the rows that a stream says that it holds."""
    if stream.startswith(_FILE_MAGIC):
        raise _BrokenStream("found an Arrow IPC file, expected a stream")
    total_bytes = total_values = total_rows = place = 0
    schemas = 0
    while place < len(stream):
        place, length = _metadata_length(stream, place)
        if length == 0:
            if place != len(stream):
                raise _BrokenStream(
                    f"found {len(stream) - place} bytes after the end of the stream"
                )
            break
        metadata = _Flatbuffer(stream[place : place + length])
        if len(metadata.bytes) < length:
            raise _BrokenStream(f"found {len(metadata.bytes)} of {length} bytes of metadata")
        place += length
        message = metadata.root()
        body_length = message.number(3, "<q")
        if not 0 <= body_length <= len(stream) - place:
            raise _BrokenStream(
                f"found {len(stream) - place} bytes where a body has {body_length} bytes"
            )
        kind, header = message.number(1, "<B"), message.table(2)
        if header is None or kind not in (_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH):
            raise _BrokenStream(f"found a frame of kind {kind}, expected a schema or a batch")
        schemas += kind == _SCHEMA
        if kind == _DICTIONARY_BATCH:
            header = header.table(1)
        if kind != _SCHEMA and header is not None:
            if _OLD_COMPRESSION in metadata.bytes:
                raise _BrokenStream("found the experimental compression of Arrow 0.17")
            body = memoryview(stream)[place : place + body_length]
            total_bytes += _buffer_bytes(header, body)
            total_values += _values(header)
            total_rows += _rows(header)
        place += body_length
    if schemas != 1:
        raise _BrokenStream(f"found {schemas} schemas, expected one")
    return total_bytes, total_values, total_rows


def _metadata_length(stream: bytes, place: int) -> tuple[int, int]:
    """Return where the metadata starts, and its length; 0 at the end of the stream."""
    length = _unpacked("<I", stream, place)
    place += 4
    if length == _CONTINUATION:
        length = _unpacked("<I", stream, place)
        place += 4
    if length > len(stream):
        raise _BrokenStream(f"found a metadata length of {length} in {len(stream)} bytes")
    return place, length


def _buffer_bytes(batch: _Table, body: memoryview) -> int:
    buffers, most = batch.pairs(2), len(body)
    if not all(0 <= offset <= most and 0 <= length <= most for offset, length in buffers):
        raise _BrokenStream("found a buffer outside its body")
    if any(offset + length > most for offset, length in buffers):
        raise _BrokenStream("found a buffer that ends outside its body")
    if batch.table(3) is None:
        return sum(length for _, length in buffers)
    total = 0
    for offset, length in buffers:
        if length == 0:
            continue
        if length < _LENGTH_PREFIX:
            raise _BrokenStream("found a compressed buffer without its length")
        declared = int.from_bytes(body[offset : offset + _LENGTH_PREFIX], "little", signed=True)
        if declared == _NOT_COMPRESSED:
            declared = length - _LENGTH_PREFIX
        if declared < 0:
            raise _BrokenStream(f"found a buffer of {declared} bytes")
        total += declared
    return total


def _values(batch: _Table) -> int:
    nodes = batch.pairs(1)
    if any(length < 0 or nulls < 0 for length, nulls in nodes):
        raise _BrokenStream("found a column of fewer than 0 values")
    return sum(length for length, _ in nodes)


def _rows(batch: _Table) -> int:
    rows = batch.number(0, "<q")
    if rows < 0:
        raise _BrokenStream("found a batch of fewer than 0 rows")
    return rows


def _unpacked(kind: str, given: bytes, place: int) -> int:
    # Python counts a negative place from the end.
    if place < 0:
        raise _BrokenStream("found a place before the metadata")
    try:
        value: Any = struct.unpack_from(kind, given, place)[0]
    except struct.error:
        raise _BrokenStream(f"found {len(given)} bytes, expected more after byte {place}") from None
    return int(value)


@dataclass(frozen=True)
class _Flatbuffer:
    """Bytes in the format of FlatBuffers, as far as Arrow's messages need it."""

    bytes: bytes

    def root(self) -> _Table:
        return _Table(self.bytes, _unpacked("<I", self.bytes, 0))


@dataclass(frozen=True)
class _Table:
    """A table: its fields are found through a table of their places."""

    bytes: bytes
    place: int

    def _field(self, field: int) -> int | None:
        places = self.place - _unpacked("<i", self.bytes, self.place)
        entry = 4 + 2 * field
        if entry + 2 > _unpacked("<H", self.bytes, places):
            return None
        offset = _unpacked("<H", self.bytes, places + entry)
        return self.place + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        place = self._field(field)
        return 0 if place is None else _unpacked(kind, self.bytes, place)

    def table(self, field: int) -> _Table | None:
        place = self._field(field)
        if place is None:
            return None
        return _Table(self.bytes, place + _unpacked("<I", self.bytes, place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Return a vector of structs of two int64."""
        place = self._field(field)
        if place is None:
            return []
        place += _unpacked("<I", self.bytes, place)
        count = _unpacked("<I", self.bytes, place)
        if place + 4 + 16 * count > len(self.bytes):
            raise _BrokenStream(f"found a vector of {count} that ends outside the metadata")
        return list(_PAIR.iter_unpack(self.bytes[place + 4 : place + 4 + 16 * count]))
