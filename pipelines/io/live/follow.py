"""Follow: the poll log as an unbounded source, poll by poll as they are written down.

A live reader (`pipelines.io.live.live_reader`) appends polls to the log; this source sends each of
them once, in order, and those that a restriction has not sent yet again after a recovery. A poll
log on a disk that reader and source share is all that joins them, so a reader that is stopped, or
one that is restarted, loses and doubles nothing.

A stream stops after a poll that ``stop.json`` names: the source then sends the mark of a savepoint,
and ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Duration, Timestamp

from tidemill.features.contract import TIME_MIN
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.io.poll_restriction import PROVIDER, WATERMARKS, RestrictionCoder
from tidemill.serving.files.records import RecordFormat, read_record, write_record

REJECTED: Final = "rejected"
"""The tag of the records that were rejected while a poll was read."""

_SLICE_SECONDS: Final = 0.02
_WAIT_SECONDS: Final = 0.002
_DEFER: Final = Duration(micros=1_000)
_STOP: Final = RecordFormat(
    name="tidemill-live-stop",
    version=1,
    fields=frozenset({"number"}),
    remedy="remove it and run `tidemill stream --resume`",
)


def stop_after(path: Path, number: int) -> None:
    """Let the source stop after a poll of the poll log."""
    write_record(path, _STOP, {"number": number}, durable=True)


@dataclass(frozen=True)
class FollowOptions:
    """What is followed.

    Attributes:
        polls: The folder of the poll log.
        start: The last poll before the first that is sent, by the stream's number.
        logged: The number that the poll log gives that poll.
        places: The source and the partition of each position.
        stop: The file that `stop_after` writes.
        may_send: Tells whether a poll, by the stream's number, may be sent already; None sends all
            at once.
    """

    polls: Path
    start: Cut
    logged: int
    places: tuple[tuple[str, int], ...]
    stop: Path
    may_send: Callable[[int], bool] | None = None


class _Follow(beam.DoFn):
    """Sends polls, for a moment in each call."""

    def __init__(self, options: FollowOptions) -> None:
        self._options = options

    def setup(self) -> None:
        self._following: Iterator[LoggedPoll | None] | None = None
        self._at = -1

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Any,
        tracker: Any = beam.DoFn.RestrictionParam(PROVIDER),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WATERMARKS),
    ) -> Iterator[Any]:
        options = self._options
        at, _ = tracker.current_restriction()
        end = time.monotonic() + _SLICE_SECONDS
        while True:
            logged = self._next(at.number + options.logged - options.start.number)
            if logged is not None:
                poll = replace(Poll.decode(bytes(logged.poll)), number=at.number + 1)
                at = Cut(poll.number, tuple(part.stop for part in poll.parts))
                if not tracker.try_claim((at, False)):
                    return
                self._at = logged.number
                if logged.rejected is not None:
                    yield beam.pvalue.TaggedOutput(REJECTED, logged.rejected)
                stamp = _stamp(min(part.watermark_us for part in poll.parts))
                yield TimestampedValue(poll.encode(), stamp)
                if stamp > (watermark.current_watermark() or MIN_TIMESTAMP):
                    watermark.set_watermark(stamp)
            elif self._is_stopped(at):
                if tracker.try_claim((at, True)):
                    stamp = watermark.current_watermark() or MIN_TIMESTAMP
                    yield TimestampedValue(self._mark(at).encode(), stamp)
                return
            else:
                time.sleep(_WAIT_SECONDS)
            if time.monotonic() >= end:
                break
        tracker.defer_remainder(_DEFER)

    def _next(self, after: int) -> LoggedPoll | None:
        """Return the poll after a number, if it is there and may be sent."""
        may_send = self._options.may_send
        number = after + 1 - self._options.logged + self._options.start.number
        if may_send is not None and not may_send(number):
            return None
        if self._following is None or self._at != after:
            self._following, self._at = PollLog(self._options.polls).follow(after), after
        return next(self._following)

    def _is_stopped(self, at: Cut) -> bool:
        options = self._options
        if not options.stop.exists():
            return False
        number: int = read_record(options.stop, _STOP)["number"]
        return at.number + options.logged - options.start.number >= number

    def _mark(self, at: Cut) -> Poll:
        """Return the mark of a savepoint; it moves no watermark."""
        places = zip(self._options.places, at.positions, strict=True)
        parts = tuple(
            PollPart(source, partition, position, position, TIME_MIN, None)
            for (source, partition), position in places
        )
        return Poll(at.number, time.time_ns() // 1_000, parts, is_last=True)


def _stamp(time_us: int) -> Timestamp:
    return Timestamp(micros=min(max(time_us, MIN_TIMESTAMP.micros), MAX_TIMESTAMP.micros))


@dataclass(eq=False)
class Follow(beam.PTransform):
    """The polls of a poll log as an unbounded collection of encoded polls.

    Output, by name: ``polls``, and with the tag `REJECTED` the records that were rejected while
    they were read.

    Attributes:
        options: What is followed.
    """

    options: FollowOptions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: Any) -> Any:
        """Wire the source."""
        start = RestrictionCoder().encode((self.options.start, False))
        return (
            begin
            | beam.Create([start])
            | "Follow"
            >> beam.ParDo(_Follow(self.options))
            .with_output_types(bytes, **{REJECTED: pa.RecordBatch})
            .with_outputs(REJECTED, main="polls")
        )
