"""Polls: what a source read at once, of all its partitions, with their places and watermarks.

A poll carries every partition of every source that its reader reads, empty ones too, so that
watermarks move together. `shard_poll` turns it into one element per (view, shard).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.definitions.views import Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.plan import Plan
from tidemill.pipelines.io.coders import batch_bytes, batch_of
from tidemill.pipelines.io.framing import Kind, decode_document, encode_document
from tidemill.pipelines.io.log import POSITION, RECEIVED, SENT
from tidemill.pipelines.stream.answer_parts import RequestPart, group_of
from tidemill.pipelines.stream.sequence import (
    SequencedBatch,
    encode_batches,
    event_rows,
    request_rows,
    split_by_shard,
)

_REMEDY: Final = "run the stream from its last cut, or from its beginning"


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


def _declared(rows: pa.RecordBatch, schema: dict[str, str]) -> pa.RecordBatch:
    return rows.select(list(schema))


def shard_poll(
    project: Project, plans: dict[str, Plan], shards: int, poll: Poll
) -> Iterator[tuple[int, int, bytes]]:
    """Turn a poll into one element for each (view, shard).

    Args:
        project: The project.
        plans: The plan of each view, by name.
        shards: How many shards each view has.
        poll: The poll.

    Yields:
        The view's place in the project, the shard, and the bytes of its sequenced batches.
    """
    digests = {
        (part.source, part.partition): hashing.digest_rows(
            _declared(part.rows, dict(project.stream(part.source).schema))
        )
        for part in poll.parts
        if part.rows is not None and part.source != project.request.name
    }
    for index, view in enumerate(project.views):
        batches: list[list[SequencedBatch]] = [[] for _ in range(shards)]
        for part in poll.parts:
            is_request = part.source == project.request.name
            if not is_request and part.source != view.stream.name:
                continue
            split: list[pa.RecordBatch | None] = [None] * shards
            if part.rows is not None:
                positions = hashing.bits(part.rows.column(POSITION))
                if is_request:
                    groups = np.full(len(positions), group_of(part.partition, part.start))
                    rows = request_rows(project, view, part.rows, positions, groups)
                else:
                    rows = event_rows(
                        plans[view.name],
                        view,
                        part.rows,
                        positions,
                        digests[part.source, part.partition],
                    )
                split = split_by_shard(rows, shards)
            for shard in range(shards):
                batches[shard].append(
                    SequencedBatch(
                        is_request,
                        part.partition,
                        part.start,
                        part.stop,
                        part.watermark_us,
                        poll.sent_us,
                        split[shard],
                        poll.is_last,
                    )
                )
        for shard in range(shards):
            yield index, shard, encode_batches(batches[shard])


def request_parts(project: Project, poll: Poll) -> Iterator[RequestPart]:
    """Give the requests of a poll, for the stage where answers meet."""
    for part in poll.parts:
        if part.source == project.request.name and part.rows is not None:
            rows = part.rows.select([*project.request.schema, POSITION, RECEIVED])
            sent = pa.repeat(pa.scalar(poll.sent_us, pa.int64()), rows.num_rows)
            yield RequestPart(group_of(part.partition, part.start), rows.append_column(SENT, sent))


def rows_of(poll: Poll, source: str) -> int:
    """Count the rows that a poll read of a source."""
    return sum(
        part.rows.num_rows for part in poll.parts if part.source == source and part.rows is not None
    )
