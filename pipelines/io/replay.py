"""Replay: the log as an unbounded source, in order of arrival, in polls that the log determines.

The promises: rows come in the order in which they were received, across all partitions; rows
received at the same microsecond in the order of the sources, then of the partitions (in eager mode,
requests first). In this order
a poll ends wherever the number of rows from the beginning of the log is a multiple of
``poll_rows``, at each recorded cut (`pipelines.io.cuts`), and where the replay ends. The clock
decides only when a poll is sent. So reading again gives the same polls with the same numbers, at
any speed, from any poll on.

A poll may separate rows received at the same microsecond: nothing but the watermark depends on it.
The watermark of a partition is the later of its highest time so far and the replay clock, minus the
stream's out-of-orderness. The replay clock of a partition is the instant before which all its rows
are read: that of the last row read of any partition if the partition has more rows of that instant,
else the microsecond after it. A run may stop at a savepoint, an instant of arrival; the next run
continues from there.

`ReplayLog` decides what to read. `Replay` wires it into a splittable DoFn whose restriction is a
poll's number and a vector of positions. It refuses to be split, because splits would break the
order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.cuts import Cut, Positions
from tidemill.pipelines.io.log import RECEIVED, Log, declared_columns, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart, empty_parts
from tidemill.pipelines.io.poll_source import AHEAD_POLLS, SendPolls, called
from tidemill.pipelines.io.steps import step


@dataclass(frozen=True)
class ReplayOptions:
    """What is replayed, and how fast.

    Attributes:
        root: The run's folder.
        start_us: Rows received before this instant are not replayed: the handed-over state
            contains them.
        stop_us: Rows received at or after this instant are not replayed.
        poll_rows: A poll ends where the number of rows of all partitions is a multiple of this.
        speed: How many times faster than real time; None for as fast as possible.
        ends: Whether the stream ends at ``stop_us``: then all waiting rows are released. Else
            ``stop_us`` is a savepoint, and waiting rows stay in state for the next run.
        polls: The number of the last poll before the start; 0 at the beginning of a stream.
        requests_first: Whether of rows received at the same microsecond the requests come first, as
            eager mode takes them; else the events.
        cuts: Further places where a poll ends: those that an earlier run has recorded. Cuts outside
            the replay are ignored.
        attempt: The job's attempt, if the source is to stay when it has sent all; else it stops.
        order: The sources in the order in which rows received at the same microsecond are read;
            empty for that of the project, which another version of it may have changed.
    """

    root: Path
    start_us: int
    stop_us: int
    poll_rows: int = 4_096
    speed: float | None = None
    ends: bool = True
    polls: int = 0
    requests_first: bool = False
    cuts: tuple[Cut, ...] = ()
    attempt: Attempt | None = None
    order: tuple[str, ...] = ()


class ReplayLog:
    """The partitions of all sources of a project, and the next rows to read from them."""

    def __init__(self, project: Project, options: ReplayOptions) -> None:
        self._options, self._request = options, project.request
        self.sources: list[tuple[EventStream | Request, int]] = []
        self._tables: list[pa.Table] = []
        self._received: list[Int64Array] = []
        self._highest: list[Int64Array] = []
        log = Log(options.root, declared=declared_columns(project))
        start: list[int] = []
        stop: list[int] = []
        definitions: list[EventStream | Request] = [*project.streams, project.request]
        if options.order:
            definitions.sort(key=lambda definition: options.order.index(definition.name))
        for definition in definitions:
            for partition in range(log.partitions(definition.name)):
                table = log.read(definition.name, partition)
                received = table.column(RECEIVED).to_numpy()
                times = hashing.bits(one_batch(table.select([definition.time_column])).column(0))
                self.sources.append((definition, partition))
                self._tables.append(table)
                self._received.append(received)
                self._highest.append(np.maximum.accumulate(times) if len(times) else times)
                start.append(int(np.searchsorted(received, options.start_us, "left")))
                stop.append(int(np.searchsorted(received, options.stop_us, "left")))
        self.start = Cut(options.polls, tuple(start))
        self.stop: Positions = tuple(stop)
        self._merged = np.sort(
            np.concatenate([r[a:b] for r, a, b in zip(self._received, start, stop, strict=True)]),
            kind="stable",
        )
        self._ends = self._all_ends()

    def _all_ends(self) -> Int64Array:
        """Return where polls end: numbers of rows from the beginning of the log, ascending."""
        first, last = sum(self.start.positions), sum(self.stop)
        rows = self._options.poll_rows
        regular = np.arange((first // rows + 1) * rows, last, rows)
        recorded = []
        for cut in self._options.cuts:
            end = sum(cut.positions)
            if not first < end < last:
                continue
            if self._positions(end) != tuple(cut.positions):
                raise StateMismatch(
                    f"poll {cut.number} was sent up to positions {cut.positions}, and the log has "
                    f"{self._positions(end)} there: it was written again; run `tidemill stream` "
                    "without --resume"
                )
            recorded.append(end)
        ends = np.array([*recorded, *([last] if last > first else [])], np.int64)
        return np.unique(np.concatenate([regular, ends]))

    @property
    def last_poll_number(self) -> int:
        """The number of the last poll that reads rows."""
        return self.start.number + len(self._ends)

    @property
    def rows(self) -> int:
        """The number of rows to replay."""
        return len(self._merged)

    def rows_of(self, source: str) -> int:
        """Count the rows to replay from a source, without those that were forgotten."""
        ends = zip(self.sources, self._tables, self.start.positions, self.stop, strict=True)
        return sum(
            stop - start - table.column(one.id_column).slice(start, stop - start).null_count
            for (one, _), table, start, stop in ends
            if one.name == source
        )

    def clock_us(self, at: Cut) -> int:
        """Return the instant of arrival that the replay has come to after some poll."""
        taken = sum(at.positions) - sum(self.start.positions)
        return int(self._merged[taken - 1]) if taken else self._options.start_us

    def due_us(self, elapsed_seconds: float, since_us: int | None = None) -> int:
        """Return the instant of arrival up to which rows are due after some seconds.

        Args:
            elapsed_seconds: The seconds.
            since_us: The instant at which they began (`clock_us`); None is the start.
        """
        if self._options.speed is None:
            return self._options.stop_us
        elapsed = int(elapsed_seconds * self._options.speed * 1_000_000)
        since_us = self._options.start_us if since_us is None else since_us
        return min(since_us + elapsed, self._options.stop_us)

    def next_poll(self, at: Cut, due_us: int, sent_us: int) -> tuple[Poll, Cut] | None:
        """Read the next poll.

        Args:
            at: The poll before it, and the positions after that.
            due_us: Rows received at or after this instant are not due yet.
            sent_us: The wall clock, for the poll's stamp.

        Returns:
            The poll, and its number and the positions after it; None if its last row is not due.
        """
        read = sum(at.positions)
        later = int(np.searchsorted(self._ends, read, "right"))
        if later == len(self._ends):
            return None
        end = int(self._ends[later])
        clock = int(self._merged[end - sum(self.start.positions) - 1])
        if clock >= due_us:
            return None
        after = Cut(at.number + 1, self._positions(end))
        return self._poll(at, after, clock, sent_us), after

    def _positions(self, end: int) -> Positions:
        """Return the positions after the first ``end`` rows of the log."""
        taken = end - sum(self.start.positions)
        if not taken:
            return self.start.positions
        clock = self._merged[taken - 1]
        positions, equal = [], []
        places = zip(self._received, self.start.positions, self.stop, strict=True)
        for received, start, stop in places:
            low, high = (np.searchsorted(received[start:stop], clock, s) for s in ("left", "right"))
            positions.append(start + int(low))
            equal.append(int(high - low))
        rest = end - sum(positions)
        turns = list(range(len(equal)))
        if self._options.requests_first:
            turns.sort(key=lambda index: self.sources[index][0] is not self._request)
        for index in turns:
            rows = equal[index]
            positions[index] += min(rows, rest)
            rest -= min(rows, rest)
        return tuple(positions)

    def last_poll(self, at: Cut, sent_us: int) -> Poll:
        """Return the poll after the last row: the stream's end, or the mark of a savepoint."""
        ends = self._options.ends
        return self.final_poll(at, sent_us) if ends else self.savepoint_poll(at, sent_us)

    def savepoint_poll(self, at: Cut, sent_us: int) -> Poll:
        """Return the mark of a savepoint. It moves no watermark, and has the number of ``at``.

        If it moved the frontier, rows would be released that wait in an uninterrupted run.
        """
        parts = empty_parts(self.sources, at.positions, TIME_MIN)
        return Poll(at.number, sent_us, parts, is_last=True)

    def final_poll(self, at: Cut, sent_us: int) -> Poll:
        """Return the stream's end: it moves every watermark past every row."""
        newest = (
            int(highest[position - 1]) + 1
            for highest, position in zip(self._highest, at.positions, strict=True)
            if position
        )
        # The time of a row may be after its receipt, and so after the declared end.
        end = max(self._options.stop_us, *newest, TIME_MIN)
        return Poll(at.number + 1, sent_us, empty_parts(self.sources, at.positions, end))

    def _poll(self, at: Cut, after: Cut, clock_us: int, sent_us: int) -> Poll:
        parts = []
        for index, (definition, partition) in enumerate(self.sources):
            start, stop = at.positions[index], after.positions[index]
            received, end = self._received[index], self.stop[index]
            has_more = stop < end and int(received[stop]) == clock_us
            read_before = clock_us if has_more else clock_us + 1
            highest = int(self._highest[index][stop - 1]) if stop else TIME_MIN
            rows = None
            if stop > start:
                rows = one_batch(self._tables[index].slice(start, stop - start))
            watermark = max(highest, read_before) - definition.out_of_orderness_us
            parts.append(PollPart(definition.name, partition, start, stop, watermark, rows))
        return Poll(after.number, sent_us, tuple(parts))


class ReplayPolls:
    """The polls of a replay, no further ahead of the operators than needed.

    Args:
        log: What is replayed.
        taken: Returns the number of the last poll that an operator has taken; None sends whatever
            is due.
    """

    def __init__(self, log: ReplayLog, taken: Callable[[], int] | None = None) -> None:
        self._log, self._taken = log, taken
        self._began: tuple[float, int] | None = None

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another, if it may be sent now; no records are rejected."""
        taken = self._taken
        if taken is not None and at.number >= max(taken(), self._log.start.number) + AHEAD_POLLS:
            return None
        now_s = time.monotonic()
        began_s, since_us = self._began = self._began or (now_s, self._log.clock_us(at))
        due_us = self._log.due_us(now_s - began_s, since_us)
        found = self._log.next_poll(at, due_us, time.time_ns() // 1_000)
        return None if found is None else (found[0], [])

    def last(self, at: Cut) -> Poll | None:
        """Return the poll after the last row, if that was sent."""
        if at.positions != self._log.stop:
            return None
        return self._log.last_poll(at, time.time_ns() // 1_000)


class _Read(SendPolls):
    """Sends the polls of a replay, for a tenth of a second in each call."""

    moment_s = 0.1

    def __init__(self, project: Project, options: ReplayOptions) -> None:
        self._project, self._options = project, options

    def setup(self) -> None:
        attempt = self._options.attempt
        self.polls = ReplayPolls(ReplayLog(self._project, self._options))
        self.watch = None if attempt is None else attempt.watch()


@dataclass(eq=False)
class Replay(beam.PTransform):
    """The log as an unbounded collection of polls.

    Attributes:
        project: The project.
        options: What is replayed.
        by_impulses: Whether the source is called by impulses (`poll_source.SendByImpulses`).
    """

    project: Project
    options: ReplayOptions
    by_impulses: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: Any) -> beam.PCollection:
        """Wire the source."""
        start = ReplayLog(self.project, self.options).start
        read = _Read(self.project, self.options)
        caller, sends = called(begin, start, read, by_impulses=self.by_impulses)
        return caller | step("Read", sends).with_output_types(Poll)
