"""Replay: the log in order of arrival, in polls that depend only on positions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import apache_beam as beam
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
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.io.log import POSITION, RECEIVED
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import (
    Positions,
    Replay,
    ReplayLog,
    ReplayOptions,
    _Provider,
    _Tracker,
)

STOP = START + 11 * MINUTE


def write(root: Path, seed: int = 1) -> list[Arrived]:
    arrived = arrivals(PROJECT, random_rows(seed), PARTITIONS, random.Random(seed))
    write_log(root, PROJECT, arrived)
    return arrived


def replay_log(root: Path, start_us: int = START - MINUTE, **options: Any) -> ReplayLog:
    return ReplayLog(PROJECT, ReplayOptions(root, start_us, STOP, **options))


def read_on(log: ReplayLog, at: Positions, due_us: int = STOP) -> list[tuple[Poll, Positions]]:
    out = []
    while (found := log.next_poll(at, due_us, sent_us=5)) is not None:
        out.append(found)
        at = found[1]
    return out


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
        # Strictly later: a poll never cuts between rows received at one microsecond.
        assert min(received) > newest
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


def test_a_poll_reads_about_poll_rows_rows(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=10)
    sizes = [len(received_of(poll)) for poll, _ in read_on(log, log.start)]
    assert all(10 <= size < 14 for size in sizes[:-1])


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
        assert tuple(part.start for part in poll.parts) == at
        assert tuple(part.stop for part in poll.parts) == after
        assert [(part.source, part.partition) for part in poll.parts] == [
            ("trips", 0), ("trips", 1), ("rain", 0), ("hails", 0), ("hails", 1)
        ]  # fmt: skip
        at = after
    assert at == log.stop


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
    assert log.start == tuple(sum(r < start for r in part.received_us) for part in arrived)


def test_with_a_speed_rows_are_due_when_the_clock_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path, poll_rows=50, speed=60.0)
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
    at = polls[-1][1]
    rest = [r for poll, _ in read_on(log, at) for r in received_of(poll)]
    assert min(rest) >= due
    assert len(received) + len(rest) == log.rows


def test_without_a_speed_all_is_due_at_once(tmp_path: Path) -> None:
    write(tmp_path)
    assert replay_log(tmp_path).due_us(0.0) == STOP


def test_the_final_poll_is_past_the_declared_end_and_every_row(tmp_path: Path) -> None:
    write(tmp_path)
    log = replay_log(tmp_path)
    assert {part.watermark_us for part in log.final_poll(log.stop, 0).parts} == {STOP}
    assert all(p.rows is None and p.start == p.stop for p in log.final_poll(log.stop, 0).parts)


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
    stream.run([*(poll for poll, _ in polls), log.final_poll(log.stop, 0)])
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
    stream.run([log.final_poll(log.stop, 0)])
    assert vectors_of(PROJECT, stream.answered) == expected_vectors(PROJECT, rows)
    late = [operator.counters.late for operator in stream.operators.values()]
    assert sum(late) == 0


# The source.


def test_a_tracker_refuses_to_be_split_but_for_a_checkpoint() -> None:
    tracker = _Tracker(((0, 0), False))
    assert tracker.try_claim(((3, 1), False))
    assert tracker.try_split(0.5) is None
    assert tracker.current_restriction() == ((3, 1), False)
    assert tracker.try_split(0) == (((3, 1), True), ((3, 1), False))
    tracker.check_done()
    assert not tracker.try_claim(((4, 1), False))
    assert tracker.try_split(0) is None


def test_a_tracker_that_was_left_in_the_middle_is_an_error() -> None:
    tracker = _Provider().create_tracker(_Provider().initial_restriction(b"[[0, 0], false]"))
    tracker.try_claim(((3, 1), False))
    assert not tracker.is_bounded()
    with pytest.raises(ValueError, match=r"stopped at \(3, 1\) without claiming its end"):
        tracker.check_done()
    assert tracker.try_claim(((5, 2), True))
    tracker.check_done()
    assert not tracker.try_claim(((5, 2), False))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_source_gives_all_polls_and_ends(engine: str, tmp_path: Path) -> None:
    write(tmp_path)
    options = ReplayOptions(tmp_path, START - MINUTE, STOP, poll_rows=40)
    log = ReplayLog(PROJECT, options)
    expected = [poll for poll, _ in read_on(log, log.start)] + [log.final_poll(log.stop, 0)]
    pipeline, choice = pipeline_on(engine, streaming=True)
    collect({"polls": pipeline | Replay(PROJECT, options) | beam.Map(Poll.decode)})
    run(pipeline, choice)
    places = [[(p.start, p.stop, p.watermark_us) for p in poll.parts] for poll in expected]
    found = [[(p.start, p.stop, p.watermark_us) for p in poll.parts]
             for poll in collected("polls")]  # fmt: skip
    assert sorted(found) == sorted(places)
