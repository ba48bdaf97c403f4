"""Sealed polls, read again from any instant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pipelines.io.live.live_log_test import canonical, check, lived, sealed_polls
from tests.support.scripted_topics import PROJECT, Rig
from tidemill.features.contract import TIME_MAX
from tidemill.pipelines.io.live import seal
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll, PollPart


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rig, list[LoggedPoll]]:
    """A stream whose polls are sealed, and what was written down."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        patched.setattr(seal, "_SEALED_BYTES", 20_000)
        rig = lived(tmp_path_factory.mktemp("rig"), polls=20, files=1)
        expected = rig.logged()
        rig.live.seal(rig.build, TIME_MAX)
    return rig, expected


@pytest.fixture
def rig(made: tuple[Rig, list[LoggedPoll]]) -> Rig:
    return made[0]


@pytest.fixture
def expected(made: tuple[Rig, list[LoggedPoll]]) -> list[LoggedPoll]:
    return made[1]


def received(rig: Rig) -> list[int]:
    return [int(instant) for instant in rig.live.cuts().received_us]


def test_the_polls_from_an_instant_on_are_those_that_were_sent(
    rig: Rig, expected: list[LoggedPoll]
) -> None:
    instants = received(rig)
    for place, instant in enumerate(instants):
        for start_us, first in ((instant, place), (instant + 1, place + 1)):
            polls = sealed_polls(rig, start_us)
            assert polls.before == first
            assert polls.last_poll_number == len(instants) - first
            check(rig, expected, polls=polls)
    assert sealed_polls(rig, instants[-1] + 1).received_us is None
    assert sealed_polls(rig).received_us == instants[-1]


def test_the_polls_of_a_span_have_the_numbers_of_the_stream(
    rig: Rig, expected: list[LoggedPoll]
) -> None:
    instants = received(rig)
    polls = LivePolls(
        PROJECT, rig.log, rig.live, start_us=instants[3], stop_us=instants[9], polls=40
    )
    assert (polls.start.number, polls.before, polls.last_poll_number) == (40, 3, 46)
    at, numbers = polls.start, []
    while (found := polls.next_poll(at, TIME_MAX, 5)) is not None:
        poll, at = found
        sent = Poll.decode(bytes(expected[poll.number - 41 + 3].poll))
        assert canonical(Poll(sent.number, 5, poll.parts)) == canonical(
            Poll(sent.number, 5, sent.parts)
        )
        refused = expected[poll.number - 41 + 3].rejected
        assert polls.rejected(poll.number) == ([] if refused is None else [refused])
        numbers.append(poll.number)
    assert numbers == list(range(41, 47))
    assert at.positions == polls.stop
    rows = sum(part.stop - part.start for one in range(3, 9) for part in parts_of(expected[one]))
    assert polls.rows == rows
    assert polls.rows_of("paid") + polls.rows_of("asked") == rows


def parts_of(logged: LoggedPoll) -> tuple[PollPart, ...]:
    return Poll.decode(bytes(logged.poll)).parts


def test_rejected_records_may_be_asked_for_in_any_order(
    rig: Rig, expected: list[LoggedPoll]
) -> None:
    refused = {one.number: one.rejected for one in expected if one.rejected is not None}
    assert 3 < len(refused) < 20
    polls = sealed_polls(rig)
    for number in [*range(20, 0, -1), *range(1, 21), 5, 5, 20, 20, 1]:
        found = [refused[number]] if number in refused else []
        assert polls.rejected(number) == found


def test_partitions_of_files_have_ended(rig: Rig) -> None:
    polls = sealed_polls(rig)
    found = polls.next_poll(polls.start, TIME_MAX, 0)
    assert found is not None
    of_files = [part for part in found[0].parts if part.partition == 0]
    assert [(part.start, part.stop, part.watermark_us) for part in of_files] == [
        (5, 5, TIME_MAX)
    ] * 2


def test_the_log_of_the_build_alone_lacks_the_sealed_rows(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"has 0 rows, and \d+ are sealed: rows were lost"):
        LivePolls(PROJECT, Log(rig.build), rig.live, start_us=0, stop_us=TIME_MAX)
    with pytest.raises(Exception, match="no log of"):
        LivePolls(PROJECT, Log(tmp_path), rig.live, start_us=0, stop_us=TIME_MAX)
