"""Eager mode's instants, compared with a specification that goes row by row."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.features.contract import TIME_MIN
from tidemill.features.kernel.prepare import COUNTS_FROM, TIME
from tidemill.pipelines.stream.receipt import Placed, place_by_receipt
from tidemill.pipelines.stream.sequence import ARRIVAL, REQUEST_ROWS

EVENTS = pa.schema([(TIME, pa.int64()), (ARRIVAL, pa.int64())])
_instant = st.integers(0, 12)


@dataclass(frozen=True)
class Row:
    """A row with its time, its arrival and its place among the rows of the poll."""

    is_event: bool
    time: int
    arrival: int
    place: int


@st.composite
def polls(draw: st.DrawFn) -> list[list[Row]]:
    out = []
    for _ in range(draw(st.integers(1, 3))):
        rows: list[Row] = []
        for is_event in (True, False):
            for _ in range(draw(st.integers(0, 8))):
                time = draw(_instant)
                arrival = max(time + 1, draw(_instant))
                rows.append(Row(is_event, time, arrival, len(rows)))
        out.append(rows)
    return out


def specified(polls: list[list[Row]]) -> tuple[list[dict[int, int]], list[int], list[bool]]:
    """Go through the rows one by one; return their instants, and frontier and flag of each poll."""
    frontier, last_answer = TIME_MIN, TIME_MIN - 1
    reached = TIME_MIN
    placed, frontiers, flags = [], [], []
    for rows in polls:
        instants: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: (row.arrival, row.is_event, row.place)):
            if row.is_event:
                instants[row.place] = max(row.time + 1, last_answer + 1, frontier)
                reached = max(reached, instants[row.place])
            else:
                reached = last_answer = instants[row.place] = max(row.time, reached)
        frontier = reached
        placed.append(instants)
        frontiers.append(frontier)
        flags.append(last_answer == frontier)
    return placed, frontiers, flags


def batch(rows: list[Row]) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    events = [row for row in rows if row.is_event]
    requests = [row for row in rows if not row.is_event]
    columns = {TIME: pa.array([row.time for row in requests], pa.int64())}
    columns |= {ARRIVAL: pa.array([row.arrival for row in requests], pa.int64())}
    nulls = {f.name: pa.nulls(len(requests), f.type) for f in REQUEST_ROWS}
    asked = pa.RecordBatch.from_pydict({**nulls, **columns}, schema=REQUEST_ROWS)
    happened = pa.RecordBatch.from_arrays(
        [
            pa.array([row.time for row in events], pa.int64()),
            pa.array([row.arrival for row in events], pa.int64()),
        ],
        schema=EVENTS,
    )
    return (happened if events else None), (asked if requests else None)


@settings(max_examples=500, deadline=None)
@given(polls())
def test_instants_are_those_of_a_specification_that_goes_row_by_row(polls: list[list[Row]]) -> None:
    placed, frontiers, flags = specified(polls)
    frontier, is_answered = TIME_MIN, False
    for rows, wanted, after, flag in zip(polls, placed, frontiers, flags, strict=True):
        found = place_by_receipt(*batch(rows), frontier, is_answered=is_answered)
        assert instants_of(rows, found) == wanted
        frontier, is_answered = found.until_us, found.is_answered
        assert (frontier, is_answered) == (after, flag)


def instants_of(rows: list[Row], placed: Placed) -> dict[int, int]:
    out: dict[int, int] = {}
    for is_event, found, name in (
        (True, placed.events, COUNTS_FROM),
        (False, placed.requests, TIME),
    ):
        mine = [row.place for row in rows if row.is_event is is_event]
        column = [] if found is None else found.column(name).to_pylist()
        out |= dict(zip(mine, column, strict=True))
    return out


@given(polls())
def test_no_answer_uses_what_came_after_its_request(polls: list[list[Row]]) -> None:
    """And it uses everything that came before."""
    frontier, is_answered = TIME_MIN, False
    before: list[int] = []
    for rows in polls:
        found = place_by_receipt(*batch(rows), frontier, is_answered=is_answered)
        instants = instants_of(rows, found)
        for asked in (row for row in rows if not row.is_event):
            as_of = instants[asked.place]
            assert as_of >= asked.time
            assert all(change <= as_of for change in before)
            for event in (row for row in rows if row.is_event):
                assert (instants[event.place] <= as_of) is (event.arrival < asked.arrival)
        before += [instants[row.place] for row in rows if row.is_event]
        frontier, is_answered = found.until_us, found.is_answered


def test_rows_in_order_of_their_times_are_answered_for_their_times() -> None:
    """As history is: then eager answers are exact ones."""
    times = [3, 3, 4, 7, 7, 9]
    rows = [Row(True, time, time + 1, place) for place, time in enumerate(times)]
    rows += [Row(False, time, time + 1, place) for place, time in enumerate([2, 3, 4, 8, 9, 9], 6)]
    found = place_by_receipt(*batch(rows), TIME_MIN, is_answered=False)
    assert found.requests is not None
    assert found.events is not None
    assert found.requests.column(TIME).to_pylist() == [2, 3, 4, 8, 9, 9]
    assert found.events.column(COUNTS_FROM).to_pylist() == [time + 1 for time in times]
