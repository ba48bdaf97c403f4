"""Record batches as Arrow IPC streams, without Beam."""

from __future__ import annotations

import pyarrow as pa


def batch_bytes(batch: pa.RecordBatch | None) -> pa.Buffer:
    """Write a batch with its schema, as an Arrow IPC stream; no bytes for None."""
    sink = pa.BufferOutputStream()
    if batch is not None:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    return sink.getvalue()


def batch_of(data: bytes | pa.Buffer) -> pa.RecordBatch | None:
    """Read what `batch_bytes` wrote, in place: the batch refers to ``data``."""
    if not len(data):
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
