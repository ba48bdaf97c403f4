"""The sealed polls of a live stream, read again: what `pipelines.io.replay.ReplayLog` is for files.

The promise: a poll has the number, the rows, the watermarks and the rejected records that it had
when it was sent. Polls are numbered by the stream: its first one is the one after the build's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.errors import DamagedFile
from tidemill.pipelines.io.cuts import Cut, Positions
from tidemill.pipelines.io.live.live_cuts import REMEDY
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart


@dataclass(frozen=True)
class _Place:
    """A partition of a source.

    Attributes:
        definition: The source.
        partition: The partition of its log.
        column: The partition of its topic; None of a partition of files, which has ended.
    """

    definition: EventStream | Request
    partition: int
    column: int | None


class LivePolls:
    """The polls that were received in a span of time.

    Args:
        project: The project.
        log: The log of the build, with the live rows.
        live: The live log.
        start_us: The first instant of the span.
        stop_us: The instant after it.
        polls: The number of the stream's poll before the first one.

    Raises:
        DamagedFile: The rows or the polls are damaged, or rows are missing.
    """

    def __init__(
        self,
        project: Project,
        log: Log,
        live: LiveLog,
        *,
        start_us: int,
        stop_us: int,
        polls: int = 0,
    ) -> None:
        self._live, self._stop_us, topics = live, stop_us, live.topics()
        self._cuts = live.cuts()
        self._places: list[_Place] = []
        self._tables: list[pa.Table] = []
        definitions: list[EventStream | Request] = [*project.streams, project.request]
        for definition in definitions:
            topic = topics.get(definition.name)
            count = log.partitions(definition.name)
            first = count if topic is None else topic.first
            for partition in range(count):
                column = partition - first if partition >= first else None
                self._places.append(_Place(definition, partition, column))
                self._tables.append(log.read(definition.name, partition))
        received = self._cuts.received_us
        self._low, self._high = np.searchsorted(received, [start_us, stop_us], "left").tolist()
        self.start = Cut(polls, self._positions(self._low - 1))
        self.stop: Positions = self._positions(self._high - 1)
        for place, table, stop in zip(self._places, self._tables, self.stop, strict=True):
            if len(table) < stop:
                raise DamagedFile(
                    f"{live.folder}: partition {place.partition} of {place.definition.name!r} has "
                    f"{len(table)} rows, and {stop} are sealed: rows were lost; {REMEDY}"
                )
        self._refusals: Iterator[tuple[int, pa.RecordBatch]] | None = None
        self._refused: tuple[int, pa.RecordBatch] | None = None
        self._asked = 0

    @property
    def sources(self) -> list[tuple[EventStream | Request, int]]:
        """The partitions, with their sources, in the order of positions."""
        return [(place.definition, place.partition) for place in self._places]

    @property
    def before(self) -> int:
        """The number in the live log of the poll before the first one."""
        before: int = self._low
        return before

    @property
    def received_us(self) -> int | None:
        """When the last poll was received; None if there is none."""
        return int(self._cuts.received_us[self._high - 1]) if self._high > self._low else None

    @property
    def last_poll_number(self) -> int:
        """The number of the last poll."""
        number: int = self.start.number + self._high - self._low
        return number

    @property
    def rows(self) -> int:
        """The number of rows of all polls."""
        return sum(self.stop) - sum(self.start.positions)

    def rows_of(self, source: str) -> int:
        """Count the rows of a source, without those that were forgotten."""
        ends = zip(self._places, self._tables, self.start.positions, self.stop, strict=True)
        return sum(
            stop
            - start
            - table.column(at.definition.id_column).slice(start, stop - start).null_count
            for at, table, start, stop in ends
            if at.definition.name == source
        )

    def due_us(self, elapsed_seconds: float) -> int:
        """Return the instant of arrival up to which rows are due."""
        return self._stop_us

    def _positions(self, index: int) -> Positions:
        """Return the positions after a poll of the live log; of -1 those at its beginning."""
        return tuple(
            len(table)
            if place.column is None
            else int(self._cuts.positions[place.definition.name][index, place.column])
            if index >= 0
            else 0
            for place, table in zip(self._places, self._tables, strict=True)
        )

    def next_poll(self, at: Cut, due_us: int, sent_us: int) -> tuple[Poll, Cut] | None:
        """Read the next poll; arguments and result as for `ReplayLog.next_poll`."""
        index = self._low + at.number - self.start.number
        if index >= self._high:
            return None
        after = Cut(at.number + 1, self._positions(index))
        parts = []
        for place, table, start, stop in zip(
            self._places, self._tables, at.positions, after.positions, strict=True
        ):
            watermark = TIME_MAX
            if place.column is not None:
                of_source = self._cuts.watermarks[place.definition.name]
                watermark = int(of_source[index, place.column])
            rows = one_batch(table.slice(start, stop - start)) if stop > start else None
            name = place.definition.name
            parts.append(PollPart(name, place.partition, start, stop, watermark, rows))
        return Poll(after.number, sent_us, tuple(parts)), after

    def rejected(self, number: int) -> list[pa.RecordBatch]:
        """Return the records that were rejected while a poll was read.

        Polls are asked for in order, or from an earlier one again: each file is read once.
        """
        logged = self._low + number - self.start.number
        if self._refusals is None or logged < self._asked:
            self._refusals = self._live.rejected(logged - 1, self._high)
            self._refused = None
        self._asked = logged
        while self._refused is None or self._refused[0] < logged:
            if (found := next(self._refusals, None)) is None:
                return []
            self._refused = found
        return [self._refused[1]] if self._refused[0] == logged else []
