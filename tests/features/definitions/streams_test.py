"""Event streams: what is refused, and what their durations are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.definitions import (
    SCHEMA,
    Mistake,
    check_refused,
    each_mistake,
    label,
    request,
    stream,
    view,
)
from tidemill import col, count, mean, rate
from tidemill.features.contract import DAY, HOUR, MINUTE
from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType

MISTAKES: list[Mistake] = [
    (lambda: stream(name="Arrivals"), DefinitionError, "stream name 'Arrivals' must be lower-case"),
    (lambda: stream(name="a__b"), DefinitionError, "single underscores"),
    (lambda: stream(name=7), DefinitionError, "stream name 7"),
    (lambda: stream(schema={}), DefinitionError, "stream 'arrivals': the schema has no columns"),
    (
        lambda: stream(schema=SCHEMA | {"delay": "float"}),
        WrongType,
        "stream 'arrivals': column 'delay' has dtype 'float'; did you mean 'float64'",
    ),
    (
        lambda: stream(event_time="att"),
        UnknownColumn,
        "stream 'arrivals': event_time 'att' is not in the schema; did you mean 'at'",
    ),
    (lambda: stream(event_time="id"), WrongType, "event_time 'id' must be timestamp, found string"),
    (lambda: stream(event_id="delay"), WrongType, "event_id 'delay' must be string or int64"),
    (
        lambda: stream(out_of_orderness="5"),
        DefinitionError,
        "stream 'arrivals': out_of_orderness '5' is not a duration",
    ),
    (lambda: stream(allowed_lateness=5), DefinitionError, "allowed_lateness .* write the unit"),
    (
        lambda: stream(transport="at"),
        WrongType,
        "stream 'arrivals': transport must be a list of columns",
    ),
    (lambda: stream(transport=["dely"]), UnknownColumn, "transport 'dely' .* did you mean 'delay'"),
    (lambda: stream(transport=[3]), WrongType, "transport must be the name of one column"),
    (lambda: stream(transport=["id"]), DefinitionError, "'id', which is the event's time or id"),
    (lambda: stream(transport=["at"]), DefinitionError, "'at', which is the event's time or id"),
    (lambda: stream(transport=["delay"] * 2), DefinitionError, "names 'delay' twice"),
    (lambda: stream(max_ahead="soon"), DefinitionError, "max_ahead 'soon'"),
    (
        lambda: stream(event_id=["id", "at"]),
        WrongType,
        r"event_id must be the name of one column, a text; found \['id', 'at'\] \(list\)",
    ),
    (lambda: stream(event_time=None), WrongType, "event_time must be the name of one column"),
    (
        lambda: stream(schema=["at", "id"]),
        WrongType,
        r"stream 'arrivals': the schema must be a dict such as \{'at': 'timestamp'\}",
    ),
    (lambda: stream(schema=SCHEMA | {3: "int64"}), WrongType, "a column of the schema .* found 3"),
    (lambda: stream(schema=SCHEMA | {"": "int64"}), DefinitionError, "column of the schema is emp"),
    (lambda: stream(schema=SCHEMA | {"\ud800": "int64"}), DefinitionError, "surrogate"),
    (
        lambda: stream(schema=SCHEMA | {"delay": float}),
        WrongType,
        "dtype of column 'delay' must be",
    ),
    (
        lambda: stream(schema=SCHEMA | {"_position": "int64"}),
        DefinitionError,
        "stream 'arrivals': column '_position' is the name of a column that every row .* rename",
    ),
    (
        lambda: stream(max_ahead="400000000d"),
        DefinitionError,
        "stream 'arrivals': max_ahead '400000000d' is too long; take at most 11574074d",
    ),
    *(
        (
            lambda name=name: stream(schema=SCHEMA | {name: "int64"}),
            DefinitionError,
            f"stream 'arrivals': column '{name}' is the name of a column that every row .* rename",
        )
        for name in ("_received", "_partition", "_sent", "__reject__", "__drop__")
    ),
    (lambda: stream(name="a" * 101), DefinitionError, "has 101 characters; take at most 100"),
]


@each_mistake(MISTAKES)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    check_refused(define, error, says)


def test_durations_are_microseconds() -> None:
    late = stream(out_of_orderness="5m", allowed_lateness="1h", max_ahead="2d")
    assert late.out_of_orderness_us == 5 * MINUTE
    assert late.tolerance_us == HOUR + 5 * MINUTE
    assert late.max_ahead_us == 2 * DAY
    asked = request(out_of_orderness="5m", allowed_lateness="1h", max_ahead="2d")
    assert asked.tolerance_us == late.tolerance_us
    assert asked.max_ahead_us == late.max_ahead_us
    assert view(hop="5m", max_staleness="1h").max_staleness_us == HOUR
    assert label(horizon="1d").horizon_us == DAY


TRANSPORTED = stream(transport=["delay"])


@pytest.mark.parametrize(
    ("define", "what"),
    [
        (lambda: view(stream=stream(transport=["origin"])), "view 'airport': key"),
        (
            lambda: view(stream=TRANSPORTED, features={"d": mean(col("delay"), over="1h")}),
            "feature airport.d",
        ),
        (
            lambda: view(stream=TRANSPORTED, features={"d": mean(col("delay") * 2, over="1h")}),
            "feature airport.d",
        ),
        (
            lambda: view(
                stream=TRANSPORTED, features={"d": count(over="1h", where=col("delay") > 1)}
            ),
            "feature airport.d",
        ),
        (
            lambda: view(
                stream=TRANSPORTED, features={"d": rate(col("delay").is_null(), over="1h")}
            ),
            "feature airport.d",
        ),
        (lambda: label(stream=TRANSPORTED), "label 'late'"),
        (
            lambda: label(stream=stream(transport=["origin"]), on={"origin": "origin"}),
            "label 'late'",
        ),
    ],
)
def test_no_definition_reads_a_transport_column(define: Callable[[], Any], what: str) -> None:
    says = f"{what} reads '(delay|origin)', which stream 'arrivals' declares as transport"
    with pytest.raises(DefinitionError, match=says):
        define()


def test_transport_is_part_of_the_hash_and_no_part_of_the_identity() -> None:
    plain = stream()
    assert plain.identity == tuple(SCHEMA)
    assert TRANSPORTED.identity == tuple(name for name in SCHEMA if name != "delay")
    assert view().hash != view(stream=TRANSPORTED).hash
    both, other = stream(transport=["delay", "origin"]), stream(transport=("origin", "delay"))
    assert both.spec() == other.spec()
