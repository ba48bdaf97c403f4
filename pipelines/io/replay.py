"""Replay: the log as an unbounded source, in order of arrival.

The promises: rows come in the order in which they were received, across all partitions. A poll
never separates rows received at the same microsecond. Reading from the same positions again gives
the same polls.

The watermark of a partition is the later of its highest time so far and the replay clock (the last
instant of arrival up to which all partitions are read), minus the stream's out-of-orderness. A run
may stop at a savepoint, an instant of arrival; the next run continues from there.

`ReplayLog` decides what to read. `Replay` wires it into a splittable DoFn whose restriction is a
vector of positions. It refuses to be split, because splits would break the order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import RECEIVED, Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart

_SLICE_SECONDS: Final = 0.1
_WAIT_US: Final = 10_000

Positions = tuple[int, ...]


@dataclass(frozen=True)
class ReplayOptions:
    """What is replayed, and how fast.

    Attributes:
        root: The run's folder.
        start_us: Rows received before this instant are not replayed: the handed-over state
            contains them.
        stop_us: Rows received at or after this instant are not replayed.
        poll_rows: About how many rows a poll reads.
        speed: How many times faster than real time; None for as fast as possible.
        ends: Whether the stream ends at ``stop_us``: then all waiting rows are released. Else
            ``stop_us`` is a savepoint, and waiting rows stay in state for the next run.
    """

    root: Path
    start_us: int
    stop_us: int
    poll_rows: int = 4_096
    speed: float | None = None
    ends: bool = True


class ReplayLog:
    """The partitions of all sources of a project, and the next rows to read from them."""

    def __init__(self, project: Project, options: ReplayOptions) -> None:
        self._options = options
        self.sources: list[tuple[EventStream | Request, int]] = []
        self._tables: list[pa.Table] = []
        self._received: list[Int64Array] = []
        self._highest: list[Int64Array] = []
        log = Log(options.root)
        start: list[int] = []
        stop: list[int] = []
        definitions: list[EventStream | Request] = [*project.streams, project.request]
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
        self.start: Positions = tuple(start)
        self.stop: Positions = tuple(stop)
        self._merged = np.sort(
            np.concatenate([r[a:b] for r, a, b in zip(self._received, start, stop, strict=True)]),
            kind="stable",
        )

    @property
    def rows(self) -> int:
        """The number of rows to replay."""
        return len(self._merged)

    def rows_of(self, source: str) -> int:
        """Count the rows to replay from a source."""
        ends = zip(self.sources, self.start, self.stop, strict=True)
        return sum(stop - start for (one, _), start, stop in ends if one.name == source)

    def due_us(self, elapsed_seconds: float) -> int:
        """Return the instant of arrival up to which rows are due after some seconds."""
        if self._options.speed is None:
            return self._options.stop_us
        elapsed = int(elapsed_seconds * self._options.speed * 1_000_000)
        return min(self._options.start_us + elapsed, self._options.stop_us)

    def next_poll(self, at: Positions, due_us: int, sent_us: int) -> tuple[Poll, Positions] | None:
        """Read the next poll.

        Args:
            at: The next position of each partition.
            due_us: Rows received at or after this instant are not due yet.
            sent_us: The wall clock, for the poll's stamp.

        Returns:
            The poll and the positions after it; None if no row is due.
        """
        done = sum(at) - sum(self.start)
        due = int(np.searchsorted(self._merged, due_us, "left"))
        if due <= done:
            return None
        clock = int(self._merged[min(done + self._options.poll_rows, due) - 1])
        after = tuple(
            max(int(np.searchsorted(received[:stop], clock, "right")), position)
            for received, stop, position in zip(self._received, self.stop, at, strict=True)
        )
        return self._poll(at, after, clock + 1, sent_us), after

    def last_poll(self, at: Positions, sent_us: int) -> Poll:
        """Return the poll after the last row: the stream's end, or the mark of a savepoint."""
        ends = self._options.ends
        return self.final_poll(at, sent_us) if ends else self.savepoint_poll(at, sent_us)

    def savepoint_poll(self, at: Positions, sent_us: int) -> Poll:
        """Return the mark of a savepoint. It moves no watermark.

        If it moved the frontier, rows would be released that wait in an uninterrupted run.
        """
        return Poll(sent_us, self._empty_parts(at, TIME_MIN), is_last=True)

    def final_poll(self, at: Positions, sent_us: int) -> Poll:
        """Return the stream's end: it moves every watermark past every row."""
        newest = (
            int(highest[position - 1]) + 1
            for highest, position in zip(self._highest, at, strict=True)
            if position
        )
        # The time of a row may be after its receipt, and so after the declared end.
        end = max(self._options.stop_us, *newest, TIME_MIN)
        return Poll(sent_us, self._empty_parts(at, end))

    def _empty_parts(self, at: Positions, watermark_us: int) -> tuple[PollPart, ...]:
        return tuple(
            PollPart(definition.name, partition, position, position, watermark_us, None)
            for (definition, partition), position in zip(self.sources, at, strict=True)
        )

    def _poll(self, at: Positions, after: Positions, clock_us: int, sent_us: int) -> Poll:
        parts = []
        for index, (definition, partition) in enumerate(self.sources):
            start, stop = at[index], after[index]
            highest = int(self._highest[index][stop - 1]) if stop else TIME_MIN
            rows = None
            if stop > start:
                rows = one_batch(self._tables[index].slice(start, stop - start))
            watermark = max(highest, clock_us) - definition.out_of_orderness_us
            parts.append(PollPart(definition.name, partition, start, stop, watermark, rows))
        return Poll(sent_us, tuple(parts))


class _Tracker(RestrictionTracker):
    """Tracks a vector of positions; allows no split except a checkpoint of the remainder."""

    def __init__(self, restriction: tuple[Positions, bool]) -> None:
        self._start = restriction
        self._at = restriction
        self._stopped = restriction[1]

    def current_restriction(self) -> tuple[Positions, bool]:
        return self._at

    def try_claim(self, position: tuple[Positions, bool]) -> bool:
        if self._stopped:
            return False
        self._at = position
        self._stopped = position[1]
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Any, Any] | None:
        if fraction_of_remainder > 0 or self._stopped:
            return None
        self._stopped = True
        return (self._at[0], True), self._at

    def check_done(self) -> None:
        if not self._stopped:
            raise ValueError(f"the replay stopped at {self._at[0]} without claiming its end")

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def is_bounded(self) -> bool:
        return False


class RestrictionCoder(beam.coders.Coder):
    """Encodes positions, and whether the replay has stopped, as JSON; Beam would pickle them."""

    def encode(self, value: tuple[Positions, bool]) -> bytes:
        """Encode a restriction."""
        return json.dumps(value).encode()

    def decode(self, encoded: bytes) -> tuple[Positions, bool]:
        """Decode a restriction."""
        positions, stopped = json.loads(encoded)
        return tuple(positions), stopped

    def is_deterministic(self) -> bool:
        """Return True: equal restrictions have equal bytes."""
        return True


class _Provider(RestrictionProvider):
    """Decodes the initial restriction from the element."""

    def initial_restriction(self, element: bytes) -> tuple[Positions, bool]:
        return RestrictionCoder().decode(element)

    def restriction_coder(self) -> RestrictionCoder:
        return RestrictionCoder()

    def create_tracker(self, restriction: Any) -> _Tracker:
        return _Tracker(restriction)

    def restriction_size(self, element: Any, restriction: Any) -> int:
        return 1

    def truncate(self, element: Any, restriction: Any) -> None:
        return None


class WatermarkCoder(beam.coders.Coder):
    """Encodes a watermark, or None, in microseconds.

    Beam would pickle it; Beam's coder for timestamps keeps milliseconds only.
    """

    def encode(self, value: Timestamp | None) -> bytes:
        """Encode a watermark; None becomes no bytes."""
        return b"" if value is None else value.micros.to_bytes(8, "big", signed=True)

    def decode(self, encoded: bytes) -> Timestamp | None:
        """Decode a watermark."""
        if not encoded:
            return None
        return Timestamp(micros=int.from_bytes(encoded, "big", signed=True))

    def is_deterministic(self) -> bool:
        """Return True: equal watermarks have equal bytes."""
        return True


class _Watermarks(WatermarkEstimatorProvider):
    """Makes watermark estimators that the DoFn sets."""

    def initial_estimator_state(self, element: Any, restriction: Any) -> Timestamp | None:
        return None

    def create_watermark_estimator(self, state: Timestamp | None) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(state)

    def estimator_state_coder(self) -> WatermarkCoder:
        return WatermarkCoder()


_PROVIDER: Final = _Provider()
_WATERMARKS: Final = _Watermarks()


class _Read(beam.DoFn):
    """Reads polls, for a tenth of a second in each call."""

    def __init__(self, project: Project, options: ReplayOptions, began: float) -> None:
        self._project = project
        self._options = options
        self._began = began

    def setup(self) -> None:
        self._log = ReplayLog(self._project, self._options)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Any,
        tracker: Any = beam.DoFn.RestrictionParam(_PROVIDER),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_WATERMARKS),
    ) -> Iterator[TimestampedValue]:
        positions, _ = tracker.current_restriction()
        end = time.monotonic() + _SLICE_SECONDS
        while True:
            due = self._log.due_us(time.time() - self._began)
            now_us = time.time_ns() // 1_000
            found = self._log.next_poll(positions, due, now_us)
            if found is not None:
                poll, positions = found
                if not tracker.try_claim((positions, False)):
                    return
                stamp = Timestamp(micros=min(part.watermark_us for part in poll.parts))
                yield TimestampedValue(poll.encode(), stamp)
                watermark.set_watermark(stamp)
            elif positions == self._log.stop:
                if tracker.try_claim((positions, True)):
                    last = self._log.last_poll(positions, now_us)
                    stamp = Timestamp(micros=last.parts[0].watermark_us)
                    if last.is_last:
                        stamp = watermark.current_watermark() or MIN_TIMESTAMP
                    yield TimestampedValue(last.encode(), stamp)
                    watermark.set_watermark(stamp)
                return
            else:
                break
            if time.monotonic() >= end:
                break
        tracker.defer_remainder(Duration(micros=0 if self._options.speed is None else _WAIT_US))


@dataclass(eq=False)
class Replay(beam.PTransform):
    """The log as an unbounded collection of encoded polls.

    Attributes:
        project: The project.
        options: What is replayed.
    """

    project: Project
    options: ReplayOptions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: Any) -> beam.PCollection:
        """Wire the source."""
        start = ReplayLog(self.project, self.options).start, False
        return (
            begin
            | beam.Create([RestrictionCoder().encode(start)])
            | "Read"
            >> beam.ParDo(_Read(self.project, self.options, time.time())).with_output_types(bytes)
        )
