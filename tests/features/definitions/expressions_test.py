"""Expressions: what they mean, whole columns against one row at a time, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import strategies
from tidemill import col, count
from tidemill.features.definitions import (
    ARROW_TYPES,
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    Expression,
    Literal,
    wrap,
)
from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType
from tidemill.features.oracle import expressions

SCHEMA = {"i": INT64, "f": FLOAT64, "s": STRING, "b": BOOL, "t": TIMESTAMP, "u": TIMESTAMP}
NEW_YORK = "America/New_York"


def value_of(expression: Expression, **row: Any) -> Any:
    """Evaluate over one row; columns that are not given are null."""
    batch = strategies.to_batch(SCHEMA, [dict.fromkeys(SCHEMA) | row])
    array = expression.evaluate(batch)
    assert array.type == ARROW_TYPES[expression.dtype(SCHEMA)]
    return array[0].as_py()


@st.composite
def trees_and_rows(draw: st.DrawFn) -> tuple[Expression, list[dict[str, Any]]]:
    dtype = draw(st.sampled_from((INT64, FLOAT64, STRING, BOOL)))
    tree = draw(strategies.expressions(SCHEMA, dtype, depth=3))
    columns = {c: st.none() | strategies.values(d) for c, d in SCHEMA.items()}
    return tree, draw(st.lists(st.fixed_dictionaries(columns), max_size=5))


@given(trees_and_rows())
def test_a_batch_gives_what_each_row_gives_alone(
    case: tuple[Expression, list[dict[str, Any]]],
) -> None:
    tree, rows = case
    found = tree.evaluate(strategies.to_batch(SCHEMA, rows))
    assert found.type == ARROW_TYPES[tree.dtype(SCHEMA)]
    wanted = [expressions.evaluate(tree, row, SCHEMA) for row in rows]
    # repr tells 0.0 from -0.0, and True from 1.
    assert [repr(value) for value in found.to_pylist()] == [repr(value) for value in wanted]


@given(trees_and_rows())
def test_a_slice_gives_what_the_whole_gives(
    case: tuple[Expression, list[dict[str, Any]]],
) -> None:
    tree, rows = case
    batch = strategies.to_batch(SCHEMA, rows)
    whole = tree.evaluate(batch)
    for start in range(len(rows)):
        assert tree.evaluate(batch.slice(start, 1)).equals(whole.slice(start, 1))


@given(trees_and_rows())
def test_the_columns_named_are_all_that_is_read(
    case: tuple[Expression, list[dict[str, Any]]],
) -> None:
    tree, rows = case
    batch = strategies.to_batch(SCHEMA, rows)
    some = batch.select(sorted(tree.columns()) or ["i"])
    assert tree.evaluate(some).equals(tree.evaluate(batch))


@given(trees_and_rows())
def test_the_spec_is_json_and_equal_for_the_same_tree(
    case: tuple[Expression, list[dict[str, Any]]],
) -> None:
    tree, _ = case
    assert json.loads(json.dumps(tree.spec())) == tree.spec()
    assert tree.spec() != tree.is_null().spec()


@pytest.mark.parametrize(
    ("expression", "row", "wanted"),
    [
        (col("i") + 1, {"i": 2}, 3),
        (1 + col("i"), {"i": 2}, 3),
        (1 - col("i"), {"i": 3}, -2),
        (2 * col("i"), {"i": 3}, 6),
        (-col("i"), {"i": 3}, -3),
        (-col("f"), {"f": 0.0}, 0.0),
        (col("i") / 2, {"i": 3}, 1.5),
        (1 / col("i"), {"i": 4}, 0.25),
        (col("i") + 0.5, {"i": 2}, 2.5),
        (col("t") - col("u"), {"t": 90, "u": 30}, 60),
    ],
)
def test_arithmetic(expression: Expression, row: dict[str, Any], wanted: Any) -> None:
    assert repr(value_of(expression, **row)) == repr(wanted)


@pytest.mark.parametrize(
    ("expression", "row"),
    [
        (col("i") + 1, {}),
        (col("i") + 1, {"i": 2**63 - 1}),
        (col("i") * 2, {"i": -(2**63)}),
        (-col("i"), {"i": -(2**63)}),
        (col("f") * 10.0, {"f": 1e308}),
        (col("i") / 0, {"i": 1}),
        (col("i") / 0, {"i": 0}),
        (col("f") / col("f"), {"f": 0.0}),
        (col("f"), {"f": math.nan}),
        (col("f"), {"f": -math.inf}),
        (col("i") < 3, {}),
        (col("s") == "a", {}),
        (col("i").is_in([1, 2]), {}),
        (col("t").hour_of_day(NEW_YORK), {}),
    ],
)
def test_null_overflow_and_what_is_not_finite_give_null(
    expression: Expression, row: dict[str, Any]
) -> None:
    assert value_of(expression, **row) is None


def test_one_row_that_overflows_costs_its_neighbours_nothing() -> None:
    rows = [dict.fromkeys(SCHEMA) | {"i": i} for i in (1, 2**63 - 1, None, -3)]
    assert (col("i") + 1).evaluate(strategies.to_batch(SCHEMA, rows)).to_pylist() == [
        2,
        None,
        None,
        -2,
    ]


@pytest.mark.parametrize(
    ("left", "right", "both", "either"),
    [
        (True, True, True, True),
        (True, False, False, True),
        (False, False, False, False),
        (None, True, None, True),
        (None, False, False, None),
        (None, None, None, None),
    ],
)
def test_logic_is_kleenes(
    left: bool | None, right: bool | None, both: bool | None, either: bool | None
) -> None:
    truth = {True: col("i") == 1, False: col("i") == 2, None: col("f") > 0}
    for one, other in ((left, right), (right, left)):
        assert value_of(truth[one] & truth[other], i=1) is both
        assert value_of(truth[one] | truth[other], i=1) is either
    assert value_of(~truth[left], i=1) is (None if left is None else not left)


def test_nulls_are_found_and_filled() -> None:
    assert value_of(col("f").is_null()) is True
    assert value_of(col("f").is_null(), f=1.0) is False
    assert value_of(col("f").fill_null(2)) == 2.0
    assert value_of(col("f").fill_null(2), f=1.0) == 1.0
    assert value_of(col("s").fill_null("none")) == "none"
    assert value_of(col("b").fill_null(False)) is False
    # An overflow is null before it is filled.
    assert value_of((col("i") + 1).fill_null(0), i=2**63 - 1) == 0


def test_texts_compare_by_their_utf8_bytes() -> None:
    assert value_of(col("s") < "𐀀", s="￿") is True
    assert value_of(col("s") < "b", s="B") is True


def test_membership() -> None:
    assert value_of(col("s").is_in(["ORD", "JFK"]), s="JFK") is True
    assert value_of(col("s").is_in(["ORD", "JFK"]), s="LGA") is False
    assert value_of(col("s").is_in([]), s="LGA") is False


@pytest.mark.parametrize(
    ("utc_seconds", "hour", "day"),
    [
        (1_362_898_800 - 1, 1, 6),  # the last second before New York's clocks skip an hour
        (1_362_898_800, 3, 6),
        (1_383_458_400 - 1, 1, 6),  # the hour from 1 to 2 is told twice
        (1_383_458_400, 1, 6),
        (0, 19, 2),  # Wednesday evening while Thursday begins in Greenwich
    ],
)
def test_local_fields_follow_the_zone(utc_seconds: int, hour: int, day: int) -> None:
    time_us = utc_seconds * 1_000_000
    assert value_of(col("t").hour_of_day(NEW_YORK), t=time_us) == hour
    assert value_of(col("t").day_of_week(NEW_YORK), t=time_us) == day


@pytest.mark.parametrize(
    ("expression", "error", "says"),
    [
        (col("orgin"), UnknownColumn, "column 'orgin' is not in the schema"),
        (col("s") + 1, WrongType, "two numbers"),
        (col("t") + col("u"), WrongType, "two times"),
        (col("t") - 1, WrongType, "two times"),
        (col("b") * 2, WrongType, "found bool and int64"),
        (col("s") > 1, WrongType, "cannot compare string with int64"),
        (col("t") > "2013-01-01", WrongType, "cannot compare timestamp with string"),
        (col("b") < True, WrongType, "does not order booleans"),
        ((col("i") > 1) & col("i"), WrongType, "'&' takes bool"),
        (col("i") | (col("i") > 1), WrongType, r"'\|' takes bool"),
        (~col("i"), WrongType, "'~' takes bool, found int64"),
        (col("i").fill_null("x"), WrongType, "cannot fill int64 with 'x'"),
        (col("i").fill_null(0.5), WrongType, "cannot fill int64"),
        (col("i").is_in([1, "x"]), WrongType, "'x' is string; list values of .* dtype, int64"),
        (col("f").is_in([1]), WrongType, "is_in: 1 is int64; list values of .* dtype, float64"),
        (col("i").hour_of_day("UTC"), WrongType, "takes timestamp, found int64"),
        (col("nothing").is_null(), UnknownColumn, "nothing"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_defined(
    expression: Expression, error: type[DefinitionError], says: str
) -> None:
    with pytest.raises(error, match=says):
        expression.dtype(SCHEMA)


@pytest.mark.parametrize(
    ("define", "error", "says"),
    [
        (lambda: col("t").hour_of_day("Mars/Olympus"), DefinitionError, "Mars/Olympus"),
        (lambda: Literal(math.nan), DefinitionError, "not finite"),
        (lambda: col("f") > math.inf, DefinitionError, "not finite"),
        (lambda: col("i") == 2**63, DefinitionError, "does not fit int64"),
        (lambda: wrap(None), WrongType, "is_null"),
        (lambda: col("i") == None, WrongType, "is_null"),  # noqa: E711 - the mistake in question
        (lambda: col("i") > [1], WrongType, "list"),
        (lambda: bool(col("i") > 1), DefinitionError, "& | ~ instead of and, or, not"),
        (lambda: 1 < col("i") < 3, DefinitionError, "parentheses"),
        (lambda: col(3), WrongType, r"col: the name must be .* a text; found 3 \(int\)"),
        (lambda: col(col("i")), WrongType, "col: the name must be the name of one column"),
        (lambda: col(""), DefinitionError, "col: the name is empty"),
        (lambda: col("\ud800"), DefinitionError, "surrogate"),
        (lambda: col("s") == "\udfff", DefinitionError, "literal .* surrogate"),
        (lambda: col("s").is_in("France"), WrongType, r"list of values.*found 'France' \(str\)"),
        (lambda: col("s").is_in(b"France"), WrongType, "is_in takes a list of values"),
        (lambda: col("s").is_in({"France": 1}), WrongType, "is_in takes a list of values"),
        (lambda: col("s").is_in(col("s")), WrongType, "is_in takes a list of values"),
        (lambda: col("i").is_in(3), WrongType, "is_in takes a list of values"),
        (lambda: col("i").is_in(np.array(3)), WrongType, "is_in takes a list of values"),
        (lambda: col("i").is_in(count(over="1h")), WrongType, "is_in takes a list of values"),
        (lambda: col("s").is_in(["a", None]), WrongType, "is_in takes numbers, texts and bool"),
        (lambda: col("f").is_in([math.nan]), DefinitionError, "is_in: literal nan is not finite"),
        (lambda: col("f").fill_null(None), WrongType, "fill_null takes numbers, texts and bool"),
        (lambda: col("f").fill_null(col("i")), WrongType, "fill_null takes numbers, texts"),
        (lambda: col("f").fill_null(math.inf), DefinitionError, "fill_null: literal inf is not"),
        (lambda: col("i") + np.timedelta64(1, "s"), WrongType, "timedelta64"),
        (lambda: col("i") + np.arange(3), WrongType, "an expression takes .* found array"),
        (lambda: np.arange(3) + col("i"), WrongType, "an expression takes .* found array"),
        (
            lambda: col("i") == 10**5_000,
            DefinitionError,
            "literal <an int of .* bits> does not fit",
        ),
        (lambda: col("t").hour_of_day(5), WrongType, r"a time zone is a text .*found 5 \(int\)"),
        (lambda: col("t").day_of_week(["UTC"]), WrongType, "a time zone is a text"),
        (lambda: col("i") % 2, DefinitionError, "an expression has no %; it has"),
        (lambda: 7 % col("i"), DefinitionError, "an expression has no %"),
        (lambda: col("i") // 2, DefinitionError, "an expression has no //"),
        (lambda: 2 ** col("i"), DefinitionError, r"an expression has no \*\*"),
        (lambda: divmod(col("i"), 2), DefinitionError, "an expression has no divmod"),
        (lambda: col("i") ^ col("i"), DefinitionError, r"an expression has no \^"),
        (lambda: abs(col("i")), DefinitionError, "an expression has no abs"),
        (lambda: round(col("f")), DefinitionError, "an expression has no round"),
        (lambda: float(col("i")), DefinitionError, "an expression has no float"),
        (lambda: col("s")[0], DefinitionError, r"an expression has no \[\]"),
        (lambda: len(col("s")), DefinitionError, "an expression has no length"),
        (lambda: list(col("s")), DefinitionError, "an expression has no iteration"),
        (lambda: "x" in col("s"), DefinitionError, r"has no 'in'; write \.is_in"),
    ],
)
def test_mistakes_in_writing_are_refused_at_once(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    with pytest.raises(error, match=says):
        define()


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(UnknownColumn, match="did you mean 'origin'"):
        col("orgin").dtype({"origin": STRING, "dest": STRING})


def test_an_empty_batch_gives_an_empty_column() -> None:
    empty = strategies.to_batch(SCHEMA, [])
    for expression in (col("i") + 1, col("f") * 2, col("t").hour_of_day(NEW_YORK), wrap(1)):
        found = expression.evaluate(empty)
        assert found.type == ARROW_TYPES[expression.dtype(SCHEMA)]
        assert found.equals(pa.array([], found.type))


@pytest.mark.parametrize(
    ("made", "same"),
    [
        (col("f") > np.float64(3.5), col("f") > 3.5),
        (np.float64(3.5) < col("f"), col("f") > 3.5),
        (np.int64(2) * col("i"), 2 * col("i")),
        (col("i") == np.int32(3), col("i") == 3),
        (col("b") == np.bool_(True), col("b") == True),  # noqa: E712 - builds an expression
        (col("s") == np.str_("a"), col("s") == "a"),
        (col("i").is_in(np.array([1, 2])), col("i").is_in([1, 2])),
        (col("f").fill_null(np.float64(0)), col("f").fill_null(0.0)),
        (col("i").is_in(iter([1, 2])), col("i").is_in([1, 2])),
        (col("i").is_in({2: "b", 1: "a"}.keys()), col("i").is_in([2, 1])),
        (col("s").is_in({"b", "a", "é"}), col("s").is_in(["a", "b", "é"])),
        (col("i").is_in(frozenset([30, -4, 7])), col("i").is_in([-4, 7, 30])),
    ],
)
def test_other_ways_to_write_a_value_are_the_same_expression(
    made: Expression, same: Expression
) -> None:
    assert made.spec() == same.spec()
    assert json.loads(json.dumps(made.spec())) == same.spec()
    made.evaluate(strategies.to_batch(SCHEMA, [dict.fromkeys(SCHEMA)]))


def test_the_order_of_a_list_is_part_of_the_definition() -> None:
    assert col("s").is_in(["b", "a"]).spec() != col("s").is_in(["a", "b"]).spec()


def test_a_plain_truth_may_stand_on_the_left() -> None:
    positive = col("i") > 0
    assert value_of(True & positive, i=1) is True
    assert value_of(False | positive, i=-1) is False
