"""Beam's coders for record batches and polls; importing this module registers them.

Steps that Beam runs together pass the objects themselves, so a coder does its work only between
stages. Beam asks for the size of many elements: it must not cost as much as encoding them.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.poll import Poll


class RecordBatchCoder(beam.coders.Coder):
    """Encodes a batch, with its schema, as an Arrow IPC stream."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Encode a batch."""
        return bytes(batch_bytes(value))

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Decode a batch."""
        return batch_of(encoded)

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Return about how many bytes a batch takes."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """Return False: the bytes of equal batches differ if one of them is a slice."""
        return False


class PollCoder(beam.coders.Coder):
    """Encodes a poll as a frame (`pipelines.io.poll.Poll.encode`)."""

    def encode(self, value: Poll) -> bytes:
        """Encode a poll."""
        return value.encode()

    def decode(self, encoded: bytes) -> Poll:
        """Decode a poll."""
        return Poll.decode(encoded)

    def estimate_size(self, value: Poll) -> int:
        """Return about how many bytes a poll takes."""
        return sum(part.rows.nbytes for part in value.parts if part.rows is not None)

    def is_deterministic(self) -> bool:
        """Return False: a part may be a slice."""
        return False


beam.coders.registry.register_coder(Poll, PollCoder)
beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
