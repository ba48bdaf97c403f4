"""How record batches travel between Beam stages: as Arrow IPC streams."""

from __future__ import annotations

import apache_beam as beam
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


class RecordBatchCoder(beam.coders.Coder):
    """Arrow IPC stream of one batch, with its schema."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Write a batch."""
        return bytes(batch_bytes(value))

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Read a batch."""
        return batch_of(encoded)

    def is_deterministic(self) -> bool:
        """Equal batches of equal layout have equal bytes, but slices need not."""
        return False


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
