"""The oracle's expressions: one row at a time, in plain Python.

The same trees as `features.definitions.expressions` builds, evaluated again from the documented
semantics and from nothing else: no Arrow, no numpy, no code shared with the columnar evaluation.
Slow and obvious on purpose.

A row is a mapping from column to a plain value: int64 as int, float64 as float, string as str,
bool as bool, timestamp as int (microseconds, UTC), null as None.
"""

from __future__ import annotations

import datetime
import functools
import importlib.resources
import math
import operator
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any, Final

from tidemill.features.definitions import (
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    Arithmetic,
    Column,
    Comparison,
    Expression,
    FillNull,
    IsIn,
    IsNull,
    Literal,
    LocalField,
    Logic,
    Not,
    Schema,
)
from tidemill.features.errors import DefinitionError, InputError

Value = int | float | str | bool
"""A value that is not null."""

_PYTHON_TYPES: Final[Mapping[str, type]] = {
    INT64: int,
    FLOAT64: float,
    STRING: str,
    BOOL: bool,
    TIMESTAMP: int,
}
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_WEEK: Final = datetime.timedelta(days=7)


def evaluate(expression: Expression, row: Mapping[str, object], schema: Schema) -> Value | None:
    """Evaluate an expression over one row.

    Args:
        expression: The tree.
        row: Column to plain value (see the module); columns that are not read may be absent.
        schema: Column to dtype. It is needed because a null has no type of its own: an int literal
            that fills a null float64 is a float.

    Returns:
        The value, of the Python type of the expression's dtype, or None for null.

    Raises:
        InputError: The row lacks a column, or a value does not have its declared type.
        DefinitionError: A node of the tree is of a class that is unknown here.
    """
    result: Value | None = _evaluate(expression, row, schema)
    return result


def _evaluate(expression: Expression, row: Mapping[str, object], schema: Schema) -> Any:
    def of(operand: Expression) -> Any:
        return _evaluate(operand, row, schema)

    match expression:
        case Column(name):
            return read(row, name, schema)
        case Literal(value):
            return _tidy(value)
        case Arithmetic(op, left, right):
            return _arithmetic(op, of(left), of(right))
        case Comparison(op, left, right):
            return _compare(op, of(left), of(right))
        case Logic(op, left, right):
            return _kleene(op, of(left), of(right))
        case Not(operand):
            truth = of(operand)
            return None if truth is None else not truth
        case IsNull(operand):
            return of(operand) is None
        case FillNull(operand, literal):
            given, fill = of(operand), literal.value
            if given is not None:
                return given
            return _tidy(float(fill) if operand.dtype(schema) == FLOAT64 else fill)
        case IsIn(operand, values):
            given = of(operand)
            return None if given is None else any(given == value for value in values)
        case LocalField(field, operand, zone):
            time_us = of(operand)
            return None if time_us is None else _local_field(field, time_us, zone)
    raise DefinitionError(
        f"the oracle has no rule for {type(expression).__name__}; add it to evaluate()"
    )


def read(row: Mapping[str, object], column: str, schema: Schema) -> Value | None:
    """Read a column of a row: a non-finite float is null, and -0.0 is 0.0.

    Raises:
        InputError: The row lacks the column, or the value does not have its declared type.
    """
    if column not in row:
        raise InputError(f"the row has no column {column!r}; it has {', '.join(sorted(row))}")
    value = row[column]
    if value is None:
        return None
    wanted = _PYTHON_TYPES[schema[column]]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(
            f"column {column!r} is {schema[column]} and must be a Python {wanted.__name__}"
            f"{' (microseconds, UTC)' if schema[column] == TIMESTAMP else ''}, "
            f"found {value!r} ({type(value).__name__})"
        )
    tidied: Value | None = _tidy(value)
    return tidied


def _tidy(value: Any) -> Any:
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    return value


def _arithmetic(op: str, left: Any, right: Any) -> int | float | None:
    if left is None or right is None:
        return None
    compute = _OPERATORS[op]
    if op != "/" and isinstance(left, int) and isinstance(right, int):
        exact: int = compute(left, right)
        return exact if -(2**63) <= exact < 2**63 else None
    if op == "/" and right == 0:
        return None  # infinite, or 0 / 0
    result: float | None = _tidy(compute(float(left), float(right)))
    return result


def _compare(op: str, left: Any, right: Any) -> bool | None:
    if left is None or right is None:
        return None
    if isinstance(left, float) or isinstance(right, float):
        # Python would compare an int with a float exactly; the semantics convert first.
        left, right = float(left), float(right)
    if isinstance(left, str):
        left, right = left.encode("utf-8"), right.encode("utf-8")
    return bool(_OPERATORS[op](left, right))


def _kleene(op: str, left: Any, right: Any) -> bool | None:
    decisive = op == "or"  # one True decides an "or", one False an "and"
    if decisive in (left, right):
        return decisive
    return None if None in (left, right) else not decisive


def _local_field(field: str, time_us: int, zone: str) -> int:
    moment = _EPOCH + datetime.timedelta(microseconds=time_us)
    # In the first and last days of the calendar the local time may not be a datetime. A week
    # further in, the hour and the day of the week are the same.
    if moment < _EPOCH.replace(year=1) + _WEEK:
        moment += _WEEK
    elif moment >= _EPOCH.replace(year=9999, month=12, day=31):
        moment -= _WEEK
    local = moment.astimezone(_zone(zone))
    return local.hour if field == "hour_of_day" else local.weekday()


@functools.cache
def _zone(name: str) -> zoneinfo.ZoneInfo:
    # zoneinfo.ZoneInfo(name) would prefer the machine's own zone files to the pinned package.
    with importlib.resources.files("tzdata").joinpath(f"zoneinfo/{name}").open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file, key=name)
