"""Labels: after the request, within the horizon, the first of several; a missing one is null."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from tests.support.strategies import to_batch
from tidemill import EventStream, Label, Request, col
from tidemill.features.contract import SECOND
from tidemill.pipelines.history.labels import find_labels, leaks

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


def events(*rows: tuple[int, int, str, int, float | None]) -> pa.Table:
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
