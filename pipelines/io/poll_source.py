"""A source of polls that come one after the other: what it sends, and when it stops or stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Duration, Timestamp

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.poll_restriction import (
    PROVIDER,
    WATERMARKS,
    Restriction,
    RestrictionCoder,
    Watching,
    stays,
)
from tidemill.pipelines.io.steps import Elements, step

REJECTED: Final = "rejected"
"""The tag of the records that were rejected while a poll was read."""
AHEAD_POLLS: Final = 64
"""The most polls that are sent and that no operator has taken."""
_SLICE_SECONDS: Final = 0.02
_WAIT_SECONDS: Final = 0.002
_DEFER: Final = Duration(micros=1_000)


class PollSource(Protocol):
    """Where polls come from."""

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another and its rejected records, if it may be sent now."""

    def last(self, at: Cut) -> Poll | None:
        """Return the poll without rows after which nothing comes, if the time for it has come."""


class SendPolls(beam.DoFn):
    """Sends polls, for a moment in each call.

    Attributes:
        polls: Where they come from; set by `setup`.
        watch: Tells whether the job goes on, if the source is to stay when it has sent all; else it
            stops. Set by `setup`.
    """

    polls: PollSource
    watch: Watching | None

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Any,
        tracker: Any = beam.DoFn.RestrictionParam(PROVIDER),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WATERMARKS),
    ) -> Iterator[Any]:
        """Send what there is, for a moment."""
        at, _, is_sent = tracker.current_restriction()
        if self.watch is not None and stays(self.watch, tracker, is_sent=is_sent):
            return
        end = time.monotonic() + _SLICE_SECONDS
        has_sent = False
        while True:
            found = self.polls.next(at)
            if found is not None:
                has_sent = True
                poll, refused = found
                at = Cut(poll.number, tuple(part.stop for part in poll.parts))
                if not tracker.try_claim(Restriction(at)):
                    return
                for batch in refused:
                    yield beam.pvalue.TaggedOutput(REJECTED, with_epoch(batch, poll.epoch))
                stamp = _stamp(min(part.watermark_us for part in poll.parts))
                yield TimestampedValue(poll, stamp)
                if stamp > (watermark.current_watermark() or MIN_TIMESTAMP):
                    watermark.set_watermark(stamp)
            elif (last := self.polls.last(at)) is not None:
                if tracker.try_claim(Restriction(at, self.watch is None, is_sent=True)):
                    stamp = watermark.current_watermark() or MIN_TIMESTAMP
                    if not last.is_last:
                        stamp = _stamp(min(part.watermark_us for part in last.parts))
                    yield TimestampedValue(last, stamp)
                    if self.watch is not None:
                        tracker.defer_remainder()
                return
            elif has_sent:
                break  # what was sent does not wait for more
            else:
                time.sleep(_WAIT_SECONDS)
            if time.monotonic() >= end:
                break
        tracker.defer_remainder(_DEFER)


def _stamp(time_us: int) -> Timestamp:
    return Timestamp(micros=min(max(time_us, MIN_TIMESTAMP.micros), MAX_TIMESTAMP.micros))


def sent_polls(begin: Any, start: Cut, name: str, source: SendPolls) -> Any:
    """Wire a source; return its outputs by name: ``polls``, and `REJECTED` records.

    Args:
        begin: The pipeline.
        start: The poll before the first.
        name: The name of the source's step.
        source: The source.
    """
    return (
        begin
        | "Start" >> Elements([RestrictionCoder().encode(Restriction(start))])
        | step(name, source)
        .with_output_types(Poll, **{REJECTED: pa.RecordBatch})
        .with_outputs(REJECTED, main="polls")
    )
