"""Polls: what a source read at once, of all its partitions, with their places and watermarks.

A poll carries every partition of every source that its reader reads, empty ones too, so that
watermarks move together. `stream.shard` turns it into one element per (view, shard).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pyarrow as pa

from tidemill.pipelines.io.coders import RecordBatchCoder


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
        coder = RecordBatchCoder()
        parts = [
            (
                part.source,
                part.partition,
                part.start,
                part.stop,
                part.watermark_us,
                None if part.rows is None else coder.encode(part.rows),
            )
            for part in self.parts
        ]
        return pickle.dumps((self.sent_us, self.is_last, parts), protocol=5)

    @staticmethod
    def decode(data: bytes) -> Poll:
        """Read a poll."""
        sent, is_last, parts = pickle.loads(data)
        coder = RecordBatchCoder()
        return Poll(
            sent,
            tuple(
                PollPart(
                    source,
                    partition,
                    start,
                    stop,
                    watermark,
                    None if rows is None else coder.decode(rows),
                )
                for source, partition, start, stop, watermark, rows in parts
            ),
            is_last,
        )
