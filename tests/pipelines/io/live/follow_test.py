"""Following a poll log: each poll once, in order, while another thread appends."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from tests.pipelines.io.live.live_log_test import canonical, goes_on, lived
from tests.pipelines.io.live.poll_log_test import entry
from tests.support.scripted_topics import PROJECT, Rig
from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.epochs import epoch_of
from tidemill.pipelines.io.live import follow, poll_log
from tidemill.pipelines.io.live.follow import AHEAD_POLLS, FollowOptions, stop_after
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.poll_restriction import Restriction, _Tracker


@pytest.fixture(autouse=True)
def without_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


# --- PollLog.follow --------------------------------------------------------------------------


def test_each_poll_is_followed_once_in_order_over_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_log, "FILE_BYTES", 900)
    total = 400

    def write() -> None:
        log = PollLog(tmp_path)
        for number in range(1, total + 1):
            log.append(entry(number, number % 700))

    writer = threading.Thread(target=write)
    writer.start()
    found: list[LoggedPoll] = []
    for logged in PollLog(tmp_path).follow(0):
        if logged is not None:
            found.append(logged)
        if len(found) == total:
            break
    writer.join()
    assert [one.encode() for one in found] == [
        entry(n, n % 700).encode() for n in range(1, total + 1)
    ]
    assert len(list(tmp_path.iterdir())) > 50
    follower = PollLog(tmp_path).follow(137)
    assert [one.number for one, _ in zip(follower, range(5), strict=False) if one] == [
        138, 139, 140, 141, 142
    ]  # fmt: skip


def test_a_follower_waits_for_what_is_not_whole_yet(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    log = PollLog(whole)
    log.append(entry(1, 10))
    log.append(entry(2, 90))
    (source,) = whole.iterdir()
    data = source.read_bytes()
    first = data.rindex(data[:8])
    path = tmp_path / "polls" / source.name
    follower = PollLog(path.parent).follow(0)
    assert next(follower) is None
    path.parent.mkdir()
    assert next(follower) is None
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        expected = {first: 1, len(data): 2}.get(size)
        found = next(follower)
        assert (None if found is None else found.number) == expected, size
    assert next(follower) is None


def test_what_a_crash_left_of_a_poll_is_not_what_is_followed(tmp_path: Path) -> None:
    """A writer that begins again removes it, and writes another poll with its number."""
    log = PollLog(tmp_path)
    log.append(entry(1))
    log.close()
    follower = PollLog(tmp_path).follow(0)
    found = next(follower)
    assert found is not None
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    log.append(entry(2, 200))
    log.close()
    torn = path.read_bytes()
    for size in (len(data) + 10, len(data) + 40, len(torn) - 50):
        path.write_bytes(torn[:size])
        assert next(follower) is None
    log = PollLog(tmp_path)
    log.append(entry(2, 180, b"z"))
    found = next(follower)
    assert found is not None
    assert found.encode() == entry(2, 180, b"z").encode()


def test_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    log = PollLog(tmp_path)
    log.append(entry(1))
    log.append(entry(2))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    second = whole.rindex(whole[:8])
    for place in (second, second + 9, second + 33, second + 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        follower = PollLog(tmp_path).follow(0)
        assert next(follower) is not None
        with pytest.raises(DamagedState, match=rf"{path.name}.*without --resume"):
            next(follower)


def test_removed_and_missing_polls_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_log, "FILE_BYTES", 600)
    log = PollLog(tmp_path)
    for number in range(1, 10):
        log.append(entry(number))
    first, second, *_ = sorted(tmp_path.iterdir())
    removed = second.read_bytes()
    second.unlink()
    follower = PollLog(tmp_path).follow(0)
    with pytest.raises(DamagedState, match="poll 4 is missing before poll 7"):
        [next(follower) for _ in range(20)]
    second.write_bytes(removed)
    first.unlink()
    with pytest.raises(DamagedState, match="poll 1 was removed, 4 is the first"):
        next(PollLog(tmp_path).follow(0))
    found = next(PollLog(tmp_path).follow(3))
    assert found is not None
    assert found.number == 4


def test_a_file_that_is_removed_behind_a_follower_does_not_disturb_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_log, "FILE_BYTES", 600)
    log = PollLog(tmp_path)
    for number in range(1, 10):
        log.append(entry(number))
    follower = PollLog(tmp_path).follow(0)
    seen = []
    for found in follower:
        assert found is not None
        seen.append(found.number)
        log.remove_before(found.number)
        if found.number == 9:
            break
    assert seen == list(range(1, 10))
    assert len(list(tmp_path.iterdir())) == 1


# --- Follow ----------------------------------------------------------------------------------


@dataclass
class Sender:
    """The source's DoFn, driven as an engine does: call by call, with what is left between them."""

    rig: Rig
    options: FollowOptions

    def __post_init__(self) -> None:
        self.restart()
        self.left: Restriction | None = Restriction(self.options.start)
        self.watermark = ManualWatermarkEstimator(None)
        self.polls: list[Poll] = []
        self.rejected: list[Any] = []

    def restart(self) -> None:
        """Go on with another instance, as another worker would."""
        self.sender = follow._Follow(self.options)
        self.sender.setup()

    def call(self, most: int | None = None) -> int:
        """Let it send for a moment, or `most` polls; return how many it has sent."""
        assert self.left is not None
        tracker = _Threadsafe(self.left)
        before = len(self.polls)
        for found in self.sender.process(b"", tracker, self.watermark):
            if isinstance(found, TaggedOutput):
                self.rejected.append(found.value)
                continue
            assert isinstance(found, TimestampedValue)
            self.polls.append(found.value)
            if most is not None and len(self.polls) - before == most:
                self.left = Restriction(tracker.current_restriction().at)
                return most
        self.left = tracker.left
        return len(self.polls) - before

    def take(self, count: int) -> None:
        """Let it send so many polls, in as many moments as it takes."""
        end = len(self.polls) + count
        while len(self.polls) < end:
            self.call(end - len(self.polls))


class _Threadsafe(_Tracker):
    """A tracker with the method by which a DoFn puts off what is left."""

    left: Restriction | None = None

    def defer_remainder(self, _: Any) -> None:
        split = self.try_split(0)
        assert split is not None
        self.left = split[1]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return lived(tmp_path, polls=12)


def options_of(
    rig: Rig, *, taken: Callable[[], int] | None = None, number: int = 0
) -> FollowOptions:
    begins = LivePolls(
        PROJECT, Log(rig.build, rig.folder / "live"), LiveLog(rig.folder / "live", PROJECT),
        start_us=0, stop_us=TIME_MAX, polls=number,
    )  # fmt: skip
    return FollowOptions(
        project=PROJECT,
        build=rig.build,
        live=rig.folder / "live",
        as_of_us=0,
        start=begins.start,
        logged=begins.before,
        epoch=0,
        partitions=tuple((one.name, number) for one, number in begins.sources),
        stop=rig.folder / "stop.json",
        taken=taken,
    )


def same(found: list[Poll], expected: list[LoggedPoll], first: int = 1) -> None:
    """Check that polls are those that were written down, with the numbers of the stream."""
    assert [poll.number for poll in found] == list(range(first, first + len(expected)))
    for poll, logged in zip(found, expected, strict=True):
        sent = Poll.decode(bytes(logged.poll))
        assert canonical(Poll(sent.number, sent.sent_us, poll.parts)) == canonical(sent)


def refused(expected: list[LoggedPoll]) -> list[Any]:
    return [one.rejected for one in expected if one.rejected is not None]


def test_sealed_polls_come_first_and_then_those_of_the_poll_log(rig: Rig) -> None:
    expected = rig.logged()
    middle = Poll.decode(bytes(expected[7].poll)).sent_us
    rig.live.seal(rig.build, middle)
    sender = Sender(rig, options_of(rig, number=100))
    while len(sender.polls) < 12:
        sender.call()
    same(sender.polls, expected, 101)
    assert sender.rejected == refused(expected)
    goes_on(rig, 3, random.Random(5))
    while len(sender.polls) < 15:
        sender.call()
    expected += rig.logged(after=12)
    same(sender.polls, expected, 101)
    assert sender.rejected == refused(expected)


def test_a_restriction_goes_on_in_the_middle(rig: Rig) -> None:
    expected = rig.logged()
    rig.live.seal(rig.build, Poll.decode(bytes(expected[5].poll)).sent_us)
    for most in (1, 2, 5):
        sender = Sender(rig, options_of(rig))
        while len(sender.polls) < 12:
            sender.call(most)
            sender.restart()
        same(sender.polls, expected)
        assert sender.rejected == refused(expected)


def test_polls_that_are_sent_again_are_the_same(rig: Rig) -> None:
    """An engine that recovers takes an instance back to an earlier restriction."""
    expected = rig.logged()
    sender = Sender(rig, options_of(rig))
    sender.take(3)
    left = sender.left
    sender.take(4)
    sender.left = left
    sender.take(4)
    numbers = [poll.number for poll in sender.polls]
    assert numbers == [1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    same(sender.polls[7:], expected[3:7], 4)


def test_no_more_polls_are_sent_than_the_operators_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "AHEAD_POLLS", 4)
    assert AHEAD_POLLS > 4
    rig, taken = lived(tmp_path, polls=12), [0]
    sender = Sender(rig, options_of(rig, taken=lambda: taken[0], number=50))
    sender.take(4)
    assert sender.call() == 0
    taken[0] = 52
    sender.take(2)
    assert sender.call() == 0
    stop_after(rig.folder / "stop.json", 12)
    assert sender.call() == 0  # it does not stop before the last poll is sent
    taken[0] = 62
    while len(sender.polls) < 13:
        sender.call()
    assert [poll.number for poll in sender.polls] == [*range(51, 63), 62]


@pytest.mark.parametrize("sealed", [0, 6, 12])
def test_it_stops_after_a_poll_with_a_mark(rig: Rig, sealed: int) -> None:
    expected = rig.logged()
    received = [Poll.decode(bytes(one.poll)).sent_us for one in expected]
    rig.live.seal(rig.build, [*received, TIME_MAX][sealed])
    sender = Sender(rig, options_of(rig))
    stop_after(rig.folder / "stop.json", 12)
    while sender.left is not None:
        sender.call()
    *sent, mark = sender.polls
    same(sent, expected)
    assert (mark.number, mark.is_last) == (12, True)
    assert {part.watermark_us for part in mark.parts} == {TIME_MIN}
    assert [part.stop for part in mark.parts] == [part.stop for part in sent[-1].parts]
    assert not any(poll.is_last for poll in sent)


def test_polls_have_the_epochs_of_the_run(tmp_path: Path) -> None:
    rig = lived(tmp_path, polls=4)
    rig.reader.step(is_marked=True)
    goes_on(rig, 2, random.Random(1))
    rig.reader.step(is_marked=True)
    goes_on(rig, 1, random.Random(2))
    epochs = [0, 0, 0, 0, 0, 1, 1, 1, 2]
    assert [poll.epoch for poll in rig.polls()] == epochs
    stop_after(rig.folder / "stop.json", 9, 2)
    sender = Sender(rig, options_of(rig))
    while sender.left is not None:
        sender.call()
    assert [poll.epoch for poll in sender.polls] == [*epochs, 2]
    assert [poll.number for poll in sender.polls if poll.is_marked] == [5, 8]
    # A run that goes on from the first savepoint counts from there, also in rejected records.
    rig.live.seal(rig.build, until=5)
    at = tuple(part.stop for part in sender.polls[4].parts)
    options = replace(options_of(rig), start=Cut(5, at), logged=5, epoch=1)
    sender = Sender(rig, options)
    while sender.left is not None:
        sender.call()
    assert [poll.epoch for poll in sender.polls] == [0, 0, 0, 1, 1]
    assert {epoch_of(batch) for batch in sender.rejected} <= {0, 1}


def test_it_stops_though_nothing_was_read(tmp_path: Path) -> None:
    rig = lived(tmp_path, polls=0)
    sender = Sender(rig, options_of(rig, number=7))
    assert sender.call() == 0
    stop_after(rig.folder / "stop.json", 0)
    sender.call()
    assert [(poll.number, poll.is_last) for poll in sender.polls] == [(7, True)]


def test_watermarks_of_polls_never_step_back(rig: Rig) -> None:
    sender = Sender(rig, options_of(rig))
    set_to: list[int] = []
    set_watermark = sender.watermark.set_watermark

    def noted(stamp: Timestamp) -> None:
        set_to.append(stamp.micros)
        set_watermark(stamp)

    sender.watermark.set_watermark = noted
    while len(sender.polls) < 12:
        sender.call()
    assert set_to == sorted(set(set_to))
    assert set_to[-1] == min(part.watermark_us for part in sender.polls[-1].parts)


def test_a_damaged_poll_is_said_again_when_it_is_asked_for_again(rig: Rig) -> None:
    path = min((rig.folder / "live" / "polls").iterdir())
    sender = Sender(rig, options_of(rig))
    sender.take(2)
    data = bytearray(path.read_bytes())
    starts = [n for n in range(0, len(data), 32) if data[n : n + 8] == data[:8]]
    data[starts[4] + 40] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(DamagedState, match=f"{path.name}, poll 5"):
            [sender.call() for _ in range(100)]
    assert len(sender.polls) >= 2
