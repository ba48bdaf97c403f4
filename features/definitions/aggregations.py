"""Aggregations: what a feature computes over its window.

An aggregation is a frozen dataclass that says

* which **partials** of a tile it is made of (`partials`): commutative monoids that the kernel
  keeps per tile and merges over the window, shared by all features that need the same one;
* how the merged partials become its value (`finish`, the name of a kernel function);
* what an empty window gives: 0 for counts and sums, null for everything else.

Every subclass with a ``name`` is registered when it is defined; the law suite finds it there.
``docs/aggregations.md`` shows how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

from tidemill.features.contract import format_duration, parse_duration
from tidemill.features.definitions.arguments import NO_OPERATORS, refuse_operators
from tidemill.features.definitions.described import DESCRIPTIVE, Described
from tidemill.features.definitions.expressions import Column, Expression, literal, plain
from tidemill.features.definitions.partials import Mask, Partial
from tidemill.features.definitions.schema import (
    BOOL,
    FEATURE_DTYPES,
    FLOAT64,
    INT64,
    NUMERIC,
    STRING,
    TIMESTAMP,
    Schema,
)
from tidemill.features.errors import DefinitionError, DuplicateName, WrongType, found, shown

DISTINCT_EXACT_BOUND: Final = 256
"""The most distinct values in a window that are counted exactly; more are sketched."""
DISTINCT_REGISTER_BITS: Final = 11
"""HyperLogLog precision: 2**11 registers, a standard error of 1.04 / sqrt(2048) = 2.3 %."""
QUANTILE_MANTISSA_BITS: Final = 7
"""DDSketch buckets per octave: 2**7, a relative error of at most 1/256 (0.39 %)."""

REGISTRY: dict[str, type[Aggregation]] = {}
"""Every aggregation by name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Aggregation(Described):
    """Base of all aggregations.

    Attributes:
        over: The window, such as ``"7d"``; a multiple of the view's hop.
        where: A boolean expression: only rows where it is true count (null is not true).
        owner: Who is responsible for it; no part of the hash, like tags and description.
        tags: Texts by name, for Feast's registry.
        description: What it is, in words.
    """

    over: str
    where: Expression | None = None
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    name: ClassVar[str] = ""
    finish: ClassVar[str] = ""
    empty: ClassVar[int | None] = None
    result: ClassVar[str] = FLOAT64
    takes: ClassVar[Sequence[str]] = ()
    anchored: ClassVar[bool] = False
    """True if the published value is an anchor, which a reader finishes with its ``as_of``."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            if cls.name in REGISTRY:
                raise DuplicateName(f"an aggregation named {cls.name!r} is registered already")
            REGISTRY[cls.name] = cls

    # With a numpy number on the left, numpy leaves the operator to this class.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        if not self.name:
            raise WrongType(f"{type(self).__name__} is no aggregation by itself; take count, ...")
        if self.window_us <= 0:
            raise DefinitionError(f"{self.name}: the window 'over' must be longer than zero")
        if self.where is not None:
            object.__setattr__(self, "where", self._expression(self.where, "'where'"))
        self.check_described(self.name)

    def _expression(self, value: object, what: str) -> Expression:
        """Return an expression; the error for a text proposes the column of that name."""
        if isinstance(value, Expression):
            return value
        column = shown(value) if isinstance(value, str) else "'amount'"
        write = f"col({column})"
        if BOOL in self.takes[:1] or what == "'where'":
            write = f"{write} or col({column}) > 0"
        elif what == "the column" and isinstance(value, str):
            write = f"{self.name}({write})"
        raise WrongType(f"{self.name}: {what} must be an expression: {write}; {found(value)}")

    @property
    def window_us(self) -> int:
        """The window in microseconds."""
        return parse_duration(self.over, f"{self.name}: the window 'over'")

    @property
    def operand(self) -> Expression | None:
        """What is aggregated; None where the row itself is."""
        return None

    @property
    def width(self) -> int:
        """How many values the feature has (``k`` for last-k, else 1)."""
        return 1

    @property
    def param(self) -> float:
        """A number that the finish function needs (the ``q`` of a quantile), else 0."""
        return 0.0

    def result_dtype(self, schema: Schema) -> str:
        """Return the dtype of the value, one of `FEATURE_DTYPES`: `result` by default."""
        return self.result

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the partials it is made of, in the order that its finish function takes them."""
        raise TypeError(f"{type(self).__name__} names no partials")

    def check(self, schema: Schema) -> None:
        """Check the operand and the filter against a schema.

        Raises:
            UnknownColumn: A column is not in the schema.
            WrongType: A dtype does not fit.
        """
        if self.operand is not None:
            dtype = self.operand.dtype(schema)
            if dtype not in self.takes:
                raise WrongType(f"{self.name} takes {' or '.join(self.takes)}, found {dtype}")
        if self.where is not None and (dtype := self.where.dtype(schema)) != BOOL:
            raise WrongType(f"{self.name}: 'where' must be bool, found {dtype}")

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value (part of the feature-spec hash)."""
        out: dict[str, Any] = {"aggregation": self.name, "over": format_duration(self.window_us)}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("over", *DESCRIPTIVE) and value is not None:
                if isinstance(value, Expression):
                    value = value.spec()
                elif isinstance(value, float):
                    value = value.hex()
                out[f.name] = value
        return out

    def _mask(self) -> Mask:
        return Mask(self.where, self.operand)


# Equality stays that of objects: lists and dicts use it.
refuse_operators(
    Aggregation,
    {
        **NO_OPERATORS,
        "+": "add radd pos",
        "-": "sub rsub neg",
        "*": "mul rmul",
        "/": "truediv rtruediv",
        "&": "and rand",
        "|": "or ror",
        "~": "invert",
        "comparison": "lt le gt ge",
        "'in'": "contains",
        "truth value": "bool",
    },
    lambda self, operator: (
        f"{self.name}: an aggregation has no {operator}: it is a feature by itself; give each a "
        "name in the view's features, and combine their values in preprocessing_fn"
    ),
)


@dataclass(frozen=True, eq=False)
class _OfColumn(Aggregation):
    """An aggregation of one column or expression; rows where it is null are ignored."""

    column: Expression = field(kw_only=False)

    takes: ClassVar[Sequence[str]] = NUMERIC

    def __post_init__(self) -> None:
        super().__post_init__()
        column: object = self.column
        # A number is a constant column; a text is probably meant as a column's name.
        number = not isinstance(column, str) and plain(column) is not None
        made = (
            literal(column, f"{self.name}: the column")
            if number
            else self._expression(column, "the column")
        )
        object.__setattr__(self, "column", made)

    @property
    def operand(self) -> Expression:
        """The column."""
        return self.column

    def _typed(self, fold: str, schema: Schema) -> Partial:
        """Return the fold's variant for the column's dtype."""
        kind = "float" if self.column.dtype(schema) == FLOAT64 else "int"
        return Partial(f"{fold}_{kind}", self._mask(), self.column)

    def _count(self) -> Partial:
        return Partial("count", self._mask())


@dataclass(frozen=True, eq=False)
class Count(Aggregation):
    """The number of rows, or of rows where ``column`` is not null: int64, 0 when empty."""

    column: Expression | None = field(default=None, kw_only=False)

    name: ClassVar[str] = "count"
    finish: ClassVar[str] = "count"
    empty: ClassVar[int | None] = 0
    result: ClassVar[str] = INT64
    takes: ClassVar[Sequence[str]] = (*NUMERIC, STRING, BOOL, TIMESTAMP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column is not None:
            self._expression(self.column, "the column")

    @property
    def operand(self) -> Expression | None:
        """The column, if any."""
        return self.column

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the count."""
        return (Partial("count", self._mask()),)


@dataclass(frozen=True, eq=False)
class Sum(_OfColumn):
    """The exact sum, rounded once: the column's dtype, 0 when empty, null on overflow."""

    name: ClassVar[str] = "sum"
    finish: ClassVar[str] = "sum"
    empty: ClassVar[int | None] = 0

    def result_dtype(self, schema: Schema) -> str:
        """Return the column's dtype."""
        return self.column.dtype(schema)

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the exact sum."""
        return (self._typed("sum", schema),)


@dataclass(frozen=True, eq=False)
class Mean(_OfColumn):
    """The exact mean, rounded once: float64, null when empty."""

    name: ClassVar[str] = "mean"
    finish: ClassVar[str] = "mean"

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the exact sum and the count."""
        return (self._typed("sum", schema), self._count())


@dataclass(frozen=True, eq=False)
class Variance(_OfColumn):
    """The exact variance with ``ddof``, rounded once: float64, null for ``ddof`` rows or fewer."""

    ddof: int = 1

    name: ClassVar[str] = "variance"
    finish: ClassVar[str] = "variance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.ddof) is not int or self.ddof not in (0, 1):
            raise DefinitionError(
                f"{self.name}: ddof must be 0 (population) or 1 (sample); {found(self.ddof)}"
            )

    @property
    def param(self) -> float:
        """The ``ddof``."""
        return float(self.ddof)

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the exact sum, the exact sum of squares and the count."""
        return (self._typed("sum", schema), self._typed("square", schema), self._count())


@dataclass(frozen=True, eq=False)
class StandardDeviation(Variance):
    """The IEEE square root of the rounded exact variance: float64, null as the variance is."""

    name: ClassVar[str] = "std"
    finish: ClassVar[str] = "std"


@dataclass(frozen=True, eq=False)
class Min(_OfColumn):
    """The least value: the column's dtype, null when empty. Of bools it is whether all are true."""

    name: ClassVar[str] = "min"
    finish: ClassVar[str] = "extreme"
    takes: ClassVar[Sequence[str]] = FEATURE_DTYPES

    def result_dtype(self, schema: Schema) -> str:
        """Return the column's dtype."""
        return self.column.dtype(schema)

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the extreme and the count that tells whether there is one."""
        return (self._typed(self.name, schema), self._count())


@dataclass(frozen=True, eq=False)
class Max(Min):
    """The greatest value: the column's dtype, null when empty. Of bools: whether any is true."""

    name: ClassVar[str] = "max"


@dataclass(frozen=True, eq=False)
class Last(_OfColumn):
    """The value of the last row by (event time, id): the column's dtype, null when empty."""

    name: ClassVar[str] = "last"
    finish: ClassVar[str] = "pick"
    takes: ClassVar[Sequence[str]] = FEATURE_DTYPES

    def result_dtype(self, schema: Schema) -> str:
        """Return the column's dtype."""
        return self.column.dtype(schema)

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the row that is last (or first)."""
        return (Partial(self.name, self._mask(), self.column),)


@dataclass(frozen=True, eq=False)
class First(Last):
    """The value of the first row by (event time, id): the column's dtype, null when empty."""

    name: ClassVar[str] = "first"


@dataclass(frozen=True, eq=False)
class LastK(Last):
    """The values of the last ``k`` rows by (event time, id), newest first; null past the end."""

    k: int = 3

    name: ClassVar[str] = "last_k"
    finish: ClassVar[str] = "pick_k"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.k) is not int or not 1 <= self.k <= 64:
            raise DefinitionError(f"last_k: k must be an int from 1 to 64; {found(self.k)}")

    @property
    def width(self) -> int:
        """Return ``k``."""
        return self.k

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the last ``k`` rows."""
        return (Partial("last_k", self._mask(), self.column, size=self.k),)


@dataclass(frozen=True, eq=False)
class DistinctCount(_OfColumn):
    """The number of distinct values: int64, 0 when empty.

    Exact up to `DISTINCT_EXACT_BOUND` values in the window (values are compared by a 64-bit
    hash that is one-to-one on numbers), then HyperLogLog (Flajolet et al., 2007) with a standard
    error of 2.3 %.
    """

    name: ClassVar[str] = "distinct_count"
    finish: ClassVar[str] = "count"
    empty: ClassVar[int | None] = 0
    result: ClassVar[str] = INT64
    takes: ClassVar[Sequence[str]] = (*NUMERIC, STRING, BOOL, TIMESTAMP)

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the set of hashes."""
        return (Partial("distinct", self._mask(), self.column),)


@dataclass(frozen=True, eq=False)
class Quantile(_OfColumn):
    """The value of rank ``floor(q * (n - 1))``, sketched: float64, null when empty.

    DDSketch (Masson, Rim and Lee, 2019) with buckets taken from the float's bits: the relative
    error is at most 1/256, whatever the order of the rows.
    """

    q: float = field(kw_only=False)

    name: ClassVar[str] = "quantile"
    finish: ClassVar[str] = "estimate"

    def __post_init__(self) -> None:
        super().__post_init__()
        q = plain(self.q)
        if isinstance(q, bool | str | None) or not 0 <= q <= 1:
            raise DefinitionError(f"quantile: q must be a number from 0 to 1; {found(self.q)}")
        object.__setattr__(self, "q", float(q) + 0.0)  # -0.0 becomes 0.0

    @property
    def param(self) -> float:
        """The ``q``."""
        return self.q

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the sketch."""
        return (self._typed("sketch", schema),)


@dataclass(frozen=True, eq=False)
class Rate(Aggregation):
    """The share of rows where ``condition`` is true among those where it is not null: float64."""

    condition: Expression = field(kw_only=False)

    name: ClassVar[str] = "rate"
    finish: ClassVar[str] = "ratio"
    takes: ClassVar[Sequence[str]] = (BOOL,)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expression(self.condition, "the condition")

    @property
    def operand(self) -> Expression:
        """The condition."""
        return self.condition

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the count of true rows and the count of rows."""
        true = self.condition if self.where is None else self.condition & self.where
        return (Partial("count", Mask(true)), Partial("count", self._mask()))


@dataclass(frozen=True, eq=False)
class TimeSinceLast(Aggregation):
    """Microseconds from the last event in the window to ``as_of``: int64, null when empty.

    The value changes with every instant, so its anchor (the event's time) is published instead; a
    reader subtracts the anchor from the instant that it reads at.
    """

    name: ClassVar[str] = "time_since_last"
    finish: ClassVar[str] = "since"
    result: ClassVar[str] = INT64
    anchored: ClassVar[bool] = True

    def partials(self, schema: Schema, event_time: str) -> tuple[Partial, ...]:
        """Return the greatest event time and the count that tells whether there is one."""
        return (
            Partial("max_int", self._mask(), Column(event_time)),
            Partial("count", self._mask()),
        )


count = Count
sum = Sum
mean = Mean
variance = Variance
std = StandardDeviation
min = Min
max = Max
last = Last
first = First
last_k = LastK
distinct_count = DistinctCount
quantile = Quantile
rate = Rate
time_since_last = TimeSinceLast
