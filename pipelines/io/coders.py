"""Beam's coder for record batches; importing this module registers it."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of


class RecordBatchCoder(beam.coders.Coder):
    """Encodes a batch, with its schema, as an Arrow IPC stream."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Encode a batch."""
        return bytes(batch_bytes(value))

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Decode a batch."""
        return batch_of(encoded)

    def is_deterministic(self) -> bool:
        """Return False: the bytes of equal batches differ if one of them is a slice."""
        return False


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
