"""What a view waits for, and whether it has caught up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
from tidemill.pipelines.status.standing import Cause, PartitionStanding, State, Wait
from tidemill.pipelines.status.waits import Declared, Place, is_caught_up, waits_for

NOW = 1_000 * SECOND
DECLARED = {"paid": Declared(SECOND, 2 * SECOND), "asked": Declared(0, 2 * SECOND)}
READ = PartitionStanding(1, 100, 100, 0)


def place(
    source: str = "paid",
    partition: int = 1,
    behind_s: float = 3,
    standing: PartitionStanding | None = READ,
    read_behind_s: float | None = None,
) -> Place:
    """Return a partition whose watermark is so far behind the clock."""
    at = NOW - int(behind_s * SECOND)
    read = at if read_behind_s is None else NOW - int(read_behind_s * SECOND)
    return Place(source, partition, at, read, standing)


ENDED = Place("paid", 0, TIME_MAX)


def waits(
    places: list[Place],
    *,
    state: State = State.RUNNING,
    away: dict[str, str] | None = None,
    caught_up: bool | None = False,
) -> Wait:
    return waits_for(
        state, places, DECLARED, is_caught_up=caught_up, away=away or {}, polls_ahead=7
    )


def test_the_partition_with_the_least_watermark_is_named() -> None:
    found = waits([place(behind_s=2), place("asked", 3, behind_s=5), ENDED])
    assert (found.source, found.partition) == ("asked", 3)
    assert found.said.startswith("asked/3: ")


@pytest.mark.parametrize(
    ("found", "cause", "said"),
    [
        (place(standing=replace(READ, end=12_100, lag=12_000)), Cause.BACKLOG, "12,000 messages"),
        (place(standing=replace(READ, end=101, lag=1)), Cause.BACKLOG, "1 message to read"),
        (
            place(standing=replace(READ, end=105, lag=5, is_open=True)),
            Cause.TRANSACTION,
            "an open transaction",
        ),
        (place(behind_s=90, read_behind_s=3), Cause.OPERATORS, "(7 polls ahead)"),
        (
            place(standing=replace(READ, is_quiet=True)),
            Cause.QUIET,
            "silent, so its time is 2s (quiet) and 1s (disorder) behind the clock",
        ),
        (place(), Cause.DISORDER, "its newest message; 1s of disorder"),
        (place("asked"), Cause.DISORDER, "its newest message; 0s of disorder"),
        (replace(place(), watermark_us=TIME_MIN, read_us=TIME_MIN), Cause.QUIET, "no message yet"),
        (place(standing=None), Cause.REPLAY, "being replayed"),
    ],
)
def test_the_reason_is_said(found: Place, cause: Cause, said: str) -> None:
    wait = waits([found])
    assert wait.cause is cause
    assert said in wait.said


def test_a_broker_that_is_away_is_the_reason_before_any_other() -> None:
    behind = place(standing=replace(READ, end=12_100, lag=12_000))
    assert waits([behind], away={"paid": "a:1: nobody listens"}).cause is Cause.BROKER
    assert waits([behind], away={"asked": "a:1: nobody listens"}).cause is Cause.BACKLOG


def test_a_few_messages_on_their_way_are_no_backlog_of_a_view_that_has_caught_up() -> None:
    flowing = place(standing=replace(READ, end=104, lag=4))
    assert waits([flowing], caught_up=True).cause is Cause.DISORDER


def test_silence_under_the_clock_of_messages_is_said_otherwise() -> None:
    declared = {"paid": Declared(SECOND, 2 * SECOND, is_wall=False)}
    silent = place(standing=replace(READ, is_quiet=True))
    found = waits_for(State.RUNNING, [silent], declared, is_caught_up=True, away={}, polls_ahead=0)
    assert "follows the newest message" in found.said


@pytest.mark.parametrize("state", [State.STOPPED, State.KILLED, State.FAILED, State.NEVER])
def test_a_view_of_a_stream_that_does_not_run_waits_for_it(state: State) -> None:
    assert waits([place()], state=state).cause is Cause.STOPPED


def test_before_and_after_the_partitions() -> None:
    assert waits([], state=State.STARTING).cause is Cause.STARTING
    assert waits([ENDED]).cause is Cause.ENDED


@pytest.mark.parametrize(("behind_s", "expected"), [(3, True), (8, True), (8.1, False)])
def test_a_view_may_be_as_far_behind_as_its_sources_must_be(
    behind_s: float, expected: bool
) -> None:
    places = [place(behind_s=behind_s), place("asked")]
    frontier = min(one.watermark_us for one in places)
    assert is_caught_up(frontier, places, DECLARED, NOW) is expected


def test_under_the_clock_of_messages_all_must_be_read_and_computed() -> None:
    declared = {"paid": Declared(SECOND, is_wall=False)}
    old = place(behind_s=10_000)
    assert is_caught_up(old.watermark_us, [old], declared, NOW) is True
    unread = place(standing=replace(READ, lag=1))
    assert is_caught_up(old.watermark_us, [unread], declared, NOW) is False
    unknown = place(standing=replace(READ, lag=None))
    assert is_caught_up(old.watermark_us, [unknown], declared, NOW) is None
    ahead = place(behind_s=10_000, read_behind_s=9_000)
    assert is_caught_up(old.watermark_us, [ahead], declared, NOW) is False


def test_whether_it_has_caught_up_before_it_begins_and_when_all_has_ended() -> None:
    assert is_caught_up(None, [], DECLARED, NOW) is None
    assert is_caught_up(None, [place()], DECLARED, NOW) is False
    assert is_caught_up(TIME_MAX, [ENDED], DECLARED, NOW) is True
    assert is_caught_up(5, [place(standing=None)], DECLARED, NOW) is False
