"""A source of polls that come one after the other: what it sends, and when it stops or stays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Duration, Timestamp

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.poll_restriction import (
    PROVIDER,
    STAY_SECONDS,
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
_IMPULSE_MS: Final = 5
_WAIT_SECONDS: Final = 0.002
_DEFER: Final = Duration(micros=1_000)


class PollSource(Protocol):
    """Where polls come from."""

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another and its rejected records, if it may be sent now."""

    def last(self, at: Cut) -> Poll | None:
        """Return the poll without rows after which nothing comes, if the time for it has come."""


class Sent(NamedTuple):
    """What a source sends at once.

    Attributes:
        after: Where the source is after it.
        outputs: A poll, and before it the records that were rejected while it was read.
        stamp: The poll's timestamp.
    """

    after: Restriction
    outputs: Sequence[Any]
    stamp: Timestamp


class SendPolls(beam.DoFn):
    """Sends polls, for a moment in each call.

    Attributes:
        polls: Where they come from; set by `setup`.
        watch: Tells whether the job goes on, if the source is to stay when it has sent all; else it
            stops. Set by `setup`.
        moment_s: How long a call takes at most, in seconds.
    """

    polls: PollSource
    watch: Watching | None
    moment_s = 0.02

    def send(self, at: Cut, stamp: Timestamp) -> Iterator[Sent]:
        """Send what there is, for a moment: until nothing follows on what was sent.

        Args:
            at: The last poll that was sent.
            stamp: The highest timestamp so far.
        """
        end = time.monotonic() + self.moment_s
        has_sent = False
        while True:
            found = self.polls.next(at)
            if found is not None:
                has_sent = True
                poll, refused = found
                at = Cut(poll.number, tuple(part.stop for part in poll.parts))
                of_poll = _stamp(min(part.watermark_us for part in poll.parts))
                stamp = max(stamp, of_poll)
                rejected = (with_epoch(batch, poll.epoch) for batch in refused)
                tagged = [beam.pvalue.TaggedOutput(REJECTED, batch) for batch in rejected]
                yield Sent(Restriction(at), [*tagged, TimestampedValue(poll, of_poll)], of_poll)
            elif (last := self.polls.last(at)) is not None:
                if not last.is_last:
                    stamp = _stamp(min(part.watermark_us for part in last.parts))
                after = Restriction(at, self.watch is None, is_sent=True)
                yield Sent(after, [TimestampedValue(last, stamp)], stamp)
                return
            elif has_sent:
                return  # what was sent does not wait for more
            else:
                time.sleep(_WAIT_SECONDS)
            if time.monotonic() >= end:
                return

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
        highest = watermark.current_watermark() or MIN_TIMESTAMP
        for sent in self.send(at, highest):
            if not tracker.try_claim(sent.after):
                return
            yield from sent.outputs
            if sent.stamp > highest:
                highest = sent.stamp
                watermark.set_watermark(highest)
            if sent.after.is_sent:
                if self.watch is not None:
                    tracker.defer_remainder()
                return
        tracker.defer_remainder(_DEFER)


@beam.typehints.with_input_types(tuple[bytes, bytes])
class SendByImpulses(beam.DoFn):
    """Sends what a source sends, a moment for each bundle of impulses.

    Beam's runner for Flink keeps what is left of a splittable DoFn under a new name each time that
    it is put off, and forgets none: some 80 KB of the TaskManager's heap each time
    (https://github.com/apache/beam/issues/27648). The state of this DoFn has one name for ever.

    Args:
        sends: The source, which stays when it has sent all.
        start: The poll before the first.
    """

    AT: Final = ReadModifyWriteStateSpec("at", BytesCoder())

    def __init__(self, sends: SendPolls, start: Cut) -> None:
        self._sends, self._start = sends, start

    def setup(self) -> None:
        """Set the source up."""
        self._sends.setup()

    def start_bundle(self) -> None:
        """Begin a bundle, which ends soon after something was sent: outputs leave with its end."""
        self._has_sent = False
        self._where: Restriction | None = None
        """Where the source is, once the state was read: an engine is asked for it each time."""

    def process(
        self, element: tuple[bytes, bytes], at: Any = beam.DoFn.StateParam(AT)
    ) -> Iterator[Any]:
        """Send what there is, for a moment.

        Raises:
            EngineLost: The source must stop.
        """
        if self._has_sent:
            return
        assert self._sends.watch is not None
        self._sends.watch.check()
        if self._where is None:
            found = at.read()
            self._where = RestrictionCoder().decode(found) if found else Restriction(self._start)
        where = self._where
        if where.is_sent:
            self._has_sent = True
            time.sleep(STAY_SECONDS)
            return
        for sent in self._sends.send(where.at, MIN_TIMESTAMP):
            self._has_sent, where = True, sent.after
            yield from sent.outputs
        if self._has_sent:
            at.write(RestrictionCoder().encode(where))


def _stamp(time_us: int) -> Timestamp:
    return Timestamp(micros=min(max(time_us, MIN_TIMESTAMP.micros), MAX_TIMESTAMP.micros))


def called(
    begin: Any, start: Cut, source: SendPolls, *, by_impulses: bool
) -> tuple[Any, beam.DoFn]:
    """Wire what calls a source; return it, and the DoFn that it calls.

    Args:
        begin: The pipeline.
        start: The poll before the first.
        source: The source.
        by_impulses: Whether Flink's impulses call it (`SendByImpulses`), and it is no splittable
            DoFn.
    """
    if by_impulses:
        impulses = FlinkStreamingImpulseSource().set_interval_ms(_IMPULSE_MS).set_message_count(0)
        keyed = begin | "Impulses" >> impulses | step("Key", _Key())
        return keyed, SendByImpulses(source, start)
    first = RestrictionCoder().encode(Restriction(start))
    return begin | "Start" >> Elements([first]), source


def sent_polls(begin: Any, start: Cut, name: str, source: SendPolls, *, by_impulses: bool) -> Any:
    """Wire a source; return its outputs by name: ``polls``, and `REJECTED` records.

    Args:
        begin: The pipeline.
        start: The poll before the first.
        name: The name of the source's step.
        source: The source.
        by_impulses: As for `called`.
    """
    caller, sends = called(begin, start, source, by_impulses=by_impulses)
    return caller | step(name, sends).with_output_types(
        Poll, **{REJECTED: pa.RecordBatch}
    ).with_outputs(REJECTED, main="polls")


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(tuple[bytes, bytes])
class _Key(beam.DoFn):
    """Gives all impulses one key, to which the source's state belongs."""

    def process(self, element: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield b"source", element
