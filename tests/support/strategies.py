"""Hypothesis strategies for definitions, events and requests.

Rows are plain Python (a dict from column to value; times are int microseconds UTC), as the oracle
takes them; `to_batch` makes the validated batch that the kernel takes. Times stand where it hurts:
on hop boundaries and window edges, a microsecond beside them, and on top of each other.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from tidemill import Entity, EventStream, FeatureView
from tidemill.features.contract import (
    DAY,
    EARLIEST_EVENT,
    HOUR,
    LATEST_EVENT,
    MILLISECOND,
    MINUTE,
    SECOND,
    format_duration,
)
from tidemill.features.definitions import (
    ARROW_TYPES,
    BOOL,
    DTYPES,
    FLOAT64,
    INT64,
    REGISTRY,
    STRING,
    TIMESTAMP,
    Aggregation,
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
from tidemill.features.definitions.described import DESCRIPTIVE

Row = dict[str, Any]
Key = str | int

EVENT_TIME = "at"
EVENT_ID = "id"
KEY = "key"
ZONES = ("UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")
HOPS = (1, 7, MILLISECOND, SECOND, 90 * SECOND, 5 * MINUTE, HOUR, DAY)
# Before, at and after the epoch; a spring transition in New York; near both ends of the calendar.
ORIGINS = (
    0,
    -3 * DAY - 1,
    1_362_898_800 * SECOND,
    EARLIEST_EVENT + 400 * DAY,
    LATEST_EVENT - 400 * DAY,
)
# UTF-8 puts "￿" before "𐀀", UTF-16 after it.
TEXTS = ("", "a", "b", "B", "10", "9", "é", "￿", "𐀀", "nul\0", "a text of more than 32 bytes " * 2)
INTS = (0, 1, -1, 2, 10, 15, 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63))
FLOATS = (
    0.0,
    1.0,
    -1.0,
    0.1,
    15.5,
    1 / 3,
    2.0**53,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1e300,
    -1e300,
    1.7976931348623157e308,
    -1.7976931348623157e308,
)

_values: Mapping[str, st.SearchStrategy[Any]] = {
    INT64: st.sampled_from(INTS) | st.integers(-20, 20) | st.integers(-(2**63), 2**63 - 1),
    FLOAT64: st.sampled_from(FLOATS)
    | st.integers(-40, 40).map(lambda n: n / 4)
    # Adding 0.0 leaves no -0.0, as validation does.
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0),
    STRING: st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8"), max_size=4),
    BOOL: st.booleans(),
    TIMESTAMP: st.sampled_from(
        # Around 1900, 1970, 2013 and 2100: a batch with times in all of these years has its zones
        # looked up for all of the years between.
        (-2_208_988_800 * SECOND, 0, 1_362_898_800 * SECOND, 4_102_444_800 * SECOND)
    ).flatmap(lambda t: st.integers(t - DAY, t + DAY)),
}


def values(dtype: str) -> st.SearchStrategy[Any]:
    """Values of a dtype as a validated batch may hold them, nulls aside."""
    return _values[dtype]


@functools.cache
def _values_and_nulls(dtype: str) -> st.SearchStrategy[Any]:
    return st.none() | values(dtype) | values(dtype)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, str]:
    """A stream's schema: time, id (string or int64), key (string or int64) and 1 to 5 columns."""
    keys = st.sampled_from((STRING, STRING, INT64))
    columns = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5))
    return {
        EVENT_TIME: TIMESTAMP,
        EVENT_ID: draw(keys),
        KEY: draw(keys),
        **{f"c{i}": dtype for i, dtype in enumerate(columns)},
    }


@functools.cache
def literals(dtype: str) -> st.SearchStrategy[Literal]:
    """A literal; a float may be -0.0."""
    return (values(dtype) | st.just(-0.0) if dtype == FLOAT64 else values(dtype)).map(Literal)


# What an expression of a dtype can be beside a column or a literal. For arithmetic: the operators,
# and the dtypes of the two sides.
_ARITHMETIC: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    FLOAT64: (
        ("+-*/", FLOAT64, FLOAT64),
        ("+-*/", INT64, FLOAT64),
        ("+-*/", FLOAT64, INT64),
        ("/", INT64, INT64),
    ),
    INT64: (("+-*", INT64, INT64), ("-", TIMESTAMP, TIMESTAMP)),
}
_OTHER: Mapping[str, tuple[str, ...]] = {
    FLOAT64: ("fill null by int64",),
    INT64: ("local field",),
    BOOL: ("boolean", "boolean"),
}


@st.composite
def expressions(draw: st.DrawFn, schema: Schema, dtype: str, depth: int = 2) -> Expression:
    """An expression of a wanted dtype over a schema (a time is always a column).

    It first draws a kind and then what that kind needs: Hypothesis takes much longer to build a
    strategy than to draw from it.
    """
    columns = [name for name, found in schema.items() if found == dtype]
    kinds: list[str | tuple[str, str, str]] = ["column"] if columns else []
    if dtype != TIMESTAMP:
        kinds.append("literal")
        if depth > 0:
            kinds += [*kinds, "fill null", *_ARITHMETIC.get(dtype, ()), *_OTHER.get(dtype, ())]
    kind = draw(st.sampled_from(kinds))

    def deeper(of: str) -> Expression:
        return draw(expressions(schema, of, depth - 1))

    if isinstance(kind, tuple):
        operators, left, right = kind
        return Arithmetic(draw(st.sampled_from(operators)), deeper(left), deeper(right))
    if kind == "column":
        return Column(draw(st.sampled_from(columns)))
    if kind == "literal":
        return draw(literals(dtype))
    if kind == "boolean":
        return draw(_booleans(schema, depth - 1))
    if kind == "local field":
        field = draw(st.sampled_from(("hour_of_day", "day_of_week")))
        return LocalField(field, deeper(TIMESTAMP), draw(st.sampled_from(ZONES)))
    return FillNull(deeper(dtype), draw(literals(dtype if kind == "fill null" else INT64)))


@st.composite
def _booleans(draw: st.DrawFn, schema: Schema, depth: int) -> Expression:
    def of(dtype: str) -> Expression:
        return draw(expressions(schema, dtype, depth))

    kind = draw(st.sampled_from(("compare", "mixed", "logic", "not", "is_null", "is_in")))
    dtype = draw(st.sampled_from(DTYPES))
    ops = ("==", "!=") if dtype == BOOL else ("==", "!=", "<", "<=", ">", ">=")
    if kind == "compare":
        return Comparison(draw(st.sampled_from(ops)), of(dtype), of(dtype))
    if kind == "mixed":
        sides = draw(st.permutations((INT64, FLOAT64)))
        return Comparison(draw(st.sampled_from(("==", "<", ">="))), of(sides[0]), of(sides[1]))
    if kind == "logic":
        return Logic(draw(st.sampled_from(("and", "or"))), of(BOOL), of(BOOL))
    if kind == "not":
        return Not(of(BOOL))
    if kind == "is_in" and dtype != TIMESTAMP:
        candidates = draw(st.lists(literals(dtype), max_size=3))
        return IsIn(of(dtype), tuple(literal.value for literal in candidates))
    return IsNull(of(dtype))


# Values of a constructor argument, by name; others get a value of their type.
_ARGUMENTS: Mapping[str, st.SearchStrategy[Any]] = {
    "ddof": st.sampled_from((0, 1)),
    "k": st.integers(1, 4),
    "q": st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)) | st.floats(0, 1),
}
_BY_TYPE: Mapping[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(1, 4),
    float: st.floats(0, 1),
}


@functools.cache
def _type_hints(cls: type[Aggregation]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@st.composite
def aggregations(
    draw: st.DrawFn,
    schema: Schema,
    windows_us: Sequence[int],
    names: Sequence[str] | None = None,
) -> Aggregation:
    """An aggregation of any registered class (or of those named) over one of some windows.

    The classes are found in `features.definitions.REGISTRY`, so a new one is drawn at
    once; its arguments are filled by name, else by type.
    """
    cls = REGISTRY[draw(st.sampled_from(sorted(REGISTRY) if names is None else sorted(names)))]
    hints = _type_hints(cls)
    arguments: dict[str, Any] = {"over": format_duration(draw(st.sampled_from(windows_us)))}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        optional = type(None) in typing.get_args(hint)
        if field.name in ("over", *DESCRIPTIVE) or (optional and draw(st.booleans())):
            continue
        if Expression in (hint, *typing.get_args(hint)):
            dtype = BOOL if field.name == "where" else draw(st.sampled_from(list(cls.takes)))
            arguments[field.name] = draw(expressions(schema, dtype))
        elif field.name in _ARGUMENTS:
            arguments[field.name] = draw(_ARGUMENTS[field.name])
        elif hint in _BY_TYPE:
            arguments[field.name] = draw(_BY_TYPE[hint])
        else:
            raise TypeError(
                f"tests/support/strategies.py cannot fill {cls.__name__}.{field.name} ({hint}); "
                "say in _ARGUMENTS what to draw for it"
            )
    return cls(**arguments)


@st.composite
def views(
    draw: st.DrawFn,
    names: Sequence[str] | None = None,
    max_features: int = 6,
    max_hops: int = 48,
) -> FeatureView:
    """A view with 1 to 6 features over up to three windows, each of 1 to ``max_hops`` hops."""
    schema = draw(schemas())
    hop_us = draw(st.sampled_from(HOPS))
    hops = draw(st.lists(st.integers(1, 4) | st.integers(1, max_hops), min_size=1, max_size=3))
    aggregation = aggregations(schema, [n * hop_us for n in hops], names)
    features = draw(st.lists(aggregation, min_size=1, max_size=max_features))
    return FeatureView(
        name="view",
        entity=Entity("thing", join_key=KEY, dtype=schema[KEY]),
        stream=EventStream("events", schema=schema, event_time=EVENT_TIME, event_id=EVENT_ID),
        hop=format_duration(hop_us),
        features={f"f{i}": feature for i, feature in enumerate(features)},
    )


def keys(view: FeatureView) -> st.SearchStrategy[Key]:
    """One of three keys that events carry."""
    return st.sampled_from(("a", "", "𐀀") if view.entity.dtype == STRING else (7, 0, -(2**63)))


@st.composite
def events(draw: st.DrawFn, view: FeatureView, max_size: int = 30) -> list[Row]:
    """Rows of a view's stream in no order: nulls, repeats, equal times, equal ids with other rows.

    Times cluster on the hop grid of the view and on the edges of its windows.
    """
    hop_us = view.hop_us
    origin = draw(st.sampled_from(ORIGINS)) // hop_us * hop_us
    windows = sorted({feature.window_us for feature in view.features.values()})
    steps = st.integers(0, 4).map(lambda n: n * hop_us) | st.sampled_from(windows)
    nudges = st.sampled_from((0, 0, -1, 1)) | st.integers(0, hop_us - 1)
    times = st.builds(lambda step, nudge: origin + step + nudge, steps, nudges)
    # Few ids and few times, so that some are equal.
    few_times = draw(st.lists(times, min_size=1, max_size=8))
    ids = st.sampled_from(TEXTS if view.stream.schema[EVENT_ID] == STRING else (1, 2, 9, 10, -1))
    row = st.fixed_dictionaries(
        {
            EVENT_TIME: st.sampled_from(few_times),
            EVENT_ID: ids,
            KEY: keys(view),
            **{
                name: _values_and_nulls(dtype)
                for name, dtype in view.stream.schema.items()
                if name not in (EVENT_TIME, EVENT_ID, KEY)
            },
        }
    )
    # By default half of all lists would be empty, and an empty list tests little.
    at_least = min(draw(st.sampled_from((8, 3, 1, 0))), max_size)
    rows = draw(st.lists(row, min_size=at_least, max_size=max_size))
    if rows:
        rows += [dict(again) for again in draw(st.lists(st.sampled_from(rows), max_size=4))]
        for other in draw(st.lists(st.sampled_from(rows), max_size=4)):
            # The same id at the same time with another payload (now and then the same by chance).
            rows.append({**draw(row), **{c: other[c] for c in (EVENT_TIME, EVENT_ID, KEY)}})
    return draw(st.permutations(rows))


@st.composite
def many_events(draw: st.DrawFn, view: FeatureView, size: int = 400) -> list[Row]:
    """Many rows of one key with mostly distinct values, cheap to draw: past the exact bound.

    Hypothesis chooses a seed only, so these do not shrink: use them where numbers matter.
    """
    chance = random.Random(draw(st.integers(0, 2**32)))
    origin = draw(st.sampled_from(ORIGINS)) // view.hop_us * view.hop_us
    span_us = max(feature.window_us for feature in view.features.values()) + view.hop_us
    key = draw(keys(view))
    make: Mapping[str, Any] = {
        INT64: lambda: chance.randrange(-(2**63), 2**63),
        FLOAT64: lambda: chance.uniform(-1, 1) * 2.0 ** chance.randrange(-40, 40) + 0.0,
        STRING: lambda: f"{chance.randrange(10**9)} é",
        BOOL: lambda: chance.random() < 0.5,
        TIMESTAMP: lambda: origin + chance.randrange(span_us),
    }
    return [
        {
            name: None
            if name not in (EVENT_TIME, EVENT_ID, KEY) and chance.random() < 0.1
            else make[dtype]()
            for name, dtype in view.stream.schema.items()
        }
        | {KEY: key}
        for _ in range(size)
    ]


@st.composite
def requests(
    draw: st.DrawFn, view: FeatureView, rows: Sequence[Row], max_size: int = 8
) -> list[tuple[Key | None, int]]:
    """Requests ``(key, as_of_us)`` at interesting instants, in no order.

    Around event times, hop boundaries, and where a tile leaves a window; keys of events, unknown
    ones and null.
    """
    hop_us = view.hop_us
    times = sorted({row[EVENT_TIME] for row in rows}) or [0]
    shifts = [0, *{feature.window_us for feature in view.features.values()}]
    instants = st.builds(
        lambda time, shift, on_grid, nudge: (
            (((time + shift) // hop_us + on_grid) * hop_us if on_grid else time + shift) + nudge
        ),
        st.sampled_from(times),
        st.sampled_from(shifts),
        st.sampled_from((0, 0, 1, 2)),
        st.sampled_from((0, 1, -1, hop_us // 2)),
    )
    unknown: Key = "unknown" if view.entity.dtype == STRING else 12345
    seen: list[Key] = sorted({row[KEY] for row in rows})
    some_key = st.sampled_from([*seen, *seen, *seen, unknown, None])
    return draw(st.lists(st.tuples(some_key, instants), min_size=1, max_size=max_size))


def to_batch(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Return rows as a validated batch: the declared columns, in order, in their Arrow types."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([row[name] for row in rows], ARROW_TYPES[dtype])
            for name, dtype in schema.items()
        ],
        schema=pa.schema([(name, ARROW_TYPES[dtype]) for name, dtype in schema.items()]),
    )
