"""The page of expressions, made from `features.definitions.expressions`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from docs.generate.docstrings import sentence, summary, table
from tidemill.features.contract import HOUR, time_of, write_instant
from tidemill.features.definitions import evaluation, expressions
from tidemill.features.definitions.expressions import Expression, Literal, col
from tidemill.features.definitions.schema import ARROW_TYPES, DTYPES
from tidemill.features.errors import DefinitionError

SCHEMA: Final = {
    "amount": "float64",
    "items": "int64",
    "country": "string",
    "card": "bool",
    "ordered_at": "timestamp",
    "paid_at": "timestamp",
}
_NOON: Final = 1_767_607_200_000_000  # 2026-01-05T10:00:00Z, a Monday
ROWS: Final = pa.RecordBatch.from_pydict(
    {
        "amount": [12.5, -3.0, None],
        "items": [3, 0, 2],
        "country": ["FR", "DE", None],
        "card": [True, None, False],
        "ordered_at": [_NOON, _NOON + 14 * HOUR, None],
        "paid_at": [_NOON + HOUR // 2, None, _NOON],
    },
    pa.schema([(name, ARROW_TYPES[dtype]) for name, dtype in SCHEMA.items()]),
)


@dataclass(frozen=True)
class Entry:
    """One way to write an expression.

    Attributes:
        written: How it is written.
        methods: The methods of `Expression` that it stands for.
        node: The class that infers its dtype and evaluates it.
        make: Makes it from operands.
        operands: How many there are.
        examples: Python text of examples.
    """

    written: str
    methods: tuple[str, ...]
    node: type[Expression]
    make: Callable[..., Expression]
    operands: int
    examples: tuple[str, ...]


def _binary(symbol: str, methods: tuple[str, ...], node: type[Expression], *examples: str) -> Entry:
    def make(left: Expression, right: Expression) -> Expression:
        found: Expression = getattr(left, methods[0])(right)
        return found

    return Entry(f"`a {symbol} b`", methods, node, make, 2, examples)


ENTRIES: Final = (
    Entry('`col("name")`', ("col",), expressions.Column, lambda a: a, 1, ('col("amount")',)),
    Entry(
        "a number, text or boolean", ("literal",), expressions.Literal, lambda: Literal(2), 0,
        ('col("items") + 2',),
    ),
    _binary("+", ("__add__", "__radd__"), expressions.Arithmetic, 'col("amount") + col("items")'),
    _binary(
        "-", ("__sub__", "__rsub__"), expressions.Arithmetic,
        '100 - col("items")', 'col("paid_at") - col("ordered_at")',
    ),
    _binary("*", ("__mul__", "__rmul__"), expressions.Arithmetic, 'col("items") * col("items")'),
    _binary(
        "/", ("__truediv__", "__rtruediv__"), expressions.Arithmetic,
        'col("amount") / col("items")',
    ),
    Entry("`-a`", ("__neg__",), expressions.Arithmetic, lambda a: -a, 1, ('-col("items")',)),
    _binary("==", ("__eq__",), expressions.Comparison, 'col("country") == "FR"'),
    _binary("!=", ("__ne__",), expressions.Comparison, 'col("country") != "FR"'),
    _binary("<", ("__lt__",), expressions.Comparison, 'col("amount") < col("items")'),
    _binary("<=", ("__le__",), expressions.Comparison, 'col("items") <= 2'),
    _binary(">", ("__gt__",), expressions.Comparison, 'col("amount") > 10'),
    _binary(">=", ("__ge__",), expressions.Comparison, 'col("paid_at") >= col("ordered_at")'),
    _binary("&", ("__and__", "__rand__"), expressions.Logic, '(col("items") > 0) & col("card")'),
    _binary("|", ("__or__", "__ror__"), expressions.Logic, '(col("items") > 0) | col("card")'),
    Entry("`~a`", ("__invert__",), expressions.Not, lambda a: ~a, 1, ('~col("card")',)),
    Entry(
        "`a.is_null()`", ("is_null",), expressions.IsNull, lambda a: a.is_null(), 1,
        ('col("country").is_null()',),
    ),
    Entry(
        "`a.fill_null(value)`", ("fill_null",), expressions.FillNull,
        expressions.FillNull, 2,
        ('col("country").fill_null("unknown")', 'col("amount").fill_null(0)'),
    ),
    Entry(
        "`a.is_in(values)`", ("is_in",), expressions.IsIn,
        lambda a, b: expressions.IsIn(a, (b.value,)), 2, ('col("country").is_in(["FR", "ES"])',),
    ),
    Entry(
        "`a.hour_of_day(zone)`", ("hour_of_day",), expressions.LocalField,
        lambda a: a.hour_of_day("UTC"), 1, ('col("ordered_at").hour_of_day("Europe/Paris")',),
    ),
    Entry(
        "`a.day_of_week(zone)`", ("day_of_week",), expressions.LocalField,
        lambda a: a.day_of_week("UTC"), 1, ('col("ordered_at").day_of_week("Europe/Paris")',),
    ),
)  # fmt: skip
"""Every way to write an expression."""

_WHERE: Final = (
    "An expression may stand wherever a definition takes one: as the column and the `where` of an "
    "aggregation, and as an input of a request."
)
CONSTANTS: Final = {"int64": 1, "float64": 1.5, "string": "a", "bool": True}


def render() -> str:
    """Return the page."""
    nodes = dict.fromkeys(entry.node for entry in ENTRIES)
    return "\n".join([*_head(), *(line for node in nodes for line in _section(node))])


def _head() -> list[str]:
    rules = (evaluation.__doc__ or "").partition("error):\n")[2].strip("\n").split("\n\n")[0]
    columns = [
        [f"`{name}`", dtype, *map(_shown, ROWS.column(name).to_pylist())]
        for name, dtype in SCHEMA.items()
    ]
    return [
        "# Expressions",
        "",
        "<!-- Made by `make docs` from features/definitions/expressions.py; do not edit. -->",
        "",
        summary(expressions),
        "",
        _WHERE,
        "",
        "## Nulls and overflow",
        "",
        "Semantics are SQL's, but an operation that fails gives null instead of an error:",
        "",
        rules.replace("``", "`"),
        "",
        "## The rows of the examples",
        "",
        table(["column", "dtype", "row 1", "row 2", "row 3"], columns),
        "",
    ]


def _section(node: type[Expression]) -> list[str]:
    entries = [entry for entry in ENTRIES if entry.node is node]
    written = [
        [entry.written, _about(entry), "; ".join(f"{', '.join(a)} → {b}" for a, b in dtypes(entry))]
        for entry in entries
    ]
    examples = [[f"`{text}`", *evaluated(text)] for entry in entries for text in entry.examples]
    return [
        f"## {node.__name__}",
        "",
        summary(node),
        "",
        f"- **Dtype**: {sentence(node.dtype.__doc__ or '')}",
        f"- **Value**: {sentence(node.evaluate.__doc__ or '')}",
        "",
        table(["written", "what it is", "dtypes: operands → result"], written),
        "",
        table(["example", "dtype", "row 1", "row 2", "row 3"], examples),
        "",
    ]


def _about(entry: Entry) -> str:
    """Return what a method's own docstring says; operators have none."""
    method = getattr(Expression, entry.methods[0], None)
    return "" if method is None or method.__name__.startswith("__") else summary(method)


def dtypes(entry: Entry) -> list[tuple[tuple[str, ...], str]]:
    """Return the dtypes of operands that an expression takes, and that of its result."""
    constant = entry.node in (expressions.FillNull, expressions.IsIn)
    found = []
    for given in itertools.product(DTYPES, repeat=entry.operands):
        schema = {f"c{place}": dtype for place, dtype in enumerate(given)}
        operands: list[Any] = [col(name) for name in schema]
        if constant:
            if given[1] not in CONSTANTS:
                continue
            operands[1] = Literal(CONSTANTS[given[1]])
        try:
            found.append((given, entry.make(*operands).dtype(schema)))
        except DefinitionError:
            continue
    return found if entry.operands else []


def evaluated(text: str) -> list[str]:
    """Evaluate an example over `ROWS`: its dtype, and the value of each row."""
    made: Expression = eval(text, {"col": col})
    values = made.evaluate(ROWS)
    return [made.dtype(SCHEMA), *map(_shown, values.to_pylist())]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if hasattr(value, "tzinfo"):
        return write_instant(time_of(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
