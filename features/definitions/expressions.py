"""Column expressions: what a feature aggregates, filters on, or reads at request time.

An expression is a small tree of frozen nodes. Its dtype is inferred against a schema when it is
defined, so a misspelt column or a comparison of a text with a number is an error at import time.
It is evaluated over Arrow batches (`evaluation` says what nulls and overflows give).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features import zones
from tidemill.features.definitions.arguments import (
    NO_OPERATORS,
    check_column_name,
    check_utf8,
    prefix_errors,
    refuse_operators,
)
from tidemill.features.definitions.evaluation import (
    arithmetic,
    compare,
    fill_null,
    finite,
    is_in,
    local_field,
)
from tidemill.features.definitions.schema import (
    ARROW_TYPES,
    BOOL,
    FLOAT64,
    INT64,
    NUMERIC,
    STRING,
    TIMESTAMP,
    Scalar,
    Schema,
)
from tidemill.features.errors import (
    DefinitionError,
    UnknownColumn,
    WrongType,
    found,
    nearest,
    shown,
)


class Expression:
    """A column expression; build one from `col` with operators and methods."""

    def dtype(self, schema: Schema) -> str:
        """Infer the dtype against a schema; raises `DefinitionError` where it cannot be."""
        raise WrongType(f"{type(self).__name__} infers no dtype; start from col(...)")

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Evaluate over a batch; returns an Arrow array of the inferred dtype, ``(rows,)``."""
        raise WrongType(f"{type(self).__name__} evaluates nothing; start from col(...)")

    def columns(self) -> frozenset[str]:
        """Return the names of the columns that are read."""
        operands = (each for each in vars(self).values() if isinstance(each, Expression))
        return frozenset().union(*(operand.columns() for operand in operands))

    def spec(self) -> list[Any]:
        """Return a canonical JSON value (part of the feature-spec hash)."""
        raise WrongType(f"{type(self).__name__} has no spec; start from col(...)")

    # With a numpy number on the left, numpy leaves the operator to this class.
    __array_ufunc__ = None

    # Comparisons build expressions: compare the specs of two expressions instead.
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise DefinitionError(
            "an expression has no truth value; write & | ~ instead of and, or, not, "
            "and put comparisons in parentheses"
        )

    def __add__(self, other: Expression | Scalar) -> Expression:
        return Arithmetic("+", self, wrap(other))

    def __radd__(self, other: Scalar) -> Expression:
        return Arithmetic("+", wrap(other), self)

    def __sub__(self, other: Expression | Scalar) -> Expression:
        return Arithmetic("-", self, wrap(other))

    def __rsub__(self, other: Scalar) -> Expression:
        return Arithmetic("-", wrap(other), self)

    def __mul__(self, other: Expression | Scalar) -> Expression:
        return Arithmetic("*", self, wrap(other))

    def __rmul__(self, other: Scalar) -> Expression:
        return Arithmetic("*", wrap(other), self)

    def __truediv__(self, other: Expression | Scalar) -> Expression:
        return Arithmetic("/", self, wrap(other))

    def __rtruediv__(self, other: Scalar) -> Expression:
        return Arithmetic("/", wrap(other), self)

    def __neg__(self) -> Expression:
        return Arithmetic("-", Literal(0), self)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return Comparison("==", self, wrap(other))

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return Comparison("!=", self, wrap(other))

    def __lt__(self, other: Expression | Scalar) -> Expression:
        return Comparison("<", self, wrap(other))

    def __le__(self, other: Expression | Scalar) -> Expression:
        return Comparison("<=", self, wrap(other))

    def __gt__(self, other: Expression | Scalar) -> Expression:
        return Comparison(">", self, wrap(other))

    def __ge__(self, other: Expression | Scalar) -> Expression:
        return Comparison(">=", self, wrap(other))

    def __and__(self, other: Expression | bool) -> Expression:
        return Logic("and", self, wrap(other))

    def __or__(self, other: Expression | bool) -> Expression:
        return Logic("or", self, wrap(other))

    def __rand__(self, other: bool) -> Expression:
        return Logic("and", wrap(other), self)

    def __ror__(self, other: bool) -> Expression:
        return Logic("or", wrap(other), self)

    def __invert__(self) -> Expression:
        return Not(self)

    def is_null(self) -> Expression:
        """True where the value is null; never null itself."""
        return IsNull(self)

    def fill_null(self, value: Scalar) -> Expression:
        """The value, or ``value`` where it is null."""
        return FillNull(self, literal(value, "fill_null"))

    def is_in(self, values: Collection[Scalar]) -> Expression:
        """True where the value equals one of ``values``; null where it is null.

        A set is taken in ascending order, so that its definition has one hash in every process.
        """
        try:
            listed = None if isinstance(values, str | bytes | Mapping) else list(values)
        except (TypeError, DefinitionError):  # no iteration: of a number, of an expression
            listed = None
        if listed is None:
            raise WrongType(
                f"is_in takes a list of values, such as .is_in(['France', 'Spain']); "
                f"{found(values)}"
            )
        taken = [literal(value, "is_in") for value in listed]
        if isinstance(values, set | frozenset):
            taken.sort(key=lambda each: (each.dtype({}), each.value))
        return IsIn(self, tuple(each.value for each in taken))

    def hour_of_day(self, zone: str) -> Expression:
        """The local hour, 0 to 23, of a time in an IANA zone."""
        return LocalField("hour_of_day", self, zone)

    def day_of_week(self, zone: str) -> Expression:
        """The local day of the week of a time in an IANA zone: Monday is 0, Sunday 6."""
        return LocalField("day_of_week", self, zone)


def col(name: str) -> Expression:
    """Name a column of the stream or request that the expression is used with."""
    return Column(name)


refuse_operators(
    Expression,
    {**NO_OPERATORS, "unary +": "pos", "'in'; write .is_in([...]) for membership": "contains"},
    lambda _, operator: (
        f"an expression has no {operator}; it has + - * / comparisons & | ~, and "
        "the methods is_null, fill_null, is_in, hour_of_day and day_of_week"
    ),
)


def plain(value: object) -> Scalar | None:
    """Return a number, text or boolean as Python's own type; None for anything else."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if type(value) is np.timedelta64:  # a subclass of np.integer, but with a unit
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    # Of an enum's member this is the value; str() may give its name.
    return str.__str__(value) if isinstance(value, str) else None


def literal(value: object, what: str) -> Literal:
    """Return a plain value as a constant.

    Args:
        value: A number, text or boolean, of numpy too.
        what: What it is for; used in the error.

    Raises:
        WrongType: The value is of another type.
        DefinitionError: No column can hold it.
    """
    scalar = plain(value)
    if scalar is None:
        raise WrongType(f"{what} takes numbers, texts and booleans; {found(value)}")
    with prefix_errors(what):
        return Literal(scalar)


def wrap(value: object) -> Expression:
    """Return an expression as it is and a plain value as a literal.

    Raises:
        WrongType: The value is neither.
    """
    if isinstance(value, Expression):
        return value
    scalar = plain(value)
    if scalar is None:
        raise WrongType(
            f"an expression takes columns, numbers, texts and booleans; {found(value)}; "
            "for null write .is_null() or .fill_null(...)"
        )
    return Literal(scalar)


@dataclass(frozen=True, eq=False)
class Column(Expression):
    """A column by name."""

    name: str

    def __post_init__(self) -> None:
        check_column_name(self.name, "col: the name")

    def dtype(self, schema: Schema) -> str:
        """Return the declared dtype."""
        if self.name not in schema:
            raise UnknownColumn(
                f"column {shown(self.name)} is not in the schema; {nearest(self.name, schema)}"
            )
        return schema[self.name]

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column; null where the cell is null or not finite."""
        array = batch.column(self.name)
        return finite(array) if pa.types.is_float64(array.type) else array

    def columns(self) -> frozenset[str]:
        """Return its own name."""
        return frozenset([self.name])

    def spec(self) -> list[Any]:
        """Return ``["col", name]``."""
        return ["col", self.name]


@dataclass(frozen=True, eq=False)
class Literal(Expression):
    """A constant."""

    value: Scalar

    def __post_init__(self) -> None:
        value = plain(self.value)
        if value is None:
            raise WrongType(f"a literal is a number, a text or a boolean; {found(self.value)}")
        if isinstance(value, float):
            if not np.isfinite(value):
                raise DefinitionError(f"literal {value!r} is not finite")
            value += 0.0  # -0.0 becomes 0.0
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise DefinitionError(f"literal {shown(value)} does not fit int64")
        if isinstance(value, str):
            check_utf8(value, "literal")
        object.__setattr__(self, "value", value)

    def dtype(self, schema: Schema) -> str:
        """Return the dtype of the constant."""
        return {bool: BOOL, int: INT64, float: FLOAT64, str: STRING}[type(self.value)]

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the constant, repeated; it is never null."""
        return pa.repeat(pa.scalar(self.value, ARROW_TYPES[self.dtype({})]), batch.num_rows)

    def spec(self) -> list[Any]:
        """Return ``["lit", dtype, value]`` (floats as hexadecimal text)."""
        value = self.value.hex() if isinstance(self.value, float) else self.value
        return ["lit", self.dtype({}), value]


@dataclass(frozen=True, eq=False)
class _Binary(Expression):
    """``left op right``."""

    op: str
    left: Expression
    right: Expression

    def spec(self) -> list[Any]:
        """Return ``[op, left, right]``."""
        return [self.op, self.left.spec(), self.right.spec()]


@dataclass(frozen=True, eq=False)
class Arithmetic(_Binary):
    """``left op right`` for ``+ - * /``."""

    def dtype(self, schema: Schema) -> str:
        """Infer: int64 with int64 is int64 (but for ``/``), time - time is int64, else float64."""
        left, right = self.left.dtype(schema), self.right.dtype(schema)
        if self.op == "-" and left == right == TIMESTAMP:
            return INT64
        if left not in NUMERIC or right not in NUMERIC:
            raise WrongType(
                f"{self.op!r} takes two numbers (or, for '-', two times), found {left} and {right}"
            )
        return INT64 if self.op != "/" and left == right == INT64 else FLOAT64

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Compute; null where a side is null, or the result is no number of its dtype."""
        return arithmetic(self.op, self.left.evaluate(batch), self.right.evaluate(batch))


@dataclass(frozen=True, eq=False)
class Comparison(_Binary):
    """``left op right`` for ``== != < <= > >=``; texts compare by their UTF-8 bytes."""

    def dtype(self, schema: Schema) -> str:
        """Return bool when the sides are comparable."""
        left, right = self.left.dtype(schema), self.right.dtype(schema)
        if left != right and not (left in NUMERIC and right in NUMERIC):
            raise WrongType(f"{self.op!r} cannot compare {left} with {right}")
        if left == BOOL and self.op not in ("==", "!="):
            raise WrongType(f"{self.op!r} does not order booleans; use == or !=")
        return BOOL

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Compare; null where a side is null."""
        return compare(self.op, self.left.evaluate(batch), self.right.evaluate(batch))


def _require(expression: Expression, wanted: Sequence[str], schema: Schema, what: str) -> None:
    found = expression.dtype(schema)
    if found not in wanted:
        raise WrongType(f"{what} takes {' or '.join(wanted)}, found {found}")


@dataclass(frozen=True, eq=False)
class Logic(_Binary):
    """Kleene ``and`` / ``or``."""

    def dtype(self, schema: Schema) -> str:
        """Return bool when both sides are."""
        symbol = "&" if self.op == "and" else "|"
        for side in (self.left, self.right):
            _require(side, (BOOL,), schema, f"{symbol!r}")
        return BOOL

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Combine; null where the outcome depends on a null (Kleene)."""
        combine = pc.and_kleene if self.op == "and" else pc.or_kleene
        return combine(self.left.evaluate(batch), self.right.evaluate(batch))


@dataclass(frozen=True, eq=False)
class Not(Expression):
    """Boolean negation; null stays null."""

    operand: Expression

    def dtype(self, schema: Schema) -> str:
        """Return bool when the operand is."""
        _require(self.operand, (BOOL,), schema, "'~'")
        return BOOL

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Negate; null where the operand is null."""
        return pc.invert(self.operand.evaluate(batch))

    def spec(self) -> list[Any]:
        """Return ``["not", operand]``."""
        return ["not", self.operand.spec()]


@dataclass(frozen=True, eq=False)
class IsNull(Expression):
    """True where the operand is null."""

    operand: Expression

    def dtype(self, schema: Schema) -> str:
        """Return bool."""
        self.operand.dtype(schema)
        return BOOL

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Test for null; the result is never null."""
        return pc.is_null(self.operand.evaluate(batch))

    def spec(self) -> list[Any]:
        """Return ``["is_null", operand]``."""
        return ["is_null", self.operand.spec()]


@dataclass(frozen=True, eq=False)
class FillNull(Expression):
    """The operand, or a constant where it is null."""

    operand: Expression
    value: Literal

    def dtype(self, schema: Schema) -> str:
        """Return the operand's dtype; the constant must have it (an int may fill a float64)."""
        found, fill = self.operand.dtype(schema), self.value.dtype(schema)
        if found != fill and (found, fill) != (FLOAT64, INT64):
            raise WrongType(
                f"fill_null: cannot fill {found} with {shown(self.value.value)} ({fill})"
            )
        return found

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Fill; the result is never null."""
        return fill_null(self.operand.evaluate(batch), self.value.value)

    def spec(self) -> list[Any]:
        """Return ``["fill_null", operand, literal]``."""
        return ["fill_null", self.operand.spec(), self.value.spec()]


@dataclass(frozen=True, eq=False)
class IsIn(Expression):
    """True where the operand equals one of the values; null where it is null."""

    operand: Expression
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        values = tuple(literal(value, "is_in").value for value in self.values)
        object.__setattr__(self, "values", values)

    def dtype(self, schema: Schema) -> str:
        """Return bool when every value has the operand's dtype."""
        found = self.operand.dtype(schema)
        for value in self.values:
            if (dtype := Literal(value).dtype(schema)) != found:
                raise WrongType(
                    f"is_in: {shown(value)} is {dtype}; list values of the column's dtype, {found}"
                )
        return BOOL

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Test membership; null where the operand is null."""
        return is_in(self.operand.evaluate(batch), self.values)

    def spec(self) -> list[Any]:
        """Return ``["is_in", operand, literals]``."""
        return ["is_in", self.operand.spec(), [Literal(v).spec() for v in self.values]]


@dataclass(frozen=True, eq=False)
class LocalField(Expression):
    """The local hour of day or day of week of a time in a zone."""

    field: str
    operand: Expression
    zone: str

    def __post_init__(self) -> None:
        zones.zone(self.zone)

    def dtype(self, schema: Schema) -> str:
        """Return int64 when the operand is a time."""
        _require(self.operand, (TIMESTAMP,), schema, self.field)
        return INT64

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Compute from the pinned zone tables; null where the time is null."""
        return local_field(self.field, self.operand.evaluate(batch), self.zone)

    def spec(self) -> list[Any]:
        """Return ``[field, operand, zone]``."""
        return [self.field, self.operand.spec(), self.zone]
