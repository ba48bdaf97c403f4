"""The parts of an answer, how they are divided among joiners, and requests that are given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.kernel import hashing
from tidemill.pipelines.stream.joiner_key import JoinerKey, joiners_of
from tidemill.pipelines.stream.sequence import GROUP

_POSITION_BITS: Final = 44


def group_of(partition: int, start: int) -> int:
    """Return the group of a poll's requests: partition and start position in one number."""
    return partition << _POSITION_BITS | start


def groups_of(partitions: Int64Array, positions: Int64Array) -> Int64Array:
    """Return `group_of` of many rows, int64 ``(rows,)``."""
    groups: Int64Array = partitions << _POSITION_BITS | positions
    return groups


def partition_of(group: int) -> int:
    """Return the partition of a group."""
    return group >> _POSITION_BITS


@dataclass(frozen=True)
class RequestPart:
    """The requests of one poll of one partition.

    Attributes:
        group: See `group_of`.
        rows: The declared columns, ``_position``, ``_received`` and ``_sent``, in log order.
        epoch: How many marks of savepoints the run has sent before the poll.
    """

    group: int
    rows: pa.RecordBatch
    epoch: int = 0


@dataclass(frozen=True)
class AnswerPart:
    """The answers of one release of one (view, shard).

    Attributes:
        view: The view's name.
        shard: The shard.
        number: The release's number, which is that of its poll; 0 in a batch run, which has no
            releases.
        frontier_us: The release's frontier.
        answers: Kernel answers with a ``group`` column; None if there are none.
        epoch: How many marks of savepoints the run has sent before the release's poll.
    """

    view: str
    shard: int
    number: int
    frontier_us: int
    answers: pa.RecordBatch | None
    epoch: int = 0


@dataclass(frozen=True)
class SavepointPart:
    """Says that one (view, shard) has taken all rows before a savepoint.

    Attributes:
        view: The view's name.
        shard: The shard.
        number: The number of its last release before the savepoint.
        groups: The groups of the requests that it has taken and will answer after the savepoint.
        epoch: How many marks of savepoints the run has sent before that of this one.
    """

    view: str
    shard: int
    number: int
    groups: tuple[int, ...]
    epoch: int = 0


Part = RequestPart | AnswerPart | SavepointPart


def joiner_of(group: int, joiners: int) -> JoinerKey:
    """Return the joiner of a group."""
    return JoinerKey.of_partition(partition_of(group), joiners)


def divided(part: AnswerPart | SavepointPart, joiners: int) -> list[AnswerPart | SavepointPart]:
    """Divide the part of an operator among all joiners.

    Each of them gets a part, for each counts the operator's releases and waits for its savepoints.

    Args:
        part: The part.
        joiners: How many joiners there are.

    Returns:
        A part for each joiner, by number. Those that have the same content are the same object.
    """
    if joiners == 1:
        return [part]
    if isinstance(part, SavepointPart):
        groups: list[list[int]] = [[] for _ in range(joiners)]
        for group in part.groups:
            groups[joiner_of(group, joiners).number].append(group)
        none = replace(part, groups=())
        return [replace(part, groups=tuple(mine)) if mine else none for mine in groups]
    none_answered = replace(part, answers=None)
    found: list[AnswerPart | SavepointPart] = [none_answered] * joiners
    answers = part.answers
    if answers is None or not answers.num_rows:
        return found
    numbers = joiners_of(hashing.bits(answers.column(GROUP)) >> _POSITION_BITS, joiners)
    for number in set(numbers.tolist()):
        mine = numbers == number
        rows = answers if mine.all() else answers.filter(pa.array(mine))
        found[number] = replace(part, answers=rows)
    return found


@dataclass(frozen=True)
class Unanswered:
    """Requests that are given up.

    Attributes:
        rows: The requests, as in `RequestPart`.
        partition: The requests' partition.
        views: The names of the views that did not answer.
        epoch: How many savepoints the joining stage had passed since the run began.
    """

    rows: pa.RecordBatch
    partition: int
    views: tuple[str, ...]
    epoch: int = 0
