"""Local times that occurred twice: what each rule makes of them, and what it does not decide."""

from __future__ import annotations

import datetime
import itertools
import zoneinfo
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill import EventStream
from tidemill.features.contract import HOUR, MINUTE, TIME_MIN
from tidemill.features.definitions import STRING, TIMESTAMP
from tidemill.features.rows.local_times import Receipts
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.validation import Validated, validate

BERLIN = "Europe/Berlin"
STREAM = EventStream(
    "events",
    # The time of receipt is declared last: the order of columns must not matter.
    schema={"at": TIMESTAMP, "id": STRING, "got": TIMESTAMP},
    event_time="at",
    event_id="id",
)
CHANGE = datetime.datetime(2024, 10, 27, 1, tzinfo=datetime.UTC)  # 03:00 becomes 02:00 in Berlin
CHANGE_US = int(CHANGE.timestamp()) * 1_000_000


def local(minutes: float) -> str:
    """Return what clocks in Berlin show some minutes after they are set back."""
    moment = CHANGE + datetime.timedelta(minutes=minutes)
    return moment.astimezone(zoneinfo.ZoneInfo(BERLIN)).replace(tzinfo=None).isoformat()


def utc(minutes: float) -> str:
    return (CHANGE + datetime.timedelta(minutes=minutes)).isoformat()


def inferred(
    rows: Sequence[tuple[str | None, str | None]], receipts: Receipts | None = None
) -> Validated:
    """Validate rows of (event time, time of receipt) by the rule `infer`."""
    batch = pa.RecordBatch.from_pydict(
        {
            "at": pa.array([at for at, _ in rows], pa.string()),
            "id": [f"e{n}" for n in range(len(rows))],
            "got": pa.array([got for _, got in rows], pa.string()),
        }
    )
    receipts = Receipts("got") if receipts is None else receipts
    return validate(STREAM, batch, zone=BERLIN, ambiguous="infer", receipts=receipts)


def minutes_of(found: Validated, column: str = "at") -> list[float]:
    times = found.batch[column].cast(pa.int64()).to_numpy()
    return list((times - CHANGE_US) / MINUTE)


# By a known time of receipt


def test_infer_takes_the_later_instant_that_is_not_past_the_receipt() -> None:
    found = inferred([(local(-30), utc(-29)), (local(30), utc(30)), (local(30), utc(29))])
    assert minutes_of(found) == [-30, 30, -30]
    assert found.resolved.tolist() == [True] * 3


def test_infer_takes_the_first_instant_where_both_are_past_the_receipt() -> None:
    # Whether the row is too far ahead is then decided by max_ahead.
    assert minutes_of(inferred([(local(-30), utc(-31))])) == [-30]


def test_infer_without_a_receipt_rejects_and_says_why() -> None:
    found = inferred([(local(-30), None), (local(-90), None), (local(-30), "soon")])
    assert found.kept.tolist() == [1]
    assert found.reasons == (Reason.AMBIGUOUS_LOCAL_TIME,) * 2
    assert "has no certain time of receipt to infer from" in found.details[0]


@given(st.floats(-180, 180), st.floats(0, 59))
def test_infer_is_exact_for_rows_that_travel_less_than_an_hour(at: float, way: float) -> None:
    at, way = round(at, 3), round(way, 3)
    assert minutes_of(inferred([(local(at), utc(at + way))])) == [round(at, 3)]


# By the order of arrival, where the time of receipt occurred twice too


def test_a_receipt_that_goes_back_is_the_last_instant() -> None:
    rows = [(local(n), local(n)) for n in (-90, -40, -20, 5, 30, 70)]
    found = inferred(rows)
    # Before clocks go back in the log, both instants of a receipt are possible.
    assert found.kept.tolist() == [0, 3, 4, 5]
    assert minutes_of(found, "got") == minutes_of(found) == [-90, 5, 30, 70]
    assert found.resolved.tolist() == [False, True, True, False]
    assert found.reasons == (Reason.AMBIGUOUS_LOCAL_TIME,) * 2
    # The event time is declared first, and has no receipt to infer from.
    assert "column 'at'" in found.details[0]


def test_a_repeated_receipt_is_rejected_by_name_where_order_does_not_tell() -> None:
    found = inferred([(utc(-40), local(-40)), (utc(-20), local(-20))])
    assert found.reasons == (Reason.AMBIGUOUS_LOCAL_TIME,) * 2
    assert "column 'got'" in found.details[0]
    assert "the order of arrival does not tell which: write its offset" in found.details[0]


def test_a_receipt_with_its_offset_tells_those_after_it() -> None:
    found = inferred([(utc(5), utc(10)), (utc(5), local(20)), (utc(5), local(5))])
    # 02:05 was over at both its instants when the row before it arrived.
    assert found.kept.tolist() == [0, 1]
    assert minutes_of(found, "got") == [10, 20]


def test_a_refused_row_still_tells_when_the_next_one_arrived() -> None:
    assert inferred([("never", utc(10)), (utc(5), local(20))]).kept.tolist() == [1]


def test_rows_without_an_order_of_arrival_do_not_tell_each_others_receipt() -> None:
    rows = [(utc(5), utc(10)), (utc(5), local(20))]
    assert inferred(rows, Receipts("got", lowest_us=None)).kept.tolist() == [0]


arrivals = st.lists(st.tuples(st.integers(-150, 150), st.booleans()), min_size=1, max_size=12).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)


@given(arrivals, st.sets(st.integers(1, 11)))
@example([(-50, False), (-10, False), (5, False), (20, True), (20, False)], {2, 3})
def test_what_order_resolves_is_the_truth_however_the_log_is_cut(
    rows: list[tuple[int, bool]], cuts: set[int]
) -> None:
    given_rows = [(utc(0), utc(n) if offset else local(n)) for n, offset in rows]
    whole = inferred(given_rows)
    assert minutes_of(whole, "got") == [rows[row][0] for row in whole.kept.tolist()]
    receipts, kept = Receipts("got"), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for start, stop in itertools.pairwise(edges):
        found = inferred(given_rows[start:stop], receipts)
        kept += [start + row for row in found.kept.tolist()]
    assert kept == whole.kept.tolist()


@given(arrivals)
def test_order_resolves_every_receipt_that_has_one_possible_instant(
    rows: list[tuple[int, bool]],
) -> None:
    lowest, certain = TIME_MIN, []
    for row, (n, offset) in enumerate(rows):
        possible = {n} if offset or not -60 <= n < 60 else {n - 60, n, n + 60} & set(range(-60, 60))
        left = [m for m in sorted(possible) if m * MINUTE >= lowest]
        if len(left) == 1:
            certain.append(row)
        lowest = left[0] * MINUTE
    found = inferred([(utc(0), utc(n) if offset else local(n)) for n, offset in rows])
    assert found.kept.tolist() == certain


def test_a_days_rows_are_counted_before_a_request_as_they_happened() -> None:
    times = np.arange(-24 * 6, 24 * 6) * 10
    found = inferred([(local(n), utc(n + 1)) for n in times.tolist()])
    assert len(found.kept) == len(times)
    request = CHANGE_US - HOUR + 5 * MINUTE  # 00:05 UTC
    at = found.batch["at"].cast(pa.int64()).to_numpy()
    window = (at >= request - 90 * MINUTE) & (at < request)
    assert int(window.sum()) == 9
