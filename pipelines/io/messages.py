"""Messages: what a broker gives of one partition of a topic, column by column."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

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


def joined(parts: Iterable[Messages]) -> list[Messages]:
    """Return the same messages, those of a partition together, in their order."""
    by_partition: dict[tuple[str, int], list[Messages]] = {}
    for part in parts:
        by_partition.setdefault((part.topic, part.partition), []).append(part)
    return [_joined(of_one) if len(of_one) > 1 else of_one[0] for of_one in by_partition.values()]


def _joined(parts: Sequence[Messages]) -> Messages:
    return Messages(
        parts[0].topic,
        parts[0].partition,
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.timestamps_us for part in parts]),
        list(itertools.chain.from_iterable(part.keys for part in parts)),
        list(itertools.chain.from_iterable(part.values for part in parts)),
        list(itertools.chain.from_iterable(part.headers for part in parts)),
    )
