"""The contract of time, rule by rule; rules about values are tested on the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill import Entity, EventStream, FeatureView, Request, count
from tidemill.features.contract import (
    DAY,
    EARLIEST_EVENT,
    HOUR,
    LATEST_EVENT,
    LONGEST_DURATION,
    MINUTE,
    SECOND,
    TIME_MIN,
    ReadStatus,
    accept,
    format_duration,
    moment_of,
    parse_duration,
    read_status,
    window_tail,
)
from tidemill.features.errors import DefinitionError
from tidemill.testing import ShardPlayer, features_at

# A few hops before and after these are still in the years 1 to 9999.
times = st.integers(EARLIEST_EVENT + 20 * DAY, LATEST_EVENT - 20 * DAY) | st.integers(-50, 50)
hops = st.integers(1, 10) | st.sampled_from((MINUTE, HOUR, DAY))
widths = st.integers(1, 6)


# Durations


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5m", 5 * MINUTE),
        ("36h", 36 * HOUR),
        ("1d12h", 36 * HOUR),
        ("2w", 14 * DAY),
        ("250ms", 250_000),
        ("7us", 7),
        ("0s", 0),
        ("1h30m15s", 5415 * SECOND),
    ],
)
def test_durations_are_digits_and_units(text: str, wanted: int) -> None:
    assert parse_duration(text) == wanted


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5M", "-5m", "1.5h", "5m!", "1y", "5min"])
def test_a_text_that_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(DefinitionError, match="'5m', '36h' or '1d12h'") as caught:
        parse_duration(text, "the hop")
    assert str(caught.value).startswith(f"the hop {text!r}")


def test_a_number_is_no_duration_because_it_has_no_unit() -> None:
    with pytest.raises(DefinitionError, match=r"found 5 \(int\); write the unit"):
        parse_duration(5)  # type: ignore[arg-type]


def test_a_duration_has_a_bound() -> None:
    assert parse_duration(f"{LONGEST_DURATION}us") == LONGEST_DURATION
    assert parse_duration("0" * 5_000 + "7m") == 7 * MINUTE
    for text in (f"{LONGEST_DURATION + 1}us", "400000000d", "9" * 5_000 + "w", "11574074d1w"):
        with pytest.raises(
            DefinitionError, match=r"the hop '.*is too long; take at most 11574074d"
        ):
            parse_duration(text, "the hop")


@pytest.mark.parametrize("text", ["٣d", "3d\n", "\ud800d"])
def test_digits_are_those_of_ascii(text: str) -> None:
    with pytest.raises(DefinitionError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, LONGEST_DURATION))
def test_what_is_formatted_is_parsed_back(duration_us: int) -> None:
    assert parse_duration(format_duration(duration_us)) == duration_us


@pytest.mark.parametrize(
    ("duration_us", "text"),
    [(0, "0us"), (7 * DAY, "1w"), (36 * HOUR, "36h"), (90 * SECOND, "90s"), (1500, "1500us")],
)
def test_the_largest_unit_without_a_remainder_is_written(duration_us: int, text: str) -> None:
    assert format_duration(duration_us) == text


# Windows

TICKS = EventStream(
    "ticks",
    schema={"at": "timestamp", "id": "int64", "key": "string"},
    event_time="at",
    event_id="id",
    allowed_lateness="1d",
)
ASKED = Request(
    "asked",
    schema={"at": "timestamp", "id": "int64", "key": "string"},
    request_time="at",
    request_id="id",
)


def ticks_in(window_us: int, hop_us: int) -> FeatureView:
    return FeatureView(
        "seen",
        entity=Entity("key"),
        stream=TICKS,
        hop=f"{hop_us}us",
        features={"ticks": count(over=f"{window_us}us")},
    )


def row(at: int) -> dict[str, object]:
    return {"at": at, "id": 0, "key": "a"}


def counts(event_us: int, instants: list[int], window_us: int, hop_us: int) -> list[bool]:
    """Whether an event counts as of each instant."""
    view = ticks_in(window_us, hop_us)
    found = features_at(view, {"ticks": [row(event_us)]}, at=instants, keys=["a"])
    return [value == 1 for value in found["seen__ticks"].to_pylist()]


def test_event_at_request_time_is_not_seen() -> None:
    assert counts(100, [100], 10, 5) == [False]
    assert counts(99, [100], 10, 5) == [True]


def test_the_tail_stands_on_the_hop_grid() -> None:
    assert window_tail(103, 10, 5) == 90
    assert counts(90, [103], 10, 5) == [True]
    assert counts(89, [103], 10, 5) == [False]
    assert window_tail(-3, 10, 5) == -15  # floors, before the epoch too


@given(times, hops, widths, st.integers(-3, 9), st.integers(-50, 50))
@example(event_us=90, hop_us=5, hops_wide=2, hops_later=3, later_us=0)
def test_a_window_holds_its_length_and_less_than_a_hop_more(
    event_us: int, hop_us: int, hops_wide: int, hops_later: int, later_us: int
) -> None:
    window_us = hops_wide * hop_us
    as_of_us = event_us + hops_later * hop_us + later_us
    tail_us = window_tail(as_of_us, window_us, hop_us)
    (seen,) = counts(event_us, [as_of_us], window_us, hop_us)
    assert seen == (tail_us <= event_us < as_of_us)
    if as_of_us - window_us <= event_us < as_of_us:
        assert seen
    if seen:
        assert as_of_us - window_us - hop_us < event_us < as_of_us
    assert tail_us % hop_us == 0


@given(times, hops, widths, st.integers(-100, 100))
def test_an_event_counts_from_its_change_point_to_the_expiry_of_its_tile(
    event_us: int, hop_us: int, hops_wide: int, step: int
) -> None:
    window_us = hops_wide * hop_us
    first = event_us + 1
    end = (event_us // hop_us + 1) * hop_us + window_us
    instants = [first - 1, first, end - 1, end, first + step, end + step]
    assert counts(event_us, instants, window_us, hop_us) == [first <= i < end for i in instants]


def test_what_is_late_counts_and_is_answered_from_the_frontier_at_which_it_is_applied() -> None:
    player = ShardPlayer(ticks_in(100, 10), ASKED)
    player.receive(player.events(watermark=50), player.requests(watermark=50))
    (late,) = player.receive(
        player.events([row(10)], watermark=60), player.requests([row(20)], watermark=60)
    )
    assert late.publications["event_timestamp"].to_pylist() == [moment_of(50)]
    assert late.answers["as_of"].to_pylist() == [moment_of(50)]
    assert late.answers["seen__ticks"].to_pylist() == [1]


def test_at_equal_times_a_boundary_comes_before_a_request_and_that_before_an_event() -> None:
    """As of 20 the window no longer holds the event at 5, and not yet the event at 20."""
    player = ShardPlayer(ticks_in(10, 10), ASKED)
    (found,) = player.receive(
        player.events([row(5), {**row(20), "id": 1}], watermark=30),
        player.requests([row(19), {**row(20), "id": 1}, {**row(21), "id": 2}], watermark=30),
    )
    assert found.answers["seen__ticks"].to_pylist() == [1, 0, 1]
    assert found.answers["as_of"].to_pylist() == [moment_of(at) for at in (19, 20, 21)]


# Acceptance


def accepted_one_by_one(
    rows: list[tuple[int, int]], highest: int, tolerance: int, ahead: int
) -> tuple[list[str], int]:
    """Decide as the contract's text does: each row by the highest accepted time before it."""
    decisions = []
    for time_us, received_us in rows:
        if time_us > received_us + ahead:
            decisions.append("ahead")
        elif time_us < highest - tolerance:
            decisions.append("too late")
        else:
            decisions.append("accepted")
            highest = max(highest, time_us)
    return decisions, highest


logs = st.lists(st.tuples(st.integers(-20, 60), st.integers(0, 30)), max_size=20)


@given(logs, st.integers(-10, 40) | st.just(TIME_MIN), st.integers(0, 15), st.integers(0, 15))
def test_acceptance_is_by_the_highest_accepted_time_before(
    rows: list[tuple[int, int]], highest: int, tolerance: int, ahead: int
) -> None:
    times_us = np.array([time_us for time_us, _ in rows], np.int64)
    received = np.array([received_us for _, received_us in rows], np.int64)
    found = accept(times_us, received, highest, tolerance, ahead)
    decisions, last = accepted_one_by_one(rows, highest, tolerance, ahead)
    assert found.highest_us == last
    assert found.accepted.tolist() == [d == "accepted" for d in decisions]
    assert found.too_late.tolist() == [d == "too late" for d in decisions]
    assert found.ahead.tolist() == [d == "ahead" for d in decisions]


@given(logs, st.integers(0, 20), st.integers(0, 15), st.integers(0, 15))
def test_acceptance_does_not_depend_on_how_the_log_is_sliced(
    rows: list[tuple[int, int]], at: int, tolerance: int, ahead: int
) -> None:
    times_us = np.array([time_us for time_us, _ in rows], np.int64)
    received = np.array([received_us for _, received_us in rows], np.int64)
    whole = accept(times_us, received, TIME_MIN, tolerance, ahead)
    first = accept(times_us[:at], received[:at], TIME_MIN, tolerance, ahead)
    then = accept(times_us[at:], received[at:], first.highest_us, tolerance, ahead)
    assert [*first.accepted, *then.accepted] == whole.accepted.tolist()
    assert then.highest_us == whole.highest_us


def test_a_row_that_is_ahead_moves_no_watermark() -> None:
    found = accept(np.array([10, 1000, 9]), np.array([10, 10, 10]), TIME_MIN, 0, 5)
    assert found.ahead.tolist() == [False, True, False]
    assert found.too_late.tolist() == [False, False, True]
    assert found.highest_us == 10


def test_without_a_time_of_receipt_nothing_is_ahead() -> None:
    found = accept(np.array([10, 10**15]), None, TIME_MIN, 0, 0)
    assert found.accepted.all()


def test_exactly_the_tolerance_below_the_highest_is_still_accepted() -> None:
    assert accept(np.array([90, 89]), None, 100, 10, 0).accepted.tolist() == [True, False]


# Reading


@pytest.mark.parametrize(
    ("clock", "frontier", "valid_until", "wanted"),
    [
        (100, 100, 200, ReadStatus.PRESENT),
        (110, 100, 200, ReadStatus.PRESENT),
        (111, 100, 200, ReadStatus.OUTSIDE_MAX_AGE),
        (100, 100, 101, ReadStatus.PRESENT),
        (100, 100, 100, ReadStatus.OUTSIDE_MAX_AGE),
    ],
)
def test_a_row_is_present_while_the_frontier_is_fresh_and_the_row_holds(
    clock: int, frontier: int, valid_until: int, wanted: ReadStatus
) -> None:
    assert read_status(clock, frontier, valid_until, max_staleness_us=10) == wanted
