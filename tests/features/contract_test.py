"""The contract of time, rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.features.contract import (
    DAY,
    EARLIEST_EVENT,
    HOUR,
    LATEST_EVENT,
    LONGEST_DURATION,
    MINUTE,
    SECOND,
    TIME_MIN,
    Rank,
    ReadStatus,
    accept,
    as_of,
    covers,
    event_change_point,
    expiry,
    format_duration,
    hop_index,
    label_holds,
    parse_duration,
    read_status,
    window_tail,
)
from tidemill.features.errors import DefinitionError

times = st.integers(EARLIEST_EVENT, LATEST_EVENT) | st.integers(-50, 50)
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


def test_event_at_request_time_is_not_seen() -> None:
    assert not covers(100, 100, 10, 5)
    assert covers(99, 100, 10, 5)


def test_the_tail_stands_on_the_hop_grid() -> None:
    assert window_tail(103, 10, 5) == 90
    assert covers(90, 103, 10, 5)
    assert not covers(89, 103, 10, 5)
    assert window_tail(-3, 10, 5) == -15  # floors, before the epoch too


@given(times, times, hops, widths)
@example(event_us=90, as_of_us=105, hop_us=5, hops_wide=2)
def test_a_window_holds_its_length_and_less_than_a_hop_more(
    event_us: int, as_of_us: int, hop_us: int, hops_wide: int
) -> None:
    window_us = hops_wide * hop_us
    seen = covers(event_us, as_of_us, window_us, hop_us)
    if as_of_us - window_us <= event_us < as_of_us:
        assert seen
    if seen:
        assert as_of_us - window_us - hop_us < event_us < as_of_us
    assert window_tail(as_of_us, window_us, hop_us) % hop_us == 0


@given(times, hops, widths, st.integers(-100, 100))
def test_an_event_counts_from_its_change_point_to_the_expiry_of_its_tile(
    event_us: int, hop_us: int, hops_wide: int, step: int
) -> None:
    window_us = hops_wide * hop_us
    first = event_change_point(event_us)
    end = expiry(hop_index(event_us, hop_us), window_us, hop_us)
    for instant in (first - 1, first, end - 1, end, first + step, end + step):
        assert covers(event_us, instant, window_us, hop_us) == (first <= instant < end)
    assert end % hop_us == 0


def test_a_late_event_counts_from_the_frontier_at_which_it_is_applied() -> None:
    assert event_change_point(10) == 11
    assert event_change_point(10, frontier_us=11) == 11
    assert event_change_point(10, frontier_us=50) == 50


def test_an_answer_is_for_its_request_time_or_the_frontier_if_that_is_later() -> None:
    assert as_of(100, frontier_us=90) == 100
    assert as_of(100, frontier_us=130) == 130


def test_at_equal_times_a_boundary_comes_before_a_request_and_that_before_an_event() -> None:
    assert sorted([Rank.EVENT, Rank.REQUEST, Rank.HOP_BOUNDARY]) == [
        Rank.HOP_BOUNDARY,
        Rank.REQUEST,
        Rank.EVENT,
    ]


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


# Reading and labels


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


def test_a_label_is_after_its_request_and_within_the_horizon() -> None:
    assert not label_holds(100, 100, 10)
    assert label_holds(100, 101, 10)
    assert label_holds(100, 110, 10)
    assert not label_holds(100, 111, 10)
