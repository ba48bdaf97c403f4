"""Sources of polls: what they send in a moment, and how an engine calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.window import TimestampedValue

from tidemill.features.errors import EngineLost
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.io.poll_restriction import Restriction, RestrictionCoder
from tidemill.pipelines.io.poll_source import SendByImpulses, SendPolls, sent_polls

START = Cut(4, (7,))


def poll(number: int) -> Poll:
    return Poll(number, 0, (PollPart("payments", 0, number + 2, number + 3, 10 * number, None),))


class Ready:
    """Polls that are there, up to a number; with ``ends`` the mark of the end follows."""

    def __init__(self, until: int, *, ends: bool = False) -> None:
        self.until, self.ends = until, ends

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        return (poll(at.number + 1), []) if at.number < self.until else None

    def last(self, at: Cut) -> Poll | None:
        return poll(at.number + 1) if self.ends and at.number >= self.until else None


class Watch:
    """A job that goes on until it is lost."""

    is_lost = False

    def check(self) -> None:
        if self.is_lost:
            raise EngineLost("the job is gone")


class Sends(SendPolls):
    """A source of `Ready` polls that stays."""

    moment_s = 1.0

    def __init__(self, polls: Ready) -> None:
        self._given = polls

    def setup(self) -> None:
        self.polls, self.watch = self._given, Watch()


class State:
    """A state of one value, as Beam's."""

    value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def where(self) -> Restriction:
        assert self.value is not None
        return RestrictionCoder().decode(self.value)


def numbers(outputs: Iterator[Any]) -> list[int]:
    found = [*outputs]
    assert all(isinstance(one, TimestampedValue) for one in found)
    return [one.value.number for one in found]


IMPULSE = b"source", b"0"


def test_a_bundle_of_impulses_sends_once_and_goes_on_where_the_last_one_stopped() -> None:
    ready, state = Ready(6), State()
    source = SendByImpulses(Sends(ready), START)
    source.setup()
    source.start_bundle()
    assert numbers(source.process(IMPULSE, state)) == [5, 6]
    ready.until = 7
    assert numbers(source.process(IMPULSE, state)) == []  # what was sent waits for the bundle's end
    source.start_bundle()
    assert numbers(source.process(IMPULSE, state)) == [7]
    source.start_bundle()
    assert numbers(source.process(IMPULSE, state)) == []
    ready.until = 8
    assert numbers(source.process(IMPULSE, state)) == [8]
    assert state.where() == Restriction(Cut(8, (11,)))


def test_it_stays_when_it_has_sent_all_and_says_when_its_job_is_lost() -> None:
    state = State()
    sends = Sends(Ready(5, ends=True))
    source = SendByImpulses(sends, START)
    source.setup()
    source.start_bundle()
    assert numbers(source.process(IMPULSE, state)) == [5, 6]
    assert state.where().is_sent
    source.start_bundle()
    assert numbers(source.process(IMPULSE, state)) == []
    assert isinstance(sends.watch, Watch)
    sends.watch.is_lost = True
    source.start_bundle()
    with pytest.raises(EngineLost):
        numbers(source.process(IMPULSE, state))


@pytest.mark.parametrize("by_impulses", [True, False])
def test_flink_gets_no_splittable_dofn(*, by_impulses: bool) -> None:
    """Its runner remembers what is left of one for ever."""
    pipeline = beam.Pipeline()
    _ = sent_polls(pipeline, START, "Follow", Sends(Ready(5)), by_impulses=by_impulses)
    proto = pipeline.to_runner_api()
    urns, restricted = [], []
    for transform in proto.components.transforms.values():
        urns.append(transform.spec.urn)
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            assert payload.do_fn.urn == python_urns.PICKLED_DOFN_INFO
            restricted += [transform.unique_name] if payload.restriction_coder_id else []
    assert restricted == ([] if by_impulses else ["Follow/Follow"])
    assert ("flink:transform:streaming_impulse:v1" in urns) == by_impulses
    assert (common_urns.primitives.IMPULSE.urn in urns) != by_impulses
