"""The parts that an answer is put together from, and what becomes of requests without an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

_POSITION_BITS: Final = 44


def group_of(partition: int, start: int) -> int:
    """Name the poll of a request partition by where it starts."""
    return partition << _POSITION_BITS | start


def partition_of(group: int) -> int:
    """Return the partition of a group."""
    return group >> _POSITION_BITS


@dataclass(frozen=True)
class RequestPart:
    """The requests of one poll of one partition.

    Attributes:
        group: Its name.
        rows: The declared columns, ``_position``, ``_received`` and ``_sent``, in log order.
    """

    group: int
    rows: pa.RecordBatch


@dataclass(frozen=True)
class AnswerPart:
    """What one release of one (view, shard) answered.

    Attributes:
        view: The view's place in the project.
        shard: The shard.
        number: The release's number; 0 where answers do not come by releases.
        frontier_us: Its frontier.
        answers: Kernel answers with a ``group`` column; None for none.
    """

    view: int
    shard: int
    number: int
    frontier_us: int
    answers: pa.RecordBatch | None


@dataclass(frozen=True)
class SavepointPart:
    """Says that one (view, shard) has taken everything before a savepoint.

    Attributes:
        view: The view's place in the project.
        shard: The shard.
        number: The number of its last release before the savepoint.
        groups: The groups of the requests that it has taken and will only answer after the
            savepoint.
    """

    view: int
    shard: int
    number: int
    groups: tuple[int, ...]


Part = RequestPart | AnswerPart | SavepointPart


@dataclass(frozen=True)
class Unanswered:
    """A request that will not be answered.

    Attributes:
        rows: The requests, as in `RequestPart`.
        partition: Their partition.
        views: For each of them, the views that did not answer.
    """

    rows: pa.RecordBatch
    partition: int
    views: tuple[str, ...]
