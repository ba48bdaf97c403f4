"""Requests: what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.definitions import (
    SCHEMA,
    Mistake,
    check_refused,
    each_mistake,
    request,
)
from tidemill import (
    col,
)
from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType

MISTAKES: list[Mistake] = [
    (lambda: request(name="X"), DefinitionError, "request name 'X'"),
    (
        lambda: request(schema={}),
        DefinitionError,
        "request 'departures': the schema has no columns",
    ),
    (lambda: request(request_time="when"), UnknownColumn, "request_time 'when' is not in"),
    (lambda: request(request_id="cancelled"), WrongType, "request_id 'cancelled' must be string"),
    (
        lambda: request(inputs={"hour": "at"}),
        WrongType,
        r"request 'departures': input 'hour' must be an expression such as col\('hour'\)",
    ),
    (
        lambda: request(inputs={"hour": col("att").hour_of_day("UTC")}),
        UnknownColumn,
        "request 'departures': input 'hour': column 'att' .* did you mean 'at'",
    ),
    (lambda: request(inputs={"Hour": col("number")}), DefinitionError, "input name 'Hour'"),
    (
        lambda: request(repeated="rejected"),
        DefinitionError,
        "'departures': repeated must be 'reject' or 'count', found 'rejected'; did you mean 'rej",
    ),
    (lambda: request(repeated=True), WrongType, "'departures': repeated must be 'reject' or"),
    (lambda: request(repeated_within="x"), DefinitionError, "'departures': repeated_within"),
    (
        lambda: request(allowed_lateness="1h", repeated_within="1h"),
        DefinitionError,
        r"repeated_within must be longer than 1h \(out_of_orderness \+ .*found '1h'",
    ),
    (lambda: request(repeated_within="0s"), DefinitionError, "must be longer than 0us"),
    (lambda: request(allowed_lateness="x"), DefinitionError, "'departures': allowed_lateness"),
    (
        lambda: request(inputs={"when": col("at")}),
        WrongType,
        r"request 'departures': input 'when' is a timestamp.*take its \.hour_of_day\(zone\)",
    ),
    (
        lambda: request(inputs={"label_time": col("number")}),
        DefinitionError,
        "request 'departures': input 'label_time' is the name of a column that every training row",
    ),
    (
        lambda: request(inputs={"score": col("number")}),
        DefinitionError,
        "input 'score' is the name",
    ),
    *(
        (
            lambda name=name: request(inputs={name: col("number")}),
            DefinitionError,
            f"request 'departures': input '{name}' is the name of a column that every training row",
        )
        for name in ("request_id", "request_time", "label")
    ),
    (lambda: request(inputs=[col("number")]), WrongType, "'departures': inputs must be a dict"),
    (lambda: request(keys="origin"), WrongType, "request 'departures': keys must be a dict"),
    (lambda: request(keys={"origin": None}), WrongType, "key of entity 'origin' must be the name"),
    (
        lambda: request(schema=SCHEMA | {"values": "int64"}),
        DefinitionError,
        "request 'departures': column 'values' is the name of a column",
    ),
]


@each_mistake(MISTAKES)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    check_refused(define, error, says)


def test_counting_repeated_requests_is_another_definition() -> None:
    assert request(repeated="reject").spec() == request().spec()
    assert request(repeated="count").spec() == {**request().spec(), "repeated": "count"}
    within = request(repeated_within="1d").spec()
    assert within == {**request().spec(), "repeated_within_us": 86_400_000_000}
