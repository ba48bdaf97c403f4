"""Polls: what a source read at once, of all its partitions, with their places and watermarks.

A poll carries every partition of every source that its reader reads, empty ones too, so that
watermarks move together. `stream.shard` turns it into one element per (view, shard).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.framing import Kind, decode_document, encode_document

_REMEDY: Final = "run the stream from its last savepoint, or from its beginning"


@dataclass(frozen=True)
class PollPart:
    """What a poll read of one partition.

    Attributes:
        source: The stream's or the request's name.
        partition: The partition.
        start: The first position.
        stop: The position after the last.
        watermark_us: The partition's watermark after these rows.
        rows: Accepted rows: the declared columns, ``_position`` and ``_received``; None for none.
    """

    source: str
    partition: int
    start: int
    stop: int
    watermark_us: int
    rows: pa.RecordBatch | None


@dataclass(frozen=True)
class Poll:
    """What a source read at once.

    Attributes:
        sent_us: The wall clock when it was read (for latency only).
        parts: One per partition.
        is_last: The run stops here, though the stream goes on: nothing follows.
    """

    sent_us: int
    parts: tuple[PollPart, ...]
    is_last: bool = False

    def encode(self) -> bytes:
        """Write a poll."""
        parts = [
            [part.source, part.partition, part.start, part.stop, part.watermark_us]
            for part in self.parts
        ]
        fields = {"sent_us": self.sent_us, "is_last": self.is_last, "parts": parts}
        rows = [batch_bytes(part.rows) for part in self.parts]
        return encode_document(Kind.POLL, "", fields, rows)

    @staticmethod
    def decode(data: bytes) -> Poll:
        """Read a poll.

        Raises:
            StateError: These bytes are not a poll, or of a version that is not read.
        """
        found = decode_document(data, Kind.POLL, "a poll between two stages", _REMEDY)
        parts = tuple(
            PollPart(source, partition, start, stop, watermark_us, batch_of(rows))
            for (source, partition, start, stop, watermark_us), rows in zip(
                found.fields["parts"], found.blobs, strict=True
            )
        )
        return Poll(found.fields["sent_us"], parts, found.fields["is_last"])
