"""Aggregations: what is written wrongly is refused at once, with what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tidemill import (
    col,
    count,
    distinct_count,
    first,
    last_k,
    mean,
    quantile,
    rate,
    sum,
    variance,
)
from tidemill.features.definitions import Aggregation
from tidemill.features.errors import DefinitionError, WrongType

DELAY = col("delay")


@pytest.mark.parametrize(
    ("define", "error", "says"),
    [
        (
            lambda: sum("quantity", over="1d"),
            WrongType,
            r"sum: the column must be an expression: sum\(col\('quantity'\)\); found 'quantity'",
        ),
        (
            lambda: distinct_count("origin", over="1d"),
            WrongType,
            r"distinct_count\(col\('origin'\)\)",
        ),
        (lambda: count("origin", over="1d"), WrongType, r"count\(col\('origin'\)\)"),
        (lambda: count(3, over="1d"), WrongType, "count: the column must be an expression"),
        (lambda: mean(None, over="1d"), WrongType, "mean: the column must be an expression"),
        (lambda: mean(sum(DELAY, over="1d"), over="1d"), WrongType, "mean: the column must be"),
        (lambda: first(["delay"], over="1d"), WrongType, "first: the column must be"),
        (lambda: sum(math.nan, over="1d"), DefinitionError, "sum: the column: literal nan"),
        (
            lambda: rate(True, over="1d"),
            WrongType,
            r"rate: the condition must be .*col\('amount'\) > 0; found True \(bool\)",
        ),
        (lambda: rate("late", over="1d"), WrongType, r"rate: the condition .* col\('late'\) or"),
        (lambda: count(over="1d", where="late"), WrongType, r"count: 'where' .* col\('late'\) or"),
        (lambda: count(over="1d", where=True), WrongType, "count: 'where' must be an expression"),
        (
            lambda: count(over="400000000d"),
            DefinitionError,
            "count: the window 'over' '400000000d' is too long; take at most 11574074d",
        ),
        (lambda: count(over="9" * 5_000 + "d"), DefinitionError, "'over' '9999.*is too long"),
        (lambda: count(over=None), DefinitionError, "'over' must be a text such as '5m'"),
        (lambda: count(over="\u0663d"), DefinitionError, "is not a duration"),
        (lambda: quantile(0.5, DELAY, over="1d"), DefinitionError, "q must be a number from 0"),
        (lambda: quantile(DELAY, math.nan, over="1d"), DefinitionError, "q must be a number"),
        (lambda: quantile(DELAY, 10**5_000, over="1d"), DefinitionError, "q must be .* bits>"),
        (lambda: quantile(DELAY, True, over="1d"), DefinitionError, "q must be a number"),
        (lambda: last_k(DELAY, k=10**5_000, over="1d"), DefinitionError, "k must be an int from 1"),
        (lambda: last_k(DELAY, k=2.0, over="1d"), DefinitionError, "k must be an int from 1"),
        (lambda: variance(DELAY, ddof="1", over="1d"), DefinitionError, "ddof must be 0"),
        (lambda: Aggregation(over="1d"), WrongType, "Aggregation is no aggregation by itself"),
    ],
)
def test_a_mistake_is_refused_with_what_to_write(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        define()
    assert type(caught.value) is error


OPERATORS: list[Callable[[Any], Any]] = [
    lambda a: a / sum(DELAY, over="1d"),
    lambda a: a + 1,
    lambda a: 1 - a,
    lambda a: np.float64(3) * a,
    lambda a: np.arange(3) * a,
    lambda a: a // 2,
    lambda a: a % 2,
    lambda a: a**2,
    lambda a: -a,
    abs,
    round,
    float,
    lambda a: a & a,
    lambda a: a | True,
    lambda a: ~a,
    lambda a: a > 3,
    lambda a: np.int64(3) >= a,
    lambda a: a[0],
    lambda a: 3 in a,
    list,
    bool,
]


@pytest.mark.parametrize("operate", OPERATORS)
def test_an_aggregation_is_no_value_to_compute_with(operate: Callable[[Any], Any]) -> None:
    with pytest.raises(DefinitionError, match=r"mean: an aggregation has no .*preprocessing_fn"):
        operate(mean(DELAY, over="1d"))


def test_an_expression_takes_no_aggregation() -> None:
    with pytest.raises(DefinitionError, match=r"aggregation has no|an expression takes"):
        mean(DELAY, over="1d") < DELAY  # noqa: B015 - the mistake in question


def test_a_number_may_be_aggregated_and_q_may_be_numpys() -> None:
    assert sum(2, over="1d").spec()["column"] == ["lit", "int64", 2]
    made = [quantile(DELAY, q, over="1d").spec() for q in (0.25, np.float64(0.25))]
    assert made[0] == made[1]
    assert quantile(DELAY, -0.0, over="1d").spec() == quantile(DELAY, 0, over="1d").spec()
