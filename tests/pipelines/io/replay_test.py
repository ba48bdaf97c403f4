"""Replay: the log in order of arrival, in polls that depend only on positions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streaming_project import (
    ENGINES,
    PARTITIONS,
    PROJECT,
    START,
    Arrived,
    arrivals,
    collect,
    collected,
    expected_vectors,
    pipeline_on,
    random_rows,
    vectors_of,
    write_log,
)
from tests.support.streaming_project import PlainStream as Stream
from tidemill.features.contract import MINUTE, SECOND, TIME_MIN
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.log import POSITION, RECEIVED
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.poll_restriction import Restriction, _Provider, _Tracker
from tidemill.pipelines.io.replay import (
    Replay,
    ReplayLog,
    ReplayOptions,
)

STOP = START + 11 * MINUTE


def write(root: Path, seed: int = 1) -> list[Arrived]:
    arrived = arrivals(PROJECT, random_rows(seed), PARTITIONS, random.Random(seed))
    write_log(root, PROJECT, arrived)
    return arrived


def replay_log(root: Path, start_us: int = START - MINUTE, **options: Any) -> ReplayLog:
    return ReplayLog(PROJECT, ReplayOptions(root, start_us, STOP, **options))


def read_on(log: ReplayLog, at: Cut, due_us: int = STOP) -> list[tuple[Poll, Cut]]:
    out = []
    while (found := log.next_poll(at, due_us, sent_us=5)) is not None:
        out.append(found)
        at = found[1]
    return out


def end_of_rows(log: ReplayLog) -> Cut:
    return Cut(log.last_poll_number, log.stop)


def received_of(poll: Poll) -> list[int]:
    return [
        received
        for part in poll.parts
        if part.rows is not None
        for received in part.rows.column(RECEIVED).to_pylist()
    ]


@pytest.mark.parametrize("poll_rows", [1, 7, 10_000])
def test_rows_come_in_order_of_arrival_across_all_partitions(
    poll_rows: int, tmp_path: Path
) -> None:
    arrived = write(tmp_path)
    log = replay_log(tmp_path, poll_rows=poll_rows)
    polls = [poll for poll, _ in read_on(log, log.start)]
    newest = TIME_MIN
    for poll in polls:
        received = received_of(poll)
        assert min(received) >= newest
        newest = max(received)
    positions = {
        (part.source, part.partition): [
            position
            for poll in polls
            for mine in poll.parts
            if (mine.source, mine.partition) == (part.source, part.partition)
            and mine.rows is not None
            for position in mine.rows.column(POSITION).to_pylist()
        ]
        for part in arrived
    }
    for part in arrived:
        assert positions[part.source, part.partition] == list(range(len(part.rows)))
    assert log.rows == sum(len(part.rows) for part in arrived)
    assert log.rows_of("hails") == 60


def test_polls_end_at_multiples_of_poll_rows_of_all_rows_and_are_numbered(tmp_path: Path) -> None:
    """Counted from the beginning of the log, so that it does not matter where a replay starts."""
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=10)
    found = read_on(log, log.start)
    rows = sum(log.stop)
    assert rows % 10
    assert [sum(at.positions) for _, at in found] == [*range(10, rows, 10), rows]
    assert [poll.number for poll, _ in found] == [at.number for _, at in found]
    assert [at.number for _, at in found] == list(range(1, len(found) + 1))
    assert log.last_poll_number == len(found)
    assert log.final_poll(found[-1][1], 0).number == len(found) + 1
    later = replay_log(tmp_path, START + 3 * MINUTE, poll_rows=10, polls=7)
    assert sum(later.start.positions) % 10
    again = read_on(later, later.start)
    assert [sum(at.positions) for _, at in again] == [
        sum(at.positions) for _, at in found[-len(again) :]
    ]
    assert again[0][0].number == 8


@pytest.mark.parametrize("step_us", [1, 250_000, 7 * SECOND])
def test_the_clock_decides_only_when_a_poll_is_sent(step_us: int, tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=9)
    expected = read_on(log, log.start)
    (_first, *_), at, due, found = expected, log.start, START - MINUTE, []
    assert log.next_poll(at, due, 5) is None
    while at.positions != log.stop:
        due = max(received_of(expected[len(found)][0])) + 1 if step_us == 1 else due + step_us
        while (some := log.next_poll(at, due, 5)) is not None:
            assert max(received_of(some[0])) < due
            found.append(some)
            at = some[1]
    assert [poll.encode() for poll, _ in found] == [poll.encode() for poll, _ in expected]


def test_a_poll_may_separate_rows_received_at_one_microsecond(tmp_path: Path) -> None:
    """Here are three instants only: the watermark waits for all rows of an instant."""
    rows = random_rows(4, trips=40, hails=20)
    arrived = []
    for part in arrivals(PROJECT, rows, PARTITIONS, random.Random(4)):
        received = [
            START + (1 + (r - START) // (4 * MINUTE)) * 4 * MINUTE for r in part.received_us
        ]
        arrived.append(Arrived(part.source, part.partition, part.rows, received))
    write_log(tmp_path, PROJECT, arrived)
    log = replay_log(tmp_path, poll_rows=3)
    polls = [poll for poll, _ in read_on(log, log.start)]
    assert max(len(received_of(poll)) for poll in polls) == 3
    stops = {len(set(received_of(poll))) for poll in polls}
    assert 1 in stops
    for poll in polls:
        for part, mine in zip(poll.parts, arrived, strict=True):
            bound = PROJECT.definition(part.source).out_of_orderness_us
            unread = mine.received_us[part.stop :]
            assert not unread or part.watermark_us <= max(
                unread[0] - bound, max((r["at"] for r in mine.rows[: part.stop]), default=0) - bound
            )


@pytest.mark.parametrize("requests_first", [True, False])
def test_rows_of_one_microsecond_come_in_the_declared_order(
    requests_first: bool, tmp_path: Path
) -> None:
    rows = random_rows(4, trips=20, hails=10)
    arrived = [
        Arrived(part.source, part.partition, part.rows, [START] * len(part.rows))
        for part in arrivals(PROJECT, rows, PARTITIONS, random.Random(4))
    ]
    write_log(tmp_path, PROJECT, arrived)
    log = replay_log(tmp_path, poll_rows=1, requests_first=requests_first)
    is_request = []
    for poll, _ in read_on(log, log.start):
        (part,) = (part for part in poll.parts if part.rows is not None)
        is_request.append(part.source == PROJECT.request.name)
    assert is_request == sorted(is_request, reverse=requests_first)
    assert 0 < sum(is_request) < len(is_request)


def test_recorded_cuts_end_polls_too(tmp_path: Path) -> None:
    """As a killed run with a savepoint there has sent them."""
    write(tmp_path)
    savepoint = START + 4 * MINUTE
    stopped = ReplayLog(PROJECT, ReplayOptions(tmp_path, START - MINUTE, savepoint, 9, ends=False))
    before = read_on(stopped, stopped.start)
    cut = Cut(stopped.last_poll_number, stopped.stop)
    assert before[-1][1] == cut
    whole = replay_log(tmp_path, poll_rows=9, cuts=(cut,))
    found = read_on(whole, whole.start)
    assert [p.encode() for p, _ in found[: len(before)]] == [p.encode() for p, _ in before]
    # The polls after it end at multiples again, as do those of a run that resumes there.
    rest = replay_log(tmp_path, savepoint, poll_rows=9, polls=cut.number, cuts=(cut,))
    assert [p.encode() for p, _ in found[len(before) :]] == [
        p.encode() for p, _ in read_on(rest, rest.start)
    ]
    elsewhere = Cut(cut.number, (cut.positions[0] - 1, cut.positions[1] + 1, *cut.positions[2:]))
    with pytest.raises(StateMismatch, match="it was written again"):
        replay_log(tmp_path, poll_rows=9, cuts=(elsewhere,))


def test_the_same_positions_give_the_same_polls(tmp_path: Path) -> None:
    """A restart from any vector of positions gives the same polls."""
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=9)
    polls = read_on(log, log.start)
    for number, (_, at) in enumerate(polls):
        again = read_on(replay_log(tmp_path, poll_rows=9), at)
        assert [p.encode() for p, _ in again] == [p.encode() for p, _ in polls[number + 1 :]]


def test_successive_polls_join_without_a_gap(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=9)
    at = log.start
    for poll, after in read_on(log, log.start):
        assert tuple(part.start for part in poll.parts) == at.positions
        assert tuple(part.stop for part in poll.parts) == after.positions
        assert [(part.source, part.partition) for part in poll.parts] == [
            ("trips", 0), ("trips", 1), ("rain", 0), ("hails", 0), ("hails", 1)
        ]  # fmt: skip
        at = after
    assert at.positions == log.stop


def test_a_watermark_is_below_every_row_that_still_comes(tmp_path: Path) -> None:
    arrived = write(tmp_path)
    log = replay_log(tmp_path, poll_rows=5)
    marks = [TIME_MIN] * len(arrived)
    for poll, _ in read_on(log, log.start):
        for index, (part, mine) in enumerate(zip(poll.parts, arrived, strict=True)):
            later = [row["at"] for row in mine.rows[part.stop :]]
            assert all(part.watermark_us <= time for time in later)
            assert part.watermark_us >= marks[index]
            marks[index] = part.watermark_us
    # The watermark of a partition without rows advances with the others.
    assert min(marks) > START + 9 * MINUTE


def test_rows_received_before_the_start_or_after_the_stop_are_not_replayed(
    tmp_path: Path,
) -> None:
    arrived = write(tmp_path)
    start, stop = START + 3 * MINUTE, START + 6 * MINUTE
    log = ReplayLog(PROJECT, ReplayOptions(tmp_path, start, stop, poll_rows=10))
    received = [r for poll, _ in read_on(log, log.start, stop) for r in received_of(poll)]
    wanted = [r for part in arrived for r in part.received_us if start <= r < stop]
    assert sorted(received) == sorted(wanted)
    assert log.rows == len(wanted)
    assert log.start.positions == tuple(
        sum(r < start for r in part.received_us) for part in arrived
    )


def test_with_a_speed_rows_are_due_when_the_clock_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=10, speed=60.0)
    first = START - MINUTE
    assert log.due_us(0.0) == first
    assert log.due_us(2.5) == first + 150 * SECOND
    assert log.due_us(1e9) == STOP
    assert log.next_poll(log.start, first, 0) is None
    due = log.due_us(4.0)
    polls = read_on(log, log.start, due)
    received = [r for poll, _ in polls for r in received_of(poll)]
    assert received
    assert max(received) < due
    assert log.next_poll(polls[-1][1], due, 0) is None
    (waits, *_), at = read_on(log, polls[-1][1])[0], polls[-1][1]
    assert max(received_of(waits)) >= due
    rest = [r for poll, _ in read_on(log, at) for r in received_of(poll)]
    assert len(received) + len(rest) == log.rows


def test_without_a_speed_all_is_due_at_once(tmp_path: Path) -> None:
    write(tmp_path)
    assert replay_log(tmp_path).due_us(0.0) == STOP


def test_the_final_poll_is_past_the_declared_end_and_every_row(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path)
    assert {part.watermark_us for part in log.final_poll(end_of_rows(log), 0).parts} == {STOP}
    assert all(
        p.rows is None and p.start == p.stop for p in log.final_poll(end_of_rows(log), 0).parts
    )


def test_a_request_ahead_of_its_receipt_is_answered_at_the_end(tmp_path: Path) -> None:
    """Also if the row is past the declared end."""
    rows = random_rows(2, trips=30, hails=10)
    asked = max(rows["hails"], key=lambda row: row["at"])
    asked["at"] = STOP + MINUTE
    arrived = []
    for part in arrivals(PROJECT, rows, PARTITIONS, random.Random(2)):
        received = [min(r, STOP - 1) for r in part.received_us]
        arrived.append(Arrived(part.source, part.partition, part.rows, received))
    write_log(tmp_path, PROJECT, arrived)
    log = replay_log(tmp_path)
    polls = read_on(log, log.start)
    stream = Stream(PROJECT, 1, PARTITIONS)
    stream.run([*(poll for poll, _ in polls), log.final_poll(end_of_rows(log), 0)])
    found = vectors_of(PROJECT, stream.answered)
    assert found == expected_vectors(PROJECT, rows)
    assert asked["hail"] in found


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_replayed_answers_are_those_of_batch(
    tmp_path_factory: pytest.TempPathFactory, seed: int, poll_rows: int
) -> None:
    root = tmp_path_factory.mktemp("replay")
    rows = random_rows(seed, trips=40, hails=20)
    write_log(root, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(seed)))
    log = replay_log(root, poll_rows=poll_rows)
    stream = Stream(PROJECT, 2, PARTITIONS)
    stream.run([poll for poll, _ in read_on(log, log.start)])
    stream.run([log.final_poll(end_of_rows(log), 0)])
    assert vectors_of(PROJECT, stream.answered) == expected_vectors(PROJECT, rows)
    late = [operator.counters.late for operator in stream.operators.values()]
    assert sum(late) == 0


# The source.


def test_a_tracker_refuses_to_be_split_but_for_a_checkpoint() -> None:
    tracker = _Tracker(Restriction(Cut(0, (0, 0)), False))
    assert tracker.try_claim(Restriction(Cut(1, (3, 1)), False))
    assert tracker.try_split(0.5) is None
    assert tracker.current_restriction() == Restriction(Cut(1, (3, 1)), False)
    at = Restriction(Cut(1, (3, 1)))
    assert tracker.try_split(0) == (at._replace(stopped=True), at)
    tracker.check_done()
    assert not tracker.try_claim(Restriction(Cut(2, (4, 1)), False))
    assert tracker.try_split(0) is None


def test_a_tracker_that_was_left_in_the_middle_is_an_error() -> None:
    tracker = _Provider().create_tracker(
        _Provider().initial_restriction(b"[[0, [0, 0]], false, false]")
    )
    tracker.try_claim(Restriction(Cut(1, (3, 1)), False))
    assert not tracker.is_bounded()
    with pytest.raises(
        ValueError, match=r"stopped at Cut\(number=1, positions=\(3, 1\)\) without claiming its end"
    ):
        tracker.check_done()
    assert tracker.try_claim(Restriction(Cut(2, (5, 2)), True))
    tracker.check_done()
    assert not tracker.try_claim(Restriction(Cut(2, (5, 2)), False))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_source_gives_all_polls_and_ends(engine: str, tmp_path: Path) -> None:
    write(tmp_path)
    options = ReplayOptions(tmp_path, START - MINUTE, STOP, poll_rows=40)
    log = ReplayLog(PROJECT, options)
    expected = [poll for poll, _ in read_on(log, log.start)] + [log.final_poll(end_of_rows(log), 0)]
    pipeline, choice = pipeline_on(engine, streaming=True)
    collect({"polls": pipeline | Replay(PROJECT, options)})
    run(pipeline, choice)
    places = [_places(poll) for poll in expected]
    assert sorted(map(_places, collected("polls"))) == places


def _places(poll: Poll) -> tuple[Any, ...]:
    return poll.number, [(p.start, p.stop, p.watermark_us) for p in poll.parts]
