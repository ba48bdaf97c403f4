"""The table of values in docs/contract-of-time.md: every cell computed by kernel and oracle.

The table has a row for each registered aggregation and each dtype that it takes, found by
reflection. A new aggregation fails here until the document has its rows; the failing test prints
them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.driver import run_all, values_of
from tidemill import Entity, EventStream, FeatureView, col
from tidemill.features.contract import EARLIEST_EVENT, HOUR, LATEST_EVENT
from tidemill.features.definitions import (
    BOOL,
    FLOAT64,
    INT64,
    REGISTRY,
    STRING,
    TIMESTAMP,
    Aggregation,
    Expression,
)
from tidemill.features.oracle.values import Oracle

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "contract-of-time.md"
BEGIN, END = "<!-- value table: begin -->", "<!-- value table: end -->"

HEADER: Final = (
    "| aggregation | of | result | empty window | all values null | overflow |\n"
    "|---|---|---|---|---|---|\n"
)
# The arguments of aggregations that have no default.
ARGUMENTS: Final = {"q": 0.5}

GREATEST: Final = 1.7976931348623157e308
# Two values each whose sum, spread or difference is as large as the dtype allows.
EXTREMES: Final[dict[str, tuple[tuple[Any, Any], ...]]] = {
    INT64: ((2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (-(2**63), 2**63 - 1)),
    FLOAT64: ((GREATEST, GREATEST), (-GREATEST, -GREATEST), (-GREATEST, GREATEST)),
    STRING: (("", "\U0010ffff" * 40),),
    BOOL: ((False, True),),
    TIMESTAMP: ((EARLIEST_EVENT, LATEST_EVENT),),
}
Row = dict[str, Any]


def operands(cls: type[Aggregation]) -> Iterator[str | None]:
    """Return the dtypes that an aggregation takes; None for the row itself."""
    hints = typing.get_type_hints(cls)
    named = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name != "where"}
    operand = [hint for hint in named.values() if Expression in (hint, *typing.get_args(hint))]
    if not operand or type(None) in typing.get_args(operand[0]):
        yield None
    if operand:
        yield from cls.takes


def view_of(cls: type[Aggregation], dtype: str | None) -> FeatureView:
    """Return a view with one feature: the aggregation over an hour, of ``x`` if it needs it."""
    arguments: dict[str, Any] = {"over": "1h"}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in arguments or field.name == "where":
            continue
        if Expression in (hints[field.name], *typing.get_args(hints[field.name])):
            if dtype is not None:
                arguments[field.name] = col("x")
        elif field.default is field.default_factory is dataclasses.MISSING:
            if field.name not in ARGUMENTS:
                raise TypeError(
                    f"{cls.__name__}.{field.name} has no default; say in ARGUMENTS what to give it"
                )
            arguments[field.name] = ARGUMENTS[field.name]
    schema = {"at": TIMESTAMP, "id": STRING, "key": STRING, "x": dtype or INT64}
    return FeatureView(
        "view",
        entity=Entity("key"),
        stream=EventStream("events", schema=schema, event_time="at", event_id="id"),
        hop="1h",
        features={"f": cls(**arguments)},
    )


def computed(view: FeatureView, rows: Sequence[Row], as_of_us: int) -> tuple[list[Any], int]:
    """Return the feature's values for key "a" as of an instant, and the number of overflows.

    Kernel and oracle must agree, bit for bit.
    """
    state, advanced, plan = run_all(view, rows, [("a", as_of_us)])
    (found,) = values_of(plan, advanced.answers)
    assert repr(found) == repr(Oracle(view, rows).values("a", as_of_us))
    return list(found.values()), state.counters.overflows


def rows_with(values: Sequence[Any], first_us: int) -> list[Row]:
    return [
        {"at": first_us + i, "id": f"e{i}", "key": "a", "x": value}
        for i, value in enumerate(values)
    ]


def written(values: Sequence[Any]) -> str:
    return ", ".join("null" if value is None else repr(value) for value in values)


def overflow(view: FeatureView, dtype: str | None) -> str:
    """Return what happens to a total that does not fit: null and counted, or not possible."""
    found = []
    for extremes in EXTREMES[dtype] if dtype is not None else ((1, 1),):
        values, overflows = computed(view, rows_with(extremes, 0), HOUR)
        assert overflows in (0, len(values))
        # Two rows, so at most two values (of last_k); each is present or has overflowed.
        assert [value is None for value in values[:2]] == [bool(overflows)] * len(values[:2])
        found.append(overflows)
    return "null, counted" if any(found) else "never"


def table_row(cls: type[Aggregation], dtype: str | None) -> str:
    view = view_of(cls, dtype)
    results = {column.dtype for column in view.columns}
    assert len(results) == 1
    empty, _ = computed(view, [], HOUR)
    outside, _ = computed(view, rows_with([None, None], 0), 3 * HOUR)
    assert repr(outside) == repr(empty)
    all_null = "-"
    if dtype is not None:
        all_null = written(computed(view, rows_with([None, None], 0), HOUR)[0])
    cells = (
        f"`{cls.name}`",
        dtype or "rows",
        results.pop(),
        written(empty),
        all_null,
        overflow(view, dtype),
    )
    return "| " + " | ".join(cells) + " |\n"


def value_table() -> str:
    """Return the table as the document has it."""
    pairs = [(cls, dtype) for cls in REGISTRY.values() for dtype in operands(cls)]
    return HEADER + "".join(table_row(cls, dtype) for cls, dtype in pairs)


def test_the_documented_table_of_values_is_what_kernel_and_oracle_compute() -> None:
    text = DOCUMENT.read_text()
    documented = text.split(BEGIN)[1].split(END)[0].strip() + "\n"
    assert documented == value_table(), f"{DOCUMENT.name} should say:\n\n{value_table()}"


def test_every_registered_aggregation_has_a_row() -> None:
    table = value_table()
    assert [name for name in REGISTRY if f"| `{name}` |" not in table] == []


def test_an_argument_that_nobody_can_fill_is_named() -> None:
    @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
    class Nameless(Aggregation):
        half_life: float

    with pytest.raises(TypeError, match=r"Nameless\.half_life has no default"):
        view_of(Nameless, None)
