"""Polls: the rows that the source reads at once, with their positions and watermarks.

A poll has a part for every partition of every source, also where no rows came, so that all
watermarks advance together. Polls are numbered from 1, without a gap, over all segments of a
stream: where a poll ends is a function of the log (`pipelines.io.replay`), or was recorded before
the poll was sent (`pipelines.io.cuts`). So a repeated poll has the same number and the same rows.
`stream.shard` turns a poll into one element for each (view, shard).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.epochs import epoch_field
from tidemill.pipelines.io.framing import Bytes, Kind, decode_document, encode_document

_REMEDY: Final = "run the stream from its last savepoint, or from its beginning"


@dataclass(frozen=True)
class PollPart:
    """The rows that a poll read from one partition.

    Attributes:
        source: The stream's or the request's name.
        partition: The partition.
        start: The first position.
        stop: The position after the last.
        watermark_us: The partition's watermark after these rows.
        rows: Accepted rows: the declared columns, ``_position`` and ``_received``; None if empty.
    """

    source: str
    partition: int
    start: int
    stop: int
    watermark_us: int
    rows: pa.RecordBatch | None


def empty_parts(
    sources: Sequence[tuple[EventStream | Request, int]],
    positions: Sequence[int],
    watermark_us: int,
) -> tuple[PollPart, ...]:
    """Return a part without rows for each partition.

    Args:
        sources: The partitions, with their sources, in the order of the positions.
        positions: The next position of each.
        watermark_us: The watermark of each.
    """
    return tuple(
        PollPart(definition.name, partition, position, position, watermark_us, None)
        for (definition, partition), position in zip(sources, positions, strict=True)
    )


@dataclass(frozen=True)
class Poll:
    """The rows that the source reads at once.

    Attributes:
        number: The poll's number. The mark of a savepoint has the number of the poll before it.
        sent_us: The wall clock when it was read, for latency only.
        parts: One for each partition.
        is_last: Marks a savepoint, and has no rows: the run stops after it, and a later run
            continues.
        epoch: How many marks came before it: of a logged poll since the poll log began, of one that
            is sent since the run began.
        is_marked: Whether the mark of a savepoint comes right after it. The run goes on, and the
            states and outputs of the polls before the mark are kept apart from those after it.
    """

    number: int
    sent_us: int
    parts: tuple[PollPart, ...]
    is_last: bool = False
    epoch: int = 0
    is_marked: bool = False

    def encode(self) -> bytes:
        """Encode the poll."""
        parts = [
            [part.source, part.partition, part.start, part.stop, part.watermark_us]
            for part in self.parts
        ]
        fields = {
            "number": self.number,
            "sent_us": self.sent_us,
            "is_last": self.is_last,
            "parts": parts,
            **epoch_field(self.epoch),
        }
        if self.is_marked:
            fields["is_marked"] = True
        rows = [batch_bytes(part.rows) for part in self.parts]
        return encode_document(Kind.POLL, "", fields, rows)

    @staticmethod
    def decode(data: Bytes, *, is_checked: bool = False) -> Poll:
        """Decode a poll; its rows refer to ``data``, without a copy.

        Args:
            data: What `encode` gave.
            is_checked: Whether a checksum around it was compared, so its own need not be.

        Raises:
            StateError: The bytes are not a poll, or have a version that is not supported.
        """
        where = "a poll between two stages"
        found = decode_document(data, Kind.POLL, where, _REMEDY, is_checked=is_checked)
        parts = tuple(
            PollPart(source, partition, start, stop, watermark_us, batch_of(rows))
            for (source, partition, start, stop, watermark_us), rows in zip(
                found.fields["parts"], found.blobs, strict=True
            )
        )
        fields = found.fields
        return Poll(
            fields["number"],
            fields["sent_us"],
            parts,
            fields["is_last"],
            fields.get("epoch", 0),
            fields.get("is_marked", False),
        )

    @property
    def next_epoch(self) -> int:
        """The epoch of the poll after it."""
        return self.epoch + self.is_marked
