"""Labels: after the request, within the horizon, the first of several; a missing one is null."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import to_batch
from tidemill import EventStream, Label, Request, col
from tidemill.features.contract import SECOND
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.pipelines.commands.explained import in_short
from tidemill.pipelines.history.labels import LabelIndex, check_leaks, find_labels, leaks

TRIPS = EventStream(
    "trips",
    schema={"at": "timestamp", "id": "int64", "trip": "string", "leg": "int64", "late": "float64"},
    event_time="at",
    event_id="id",
)
REQUEST = Request(
    "asked",
    schema={"at": "timestamp", "id": "int64", "trip": "string", "part": "int64"},
    request_time="at",
    request_id="id",
)
LABEL = Label(
    "too_late", TRIPS, col("late") > 15, on={"trip": "trip", "part": "leg"}, horizon="10s"
)
ASKED = 100 * SECOND


def requests(*rows: tuple[int, str | None, int | None]) -> pa.Table:
    made = [{"at": at, "id": i, "trip": trip, "part": part}
            for i, (at, trip, part) in enumerate(rows)]  # fmt: skip
    return pa.Table.from_batches([to_batch(REQUEST.schema, made)])


def events(*rows: tuple[int, int, str | None, int | None, float | None]) -> pa.Table:
    names = ("at", "id", "trip", "leg", "late")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    return pa.Table.from_batches([to_batch(TRIPS.schema, made)])


def labels(asked: pa.Table, known: pa.Table) -> list[tuple[Any, Any]]:
    found = find_labels(LABEL, REQUEST, asked, known)
    assert str(found.values.type) == "double"
    times = found.times.cast(pa.int64()).to_pylist()
    return list(zip(found.values.to_pylist(), times, strict=True))


@pytest.mark.parametrize(
    ("after_us", "labelled"),
    [(-1, False), (0, False), (1, True), (10 * SECOND, True), (10 * SECOND + 1, False)],
)
def test_a_label_comes_after_its_request_and_within_the_horizon(
    after_us: int, labelled: bool
) -> None:
    found = labels(requests((ASKED, "x", 1)), events((ASKED + after_us, 1, "x", 1, 20.0)))
    assert found == [(1.0, ASKED + after_us) if labelled else (None, None)]


def test_none_by_then_is_unlabelled_not_negative() -> None:
    known = events((ASKED + 1, 1, "x", 1, 3.0))
    assert labels(requests((ASKED, "x", 1), (ASKED, "y", 1)), known) == [
        (0.0, ASKED + 1),
        (None, None),
    ]


def test_a_row_where_the_value_is_null_is_no_label() -> None:
    known = events((ASKED + 1, 1, "x", 1, None), (ASKED + 2, 2, "x", 1, 20.0))
    assert labels(requests((ASKED, "x", 1)), known) == [(1.0, ASKED + 2)]


def test_of_several_the_first_by_time_and_id_counts() -> None:
    """Ids are ordered by their bytes: "10" before "9"."""
    known = events(
        (ASKED + 5, 1, "x", 1, 20.0),
        (ASKED + 2, 9, "x", 1, 20.0),
        (ASKED + 2, 10, "x", 1, 3.0),
        (ASKED - 2, 0, "x", 1, 20.0),
    )
    assert labels(requests((ASKED, "x", 1)), known) == [(0.0, ASKED + 2)]


def test_one_id_with_two_payloads_has_the_same_label_in_any_order() -> None:
    rows = [(ASKED + 2, 1, "x", 1, 20.0), (ASKED + 2, 1, "x", 1, 3.0)]
    forward = labels(requests((ASKED, "x", 1)), events(*rows))
    assert forward == labels(requests((ASKED, "x", 1)), events(*reversed(rows)))


def test_every_join_column_must_be_equal_and_null_equals_nothing() -> None:
    known = events((ASKED + 1, 1, "x", 1, 20.0))
    asked = requests((ASKED, "x", 2), (ASKED, None, 1), (ASKED, "x", None), (ASKED, "x", 1))
    assert labels(asked, known) == [(None, None)] * 3 + [(1.0, ASKED + 1)]


def test_one_event_may_be_the_label_of_many_requests() -> None:
    asked = requests((ASKED + 3, "x", 1), (ASKED, "x", 1), (ASKED + 4, "x", 1))
    known = events((ASKED + 4, 1, "x", 1, 20.0))
    assert [value for value, _ in labels(asked, known)] == [1.0, 1.0, None]


def test_without_events_nothing_is_labelled() -> None:
    assert labels(requests((ASKED, "x", 1)), events()) == [(None, None)]
    assert labels(requests((ASKED, "x", 1)), pa.Table.from_batches([], events().schema)) == [
        (None, None)
    ]
    assert labels(requests(), events((ASKED, 1, "x", 1, 20.0))) == []


def test_events_may_stand_in_pieces() -> None:
    known = pa.concat_tables(
        [events((ASKED + 9, 2, "x", 1, 20.0)), events((ASKED + 1, 1, "x", 1, 3.0))]
    )
    assert labels(requests((ASKED, "x", 1)), known) == [(0.0, ASKED + 1)]


def test_a_label_event_at_or_before_its_own_request_is_a_leak() -> None:
    asked = requests((ASKED, "x", 1), (ASKED, "y", 1))
    known = events(
        (ASKED, 1, "x", 1, 20.0),
        (ASKED - 50 * SECOND, 2, "x", 1, 20.0),
        (ASKED + 1, 3, "x", 1, 20.0),
        (ASKED, 4, "other", 1, 20.0),
        (ASKED, 5, "y", 2, 20.0),
    )
    assert leaks(LABEL, REQUEST, asked, known) == 2
    assert leaks(LABEL, REQUEST, asked, events((ASKED + 1, 3, "x", 1, 20.0))) == 0
    assert leaks(LABEL, REQUEST, asked, events()) == 0


@pytest.mark.parametrize("name", ["_id", "_at", "_value", "_row", "_asked", "key_1"])
def test_a_join_column_may_have_any_name(name: str) -> None:
    stream = replace(TRIPS, schema={**TRIPS.schema, name: "string"})
    request = replace(REQUEST, schema={**REQUEST.schema, name: "string"})
    label = replace(LABEL, stream=stream, on={name: name, "part": "leg"})
    asked = requests((ASKED, "x", 1), (ASKED, "y", 1))
    known = events((ASKED + 1, 1, "x", 1, 20.0), (ASKED + 2, 2, "y", 1, 3.0))
    asked = asked.append_column(name, asked["trip"])
    known = known.append_column(name, known["trip"])
    assert find_labels(label, request, asked, known).values.to_pylist() == [1.0, 0.0]
    assert leaks(label, request, asked, known) == 0
    early = known.set_column(0, "at", asked["at"])
    assert leaks(label, request, asked, early) == 2


# Recurring keys.

RECURRING = replace(LABEL, recurring=True)

Asked = tuple[int, str | None, int | None]
Known = tuple[int, int, str | None, int | None, float | None]
_times = st.integers(0, 25).map(lambda second: second * SECOND)
_asked = st.tuples(_times, st.sampled_from(["x", "y", None]), st.sampled_from([1, 2, None]))
_known = st.tuples(
    _times | st.integers(0, 30),
    st.integers(0, 12),
    st.sampled_from(["x", "y", None]),
    st.sampled_from([1, 2, None]),
    st.sampled_from([3.0, 20.0, None]),
)


def by_row(one: Asked, known: list[Known]) -> tuple[float | None, int | None]:
    """The label of a request, as the contract says it, row by row."""
    at, trip, part = one
    holding = [
        (time, str(id_).encode(), late > 15)
        for time, id_, event_trip, leg, late in known
        if None not in (trip, part, late) and (event_trip, leg) == (trip, part)
        if at < time <= at + LABEL.horizon_us and late is not None
    ]
    if not holding:
        return None, None
    time, _, value = min(holding)
    return float(value), time


def before_by_row(asked: list[Asked], known: list[Known]) -> int:
    return sum(
        None not in (trip, part, late) and (event_trip, leg) == (trip, part) and time <= at
        for at, trip, part in asked
        for time, _, event_trip, leg, late in known
    )


@given(st.lists(_asked, max_size=12), st.lists(_known, max_size=25), st.integers(1, 5))
def test_every_request_has_the_label_that_the_contract_says(
    asked: list[Asked], known: list[Known], slice_rows: int
) -> None:
    """Whole, and slice by slice; several columns, nulls, several events at one time and id."""
    wanted = [by_row(one, known) for one in asked]
    table, happened = requests(*asked), events(*known)
    assert labels(table, happened) == wanted
    index = LabelIndex(RECURRING, REQUEST, happened)
    for start in range(0, len(asked), slice_rows):
        for part in table.slice(start, slice_rows).to_batches():
            found = index.find(part)
            times = found.times.cast(pa.int64()).to_pylist()
            assert (
                list(zip(found.values.to_pylist(), times, strict=True))
                == wanted[start : start + slice_rows]
            )
    assert leaks(LABEL, REQUEST, table, happened) == before_by_row(asked, known)
    assert leaks(RECURRING, REQUEST, table, happened) == 0


@pytest.mark.parametrize("same", [(0,), (1,)], ids=["first half", "second half"])
def test_keys_that_share_half_of_their_digest_are_told_apart(
    same: tuple[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashing.digest_rows

    def digest_rows(batch: pa.RecordBatch) -> Any:
        digests = whole(batch)
        digests[:, same] = 7
        return digests

    monkeypatch.setattr(hashing, "digest_rows", digest_rows)
    names = [f"t{number}" for number in range(20)]
    known = [(ASKED + 5 - n % 3, n, name, 1, 20.0 * (n % 2)) for n, name in enumerate(names)]
    asked = [(ASKED, name, 1) for name in (*names, "unknown")]
    assert labels(requests(*asked), events(*known)) == [by_row(one, known) for one in asked]


def test_a_hot_key_costs_what_other_keys_cost() -> None:
    """100,000 events and as many requests of one key are 10^10 pairs."""
    count = 100_000
    times = np.arange(count) * 2 * SECOND
    keys = {"trip": pa.repeat("x", count), "part": pa.repeat(pa.scalar(1), count)}
    instant, ids = pa.timestamp("us", tz="UTC"), pa.array(np.arange(count))
    asked = pa.table({"at": pa.array(times).cast(instant), "id": ids, **keys})
    known = pa.table(
        {
            "at": pa.array(times + SECOND).cast(instant),
            "id": ids,
            "trip": keys["trip"],
            "leg": keys["part"],
            "late": pa.array(np.where(np.arange(count) % 2, 20.0, 3.0)),
        }
    )
    found = find_labels(RECURRING, REQUEST, asked, known)
    assert found.values.to_pylist() == [0.0, 1.0] * (count // 2)
    assert found.times.cast(pa.int64()).to_numpy().tolist() == (times + SECOND).tolist()
    assert leaks(LABEL, REQUEST, asked, known) == count * (count - 1) // 2


def test_with_a_recurring_key_earlier_events_are_history() -> None:
    """Each request has the first event after it, also one that is before another request."""
    asked = requests((ASKED, "x", 1), (ASKED + 4, "x", 1), (ASKED + 9, "x", 1))
    known = events(
        (ASKED - 3, 1, "x", 1, 20.0), (ASKED + 3, 2, "x", 1, 20.0), (ASKED + 9, 3, "x", 1, 3.0)
    )
    check_leaks(RECURRING, REQUEST, asked, known)
    found = find_labels(RECURRING, REQUEST, asked, known)
    assert found.values.to_pylist() == [1.0, 0.0, None]
    with pytest.raises(InputError, match="6 of its events do not come after"):
        check_leaks(LABEL, REQUEST, asked, known)


def test_a_leak_names_an_example_and_what_mends_it() -> None:
    asked = requests((ASKED, "y", 1), (ASKED, "x", 1))
    known = events(
        (ASKED - SECOND, 4, "x", 1, 20.0), (ASKED, 7, "x", 1, 3.0), (ASKED, 8, "x", 1, None)
    )
    with pytest.raises(InputError) as caught:
        check_leaks(LABEL, REQUEST, asked, known)
    shown = in_short(str(caught.value))
    assert (
        "label 'too_late': 2 of its events do not come after their request, such as 7 at "
        "1970-01-01T00:01:40Z for request 1 at 1970-01-01T00:01:40Z (trip 'x', part 1)"
    ) in shown
    assert "Give requests an earlier time, drop them, or declare recurring=True" in shown


def test_an_event_without_a_value_is_no_label_and_no_leak() -> None:
    asked, known = requests((ASKED, "x", 1)), events((ASKED, 1, "x", 1, None))
    assert leaks(LABEL, REQUEST, asked, known) == 0
    check_leaks(LABEL, REQUEST, asked, known)
