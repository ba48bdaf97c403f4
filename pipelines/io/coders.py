"""How record batches travel between Beam stages: as Arrow IPC streams."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of


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
