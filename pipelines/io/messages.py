"""Messages: what a broker gives of one partition of a topic, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tidemill.features.contract import Int64Array

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
"""The headers of a message, in order; a name may occur more than once."""


@dataclass(frozen=True, eq=False)
class Messages:
    """Successive messages of one partition of a topic; offsets may have gaps.

    Attributes:
        topic: The topic.
        partition: The partition.
        offsets: int64, ``(messages,)``: ascending.
        timestamps_us: int64, ``(messages,)``: the timestamp of each, in microseconds since 1970;
            the topic decides whether the producer or the broker sets it.
        keys: ``(messages,)``: None where a message has no key.
        values: ``(messages,)``: None where a message has no value (a tombstone).
        headers: ``(messages,)``.
    """

    topic: str
    partition: int
    offsets: Int64Array
    timestamps_us: Int64Array
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]

    def __len__(self) -> int:
        return len(self.offsets)
