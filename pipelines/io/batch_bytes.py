"""Record batches as Arrow IPC streams. This module does not import Beam."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

IPC_OPTIONS: Final = pa.ipc.IpcWriteOptions()
"""Given to each writer: without them each one asks the environment for the version."""


_PREFIX: Final = struct.Struct("<Ii")
"""How a message begins: `_MARK`, and how many bytes of metadata follow."""
_MARK: Final = 0xFFFFFFFF
_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
"""How a stream ends."""
_MANY_ROWS: Final = 1_000
"""With so many rows it is worth knowing beforehand how many bytes they take."""
_REMEMBERED: Final = 256
"""So many schemas are remembered."""


def batch_bytes(batch: pa.RecordBatch | None) -> pa.Buffer:
    """Encode a batch with its schema; None becomes no bytes."""
    return pa.py_buffer(b"") if batch is None else batches_bytes([batch])


def batches_bytes(batches: Sequence[pa.RecordBatch]) -> pa.Buffer:
    """Encode batches of one schema as one stream; there is at least one."""
    schema, rows = batches[0].schema, sum(batch.num_rows for batch in batches)
    if rows < _MANY_ROWS or not all(_is_plain(field.type) for field in schema):
        sink = pa.BufferOutputStream()
        _write(batches, sink)
        return sink.getvalue()
    # A stream that grows while it is written is copied again and again.
    size = len(schema.serialize()) + sum(map(pa.ipc.get_record_batch_size, batches))
    buffer = pa.allocate_buffer(size + len(_END))
    _write(batches, pa.FixedSizeBufferWriter(buffer))
    return buffer


def _write(batches: Sequence[pa.RecordBatch], sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, batches[0].schema, options=IPC_OPTIONS) as writer:
        for batch in batches:
            writer.write_batch(batch)


def batch_of(data: bytes | pa.Buffer) -> pa.RecordBatch | None:
    """Decode the output of `batch_bytes`; the batch refers to ``data``, without a copy.

    Opening a stream takes ten times as long as reading a few rows. So the schemas of streams are
    remembered by their bytes, and rows whose schema was seen before are read alone.

    Raises:
        pa.ArrowInvalid: The bytes are not such a stream.
    """
    if not len(data):
        return None
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    if len(buffer) >= _PREFIX.size:
        mark, size = _PREFIX.unpack_from(buffer)
        start = _PREFIX.size + size
        if mark == _MARK and 0 < size < len(buffer) - _PREFIX.size:
            schema = _schema_of(memoryview(buffer)[:start].tobytes())
            if schema is not None:
                return pa.ipc.read_record_batch(buffer.slice(start), schema)
    with pa.ipc.open_stream(buffer) as reader:
        return reader.read_next_batch()


@functools.lru_cache(maxsize=_REMEMBERED)
def _schema_of(message: bytes) -> pa.Schema | None:
    """Return the schema of a message; None if its rows are not read alone.

    Columns with a dictionary have it in a message of its own.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(message))
    if all(_is_plain(field.type) for field in schema):
        return schema
    return None


def _is_plain(kind: pa.DataType) -> bool:
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_dictionary(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )
