"""The cuts of sealed polls: their numbers, receipts, positions and watermarks, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.io.live.lost import marks_of
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.poll import Poll

REMEDY: Final = "restore the file from a copy, or run `tidemill backfill` for a new generation"
"""What to do if a live log is damaged."""
_UNKNOWN: Final = -1
"""The position in a partition after a poll from before the topic had it."""


@dataclass(frozen=True)
class LiveTopic:
    """The topic of a live source.

    Attributes:
        topic: The name of the topic.
        first: The partition of the source's log that is partition 0 of the topic; those before are
            of files.
        offsets: Where reading begins: the first offset of each partition of the topic.
        id: The id of the topic with these offsets; empty in a record of a version without ids.
    """

    topic: str
    first: int
    offsets: tuple[int, ...]
    id: str = ""


class SentPoll(NamedTuple):
    """A logged poll, and what it was sent as."""

    logged: LoggedPoll
    sent: Poll


@dataclass(frozen=True, eq=False)
class Cuts:
    """Sealed polls, in order.

    Attributes:
        number: int64, ``(polls,)``.
        received_us: int64, ``(polls,)``: when each was received, ascending.
        positions: Source to int64, ``(polls, partitions of its topic)``: the positions after each.
        watermarks: The same of the watermarks after each, in microseconds.
        partitions: Source to the number of partitions that its topic had in the last file.
    """

    number: Int64Array
    received_us: Int64Array
    positions: Mapping[str, Int64Array]
    watermarks: Mapping[str, Int64Array]
    partitions: Mapping[str, int]

    def first(self, polls: int) -> Cuts:
        """Return the first of these polls."""
        return self.span(0, polls)

    def span(self, start: int, stop: int) -> Cuts:
        """Return the polls from one place to another."""
        return Cuts(
            self.number[start:stop],
            self.received_us[start:stop],
            {name: ends[start:stop] for name, ends in self.positions.items()},
            {name: marks[start:stop] for name, marks in self.watermarks.items()},
            self.partitions,
        )


def cuts_table(polls: Sequence[SentPoll], topics: Mapping[str, LiveTopic]) -> pa.Table:
    """Return the cuts of polls, with the broker's offsets, as they are kept in a file.

    Args:
        polls: The polls, in order.
        topics: The topic of each live source.
    """
    columns: dict[str, list[int]] = {"number": [], "received_us": []}
    for row, (logged, sent) in enumerate(polls):
        columns["number"].append(logged.number)
        columns["received_us"].append(sent.sent_us)
        for part in sent.parts:
            if part.source in topics and part.partition >= topics[part.source].first:
                place = f"{part.source}/{part.partition - topics[part.source].first}"
                columns.setdefault(f"position/{place}", []).append(part.stop)
                columns.setdefault(f"watermark/{place}", []).append(part.watermark_us)
        for name, offsets in logged.offsets.items():
            for partition, offset in enumerate(offsets):
                # The topic may have got the partition meanwhile.
                column = columns.setdefault(f"offset/{name}/{partition}", [_UNKNOWN] * row)
                column.append(offset)
    columns |= _marks(polls)
    return pa.table({name: pa.array(found, pa.int64()) for name, found in columns.items()})


def _marks(polls: Sequence[SentPoll]) -> dict[str, list[int]]:
    """Return columns with a mark for each poll that passes over what a partition has lost."""
    columns: dict[str, list[int]] = {}
    for row, (logged, _) in enumerate(polls):
        if logged.lost is not None:
            for (name, partition), mark in marks_of(logged.lost).items():
                column = columns.setdefault(f"lost/{name}/{partition}", [0] * len(polls))
                column[row] = mark
    return columns


class OffsetCuts(NamedTuple):
    """The positions in topics of sealed polls, in order.

    Attributes:
        number: int64, ``(polls,)``.
        received_us: int64, ``(polls,)``.
        offsets: By source and partition of its topic: int64, ``(polls,)``: the position after each
            poll; -1 before the topic had the partition.
        marks: The same of what the cut says of records of lost messages
            (`pipelines.io.live.lost.mark_of`); 0 for none.
    """

    number: Int64Array
    received_us: Int64Array
    offsets: Mapping[tuple[str, int], Int64Array]
    marks: Mapping[tuple[str, int], Int64Array]


def offset_cuts(table: pa.Table, after: int, until: int) -> OffsetCuts:
    """Return the positions in topics of the polls ``(after, until]`` that a file holds."""
    numbers = table.column("number")
    table = table.filter(pc.and_(pc.greater(numbers, after), pc.less_equal(numbers, until)))
    places = {}
    for name in table.column_names:
        kind, _, place = name.partition("/")
        if kind == "offset":
            source, _, partition = place.rpartition("/")
            places[source, int(partition)] = place
    return OffsetCuts(
        table.column("number").to_numpy(),
        table.column("received_us").to_numpy(),
        {at: _known(table, f"offset/{place}", _UNKNOWN) for at, place in places.items()},
        {at: _known(table, f"lost/{place}", 0) for at, place in places.items()},
    )


def cuts_of(
    tables: Iterable[pa.Table], topics: Mapping[str, LiveTopic], until: int, where: Path
) -> Cuts:
    """Return the cuts of all sealed polls.

    Args:
        tables: The files, in order.
        topics: The topic of each live source.
        until: The number of the last sealed poll.
        where: The folder of the files, for errors.

    Raises:
        StateMismatch: Polls are missing.
    """
    found = some_cuts(tables, topics)
    # A seal that was killed, or that runs now, may have gone on with a file.
    found = found.first(int(np.searchsorted(found.number, until, "right")))
    if not np.array_equal(found.number, np.arange(1, until + 1)):
        raise StateMismatch(f"{where} has not the polls 1 to {until} once each; {REMEDY}")
    return found


def some_cuts(tables: Iterable[pa.Table], topics: Mapping[str, LiveTopic]) -> Cuts:
    """Return the cuts that some files hold; a topic may have had fewer partitions then."""
    found = list(tables)
    empty = {"number": pa.array([], pa.int64()), "received_us": pa.array([], pa.int64())}
    table = pa.concat_tables(found, promote_options="default") if found else pa.table(empty)

    def of(kind: str, before: int) -> dict[str, Int64Array]:
        return {
            name: np.stack(
                [
                    _known(table, f"{kind}/{name}/{partition}", before)
                    for partition in range(len(topic.offsets))
                ],
                axis=1,
            )
            for name, topic in topics.items()
        }

    numbers, received = (table.column(name).to_numpy() for name in ("number", "received_us"))
    last = set(found[-1].column_names) if found else set()
    partitions = {
        name: sum(f"position/{name}/{n}" in last for n in range(len(topic.offsets)))
        for name, topic in topics.items()
    }
    return Cuts(numbers, received, of("position", 0), of("watermark", TIME_MIN), partitions)


def _known(table: pa.Table, name: str, before: int) -> Int64Array:
    """Return a column; ``before`` for polls from before the topic had the partition."""
    if name not in table.column_names:
        return np.full(len(table), before)
    found: Int64Array = pc.fill_null(table.column(name), before).to_numpy()
    return found
