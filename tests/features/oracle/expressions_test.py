"""The oracle's expressions, row by row, and the columnar evaluation against them."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.strategies import Row, expressions, schemas, to_batch, values
from tidemill import col
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT
from tidemill.features.definitions import DTYPES, Expression, Literal
from tidemill.features.errors import DefinitionError, InputError
from tidemill.features.oracle.expressions import evaluate

SCHEMA = {"n": "int64", "x": "float64", "text": "string", "ok": "bool", "at": "timestamp"}
NULLS: Row = dict.fromkeys(SCHEMA)


def meaning(expression: Expression, **row: Any) -> Any:
    return evaluate(expression, NULLS | row, SCHEMA)


def as_text(value: Any) -> str:
    """Tell 1 from 1.0 from True, and 0.0 from -0.0."""
    return repr(value)


def check_twins(expression: Expression, schema: dict[str, str], rows: list[Row]) -> None:
    column = expression.evaluate(to_batch(schema, rows))
    if expression.dtype(schema) == "timestamp":
        column = column.cast("int64")
    expected = [as_text(evaluate(expression, row, schema)) for row in rows]
    assert [as_text(found) for found in column.to_pylist()] == expected


def test_arithmetic_with_a_null_is_null() -> None:
    assert meaning(col("n") + 1) is None
    assert meaning(1 / col("x")) is None


def test_ints_stay_ints_but_for_division() -> None:
    assert as_text(meaning(col("n") * 2, n=3)) == "6"
    assert as_text(meaning(col("n") / 2, n=3)) == "1.5"
    assert as_text(meaning(col("n") + 1.0, n=3)) == "4.0"


def test_int_overflow_is_null() -> None:
    assert meaning(col("n") + 1, n=2**63 - 1) is None
    assert meaning(col("n") * col("n"), n=2**32) is None
    assert meaning(-col("n"), n=-(2**63)) is None
    assert meaning(col("n") - 1, n=-(2**63) + 1) == -(2**63)


def test_a_result_that_is_not_finite_is_null() -> None:
    assert meaning(col("x") * 10.0, x=1e308) is None
    assert meaning(col("x") / 0.0, x=1.0) is None
    assert meaning(col("n") / 0, n=0) is None


def test_minus_zero_becomes_zero() -> None:
    for expression in (
        col("x") * -1.0,
        -col("x"),
        Literal(-0.0),
        col("x"),
        col("x").fill_null(-0.0),
    ):
        assert as_text(meaning(expression, x=0.0)) == "0.0"
    assert as_text(meaning(col("x"), x=-0.0)) == "0.0"
    assert as_text(meaning(col("x").fill_null(-0.0))) == "0.0"


def test_an_int_is_converted_before_it_meets_a_float() -> None:
    assert meaning(col("n") == 2.0**53, n=2**53 + 1) is True
    assert meaning(col("n") > 2.0**53, n=2**53 + 1) is False
    assert meaning(col("n") - 2.0**53, n=2**53 + 1) == 0.0
    # Both are ints: exact.
    assert meaning(col("n") == 2**53, n=2**53 + 1) is False


def test_times_differ_by_microseconds() -> None:
    assert meaning(col("at") - col("at"), at=EARLIEST_EVENT) == 0
    later = evaluate(col("b") - col("a"), {"a": -5, "b": 7}, {"a": "timestamp", "b": "timestamp"})
    assert later == 12


def test_texts_compare_by_their_utf8_bytes() -> None:
    assert meaning(col("text") < "𐀀", text="￿") is True
    assert meaning(col("text") < "a", text="B") is True
    assert meaning(col("text") < "é", text="z") is True
    assert meaning(col("text") == "", text="") is True


@pytest.mark.parametrize(
    ("left", "right", "both", "either"),
    [
        (True, True, True, True),
        (True, False, False, True),
        (False, False, False, False),
        (True, None, None, True),
        (False, None, False, None),
        (None, None, None, None),
    ],
)
def test_logic_is_kleenes(
    left: bool | None, right: bool | None, both: bool | None, either: bool | None
) -> None:
    schema = {"a": "bool", "b": "bool"}
    for row in ({"a": left, "b": right}, {"a": right, "b": left}):
        assert evaluate(col("a") & col("b"), row, schema) is both
        assert evaluate(col("a") | col("b"), row, schema) is either


def test_not_of_null_is_null_and_is_null_never_is() -> None:
    assert meaning(~col("ok")) is None
    assert meaning(~col("ok"), ok=True) is False
    assert meaning(col("ok").is_null()) is True
    assert meaning((col("x") / 0).is_null(), x=1.0) is True


def test_fill_null_has_the_operands_dtype() -> None:
    assert as_text(meaning(col("x").fill_null(1))) == "1.0"
    assert as_text(meaning(col("n").fill_null(1))) == "1"
    assert as_text(meaning(col("x").fill_null(2**53 + 1))) == "9007199254740992.0"
    assert as_text(meaning(col("x").fill_null(1), x=2.0)) == "2.0"


def test_is_in_is_null_for_null() -> None:
    assert meaning(col("n").is_in([1, 2]), n=2) is True
    assert meaning(col("n").is_in([]), n=2) is False
    assert meaning(col("n").is_in([1])) is None
    assert meaning(col("x").is_in([-0.0]), x=0.0) is True


def at(*when: int) -> int:
    moment = datetime.datetime(*when, tzinfo=datetime.UTC)  # type: ignore[arg-type, misc]
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(
        microseconds=1
    )


@pytest.mark.parametrize(
    ("time_us", "zone", "hour", "day"),
    [
        (0, "UTC", 0, 3),  # a Thursday
        (-1, "UTC", 23, 2),
        (at(2013, 3, 10, 6, 59, 59), "America/New_York", 1, 6),  # the last second of winter ...
        (at(2013, 3, 10, 7), "America/New_York", 3, 6),  # ... and the first of summer
        (at(2013, 11, 3, 5, 30), "America/New_York", 1, 6),
        (at(2013, 11, 3, 6, 30), "America/New_York", 1, 6),  # the same hour once more
        (at(2013, 11, 4, 4, 59, 59), "America/New_York", 23, 6),
        (at(2013, 6, 1, 18, 14, 59), "Asia/Kathmandu", 23, 5),  # UTC+05:45
        (at(2013, 6, 1, 18, 15), "Asia/Kathmandu", 0, 6),
        (EARLIEST_EVENT, "UTC", 0, 0),
        (EARLIEST_EVENT, "America/New_York", 19, 6),  # local mean time, a day before the calendar
        (LATEST_EVENT, "Asia/Kathmandu", 5, 5),
    ],
)
def test_hour_and_day_are_local(time_us: int, zone: str, hour: int, day: int) -> None:
    assert meaning(col("at").hour_of_day(zone), at=time_us) == hour
    assert meaning(col("at").day_of_week(zone), at=time_us) == day
    for expression in (col("at").hour_of_day(zone), col("at").day_of_week(zone)):
        check_twins(expression, SCHEMA, [NULLS | {"at": time_us}])


def test_a_missing_column_and_a_wrong_type_are_named() -> None:
    with pytest.raises(InputError, match="no column 'n'"):
        evaluate(col("n"), {"x": 1.0}, SCHEMA)
    with pytest.raises(InputError, match=r"'at' is timestamp and must be a Python int \(micro"):
        meaning(col("at"), at=datetime.datetime.now(datetime.UTC))


def test_an_unknown_node_is_refused_by_name() -> None:
    class Surprise(Expression):
        pass

    with pytest.raises(DefinitionError, match="no rule for Surprise"):
        meaning(Surprise())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_columnar_and_row_wise_evaluation_are_twins(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    expression = data.draw(expressions(schema, data.draw(st.sampled_from(DTYPES)), depth=3))
    row = st.fixed_dictionaries(
        {name: st.none() | values(dtype) | values(dtype) for name, dtype in schema.items()}
    )
    check_twins(expression, schema, data.draw(st.lists(row, max_size=6)))


@pytest.mark.parametrize(
    "expression",
    [
        Literal(-0.0),
        col("x").fill_null(-0.0),
        col("x").fill_null(2**53 + 1),
        col("x").is_in([-0.0]),
        col("x") * 1.5 == col("n"),
    ],
)
def test_twins_on_zeros_and_large_ints(expression: Expression) -> None:
    rows = [NULLS, NULLS | {"x": 0.0, "n": 0}, NULLS | {"x": 1.0, "n": 2**53 + 1}]
    check_twins(expression, SCHEMA, rows)


@given(values("float64"))
@example(-0.0)
def test_a_float_column_is_finite_and_not_minus_zero(x: float) -> None:
    found = meaning(col("x"), x=x)
    assert found == x
    assert math.copysign(1, found) == (math.copysign(1, x) if x else 1)
