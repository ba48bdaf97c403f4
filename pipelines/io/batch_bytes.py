"""Record batches as Arrow IPC streams. This module does not import Beam."""

from __future__ import annotations

import pyarrow as pa


def batch_bytes(batch: pa.RecordBatch | None) -> pa.Buffer:
    """Encode a batch with its schema; None becomes no bytes."""
    sink = pa.BufferOutputStream()
    if batch is not None:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return sink.getvalue()


def batch_of(data: bytes | pa.Buffer) -> pa.RecordBatch | None:
    """Decode the output of `batch_bytes`; the batch refers to ``data``, without a copy."""
    if not len(data):
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
