"""Record batches as Arrow IPC streams. This module does not import Beam."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

IPC_OPTIONS: Final = pa.ipc.IpcWriteOptions()
"""Given to each writer: without them each one asks the environment for the version."""


def batch_bytes(batch: pa.RecordBatch | None) -> pa.Buffer:
    """Encode a batch with its schema; None becomes no bytes."""
    sink = pa.BufferOutputStream()
    if batch is not None:
        with pa.ipc.new_stream(sink, batch.schema, options=IPC_OPTIONS) as writer:
            writer.write_batch(batch)
    return sink.getvalue()


def batch_of(data: bytes | pa.Buffer) -> pa.RecordBatch | None:
    """Decode the output of `batch_bytes`; the batch refers to ``data``, without a copy."""
    if not len(data):
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
