"""How record batches travel between Beam stages: as Arrow IPC streams."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa


class RecordBatchCoder(beam.coders.Coder):
    """Arrow IPC stream of one batch, with its schema."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Write a batch."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Read a batch."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        """Equal batches of equal layout have equal bytes, but slices need not."""
        return False


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
