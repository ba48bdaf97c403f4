"""Every argument of every definition takes any value: it works, or an error of ours names it.

"It works" means: a project with the definition is planned, its expressions are evaluated, and its
hash is the same in another process, where a set has another order.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import json
import math
import operator
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill
from tests.support.definitions import ARRIVALS, SCHEMA, label, project, request, stream, view
from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Label, Project, Request, col, count
from tidemill.features.definitions import Aggregation, Expression, Literal, wrap
from tidemill.features.errors import TidemillError
from tidemill.features.kernel import folds  # noqa: F401
from tidemill.features.kernel.plan import make_plan


class Word(enum.StrEnum):
    AT = "at"


class Whole(enum.IntEnum):
    ONE = 1


class NoRepr:
    """Its ``repr`` fails, and an error has to show it all the same."""

    def __repr__(self) -> str:
        raise RuntimeError


ORIGIN = Entity("origin")


def values() -> dict[str, Any]:
    """Return the values by what they are, new ones each time: a generator is used up."""
    return {
        "none": None,
        "zero": 0,
        "int": 3,
        "negative": -7,
        "huge": 10**5_000,
        "int64's end": 2**63,
        "true": True,
        "float": 2.5,
        "nan": math.nan,
        "inf": math.inf,
        "minus zero": -0.0,
        "complex": 1j,
        "decimal": decimal.Decimal("1.5"),
        "empty text": "",
        "column": "number",
        "other column": "delay",
        "no column": "nothing",
        "unicode": "Zürich ✈",
        "spaces": "two words",
        "quotes": 'it\'s "quoted"; DROP TABLE x --',
        "dots": "../a.b/c",
        "nul": "a\0b",
        "line": "a\n",
        "surrogate": "\ud800",
        "long": "x" * 70_000,
        "reserved": "_position",
        "reserved in the store": "event_timestamp",
        "underscores": "a__b",
        "braces": "{0}{x!r}%s",
        "duration": "5m",
        "other duration": "1h",
        "no time": "0s",
        "long duration": "400000000d",
        "very long duration": "9" * 5_000 + "d",
        "arabic digits": "٣d",
        "zone": "America/New_York",
        "zone's file": "../../etc/passwd",
        "bytes": b"number",
        "bytearray": bytearray(b"x"),
        "date": datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC),
        "span": datetime.timedelta(hours=1),
        "range": range(3),
        "list": ["id", "at"],
        "numbers": [3, 1, 2],
        "floats": [0.5, math.nan],
        "texts with repeats": ["a", "b", "a"],
        "mixed": [1, "a", None, 2.5, True],
        "empty list": [],
        "deep list": [[["id"]]],
        "tuple": ("id", "at"),
        "empty tuple": (),
        "set": {"b", "a", "c", "d"},
        "number set": frozenset([9, -1, 2**40]),
        "mixed set": {1, "a", 2.5, False},
        "dict": {"id": "id"},
        "empty dict": {},
        "odd dict": {3: None, None: 3},
        "odd names": {"Two words": "id", "": "id", "\ud800": col("number")},
        "columns": {"origin": "origin", "number": "number"},
        "expressions": {"hour": col("at").hour_of_day("UTC"), "flag": col("cancelled")},
        "time": {"when": col("at")},
        "features": {"n": count(over="1h"), "m": count(col("number"), over="5m")},
        "class": int,
        "dtype": np.int64,
        "own class": EventStream,
        "function": len,
        "lambda": lambda x: x,
        "generator": (x for x in "ab"),
        "odd": NoRepr(),
        "enum text": Word.AT,
        "enum int": Whole.ONE,
        "numpy float": np.float64(0.5),
        "numpy int": np.int64(5),
        "numpy small": np.float32(0.1),
        "numpy bool": np.bool_(True),
        "numpy text": np.str_("number"),
        "numpy time": np.datetime64("2026-01-31"),
        "numpy span": np.timedelta64(5, "m"),
        "array": np.arange(3),
        "matrix": np.zeros((2, 2)),
        "expression": col("number") > 3,
        "text expression": col("origin"),
        "time expression": col("at"),
        "base expression": Expression(),
        "literal": wrap(True),
        "aggregation": count(over="1h"),
        "entity": ORIGIN,
        "stream": ARRIVALS,
        "view": view(),
        "views": [view(), view(name="other")],
        "views twice": [view(), view()],
        "request": request(),
        "label": label(),
        "project": project(),
        "exception": ValueError("x"),
        "not implemented": NotImplemented,
        "ellipsis": ...,
    }


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of one definition.

    Attributes:
        make: Makes the definition with a value for the argument.
        project: Makes a project that has the definition.
        names: An error about the argument has one of these words.
    """

    make: Callable[[Any], Any]
    project: Callable[[Any], Project]
    names: tuple[str, ...]


def project_of_view(made: FeatureView) -> Project:
    return project(views=[made])


def project_of_feature(made: Any) -> Project:
    return project_of_view(view(features={"n": made}))


def project_of_expression(made: Any) -> Project:
    assert not isinstance(made, bool), "Python itself compared: the operator is not ours"
    return project_of_feature(count(made, over="1h"))


def project_of_stream(made: EventStream) -> Project:
    key = Entity("origin", join_key=next(iter(made.schema)))
    return project_of_view(view(stream=made, entity=key))


NAMES = {
    "schema": ("schema", "column"),
    "dtype": ("dtype", "a key is"),
    "key": ("key of entity",),
    "features": ("feature",),
    "keys": ("keys", "key of entity"),
    "inputs": ("input",),
    "on": ("on", "join column"),
    "views": ("view",),
    # An error about a new stream may name what the stream lacks, such as the column of a key.
    "stream": ("stream", "value", "on", "join column", "key", "feature"),
}
"""How an error names an argument, where not by the argument's own name."""


def constructor_arguments() -> dict[str, Argument]:
    def entity(**changes: Any) -> Entity:
        return Entity(**({"name": "origin"} | changes))

    kinds: list[tuple[type, Callable[..., Any], Callable[[Any], Project]]] = [
        (EventStream, stream, project_of_stream),
        (Entity, entity, lambda made: project_of_view(view(entity=made))),
        (FeatureView, view, project_of_view),
        (Request, request, lambda made: project(request=made)),
        (Label, label, lambda made: project(label=made)),
        (Project, project, lambda made: made),
    ]
    return {
        f"{kind.__name__}.{field.name}": Argument(
            lambda value, make=make, name=field.name: make(**{name: value}),
            whole,
            NAMES.get(field.name, (field.name,)),
        )
        for kind, make, whole in kinds
        for field in dataclasses.fields(kind)
    }


def aggregation_arguments() -> dict[str, Argument]:
    defaults = {"over": "1h", "column": col("number"), "condition": col("cancelled"), "q": 0.5}
    out = {}
    for name in tidemill.__all__:
        kind = getattr(tidemill, name)
        if not (isinstance(kind, type) and issubclass(kind, Aggregation)):
            continue
        fields = [field.name for field in dataclasses.fields(kind)]
        needed = {field: defaults[field] for field in fields if field in defaults}
        for field in fields:
            out[f"{name}.{field}"] = Argument(
                lambda value, kind=kind, needed=needed, field=field: kind(
                    **(needed | {field: value})
                ),
                project_of_feature,
                (field,),
            )
    return out


METHODS = {"is_in": "is_in", "fill_null": "fill_null", "hour_of_day": "zone", "day_of_week": "zone"}
OPERATORS = "add sub mul truediv eq ne lt le gt ge and_ or_ mod floordiv pow xor matmul lshift"


def expression_arguments() -> dict[str, Argument]:
    """The methods and both sides of the operators of an expression, on a column of each dtype."""

    def argument(make: Callable[[Any], Any], *names: str) -> Argument:
        return Argument(make, project_of_expression, names)

    out = {
        "col": argument(col, "col"),
        "wrap": argument(wrap, "an expression takes", "literal"),
        "Literal": argument(Literal, "literal"),
    }
    for name in SCHEMA:
        column = col(name)
        for method, says in METHODS.items():
            out[f"{name}.{method}"] = argument(getattr(column, method), says)
        for operator_name in OPERATORS.split():
            operate = getattr(operator, operator_name)
            says = ("an expression ", "literal", "an aggregation has no", "no truth value")
            out[f"{name} {operator_name} value"] = argument(
                functools.partial(operate, column), *says
            )
            out[f"value {operator_name} {name}"] = argument(
                lambda value, operate=operate, column=column: operate(value, column), *says
            )
    return out


ARGUMENTS = constructor_arguments() | aggregation_arguments() | expression_arguments()


def hash_when_it_works(made: Project) -> str:
    """Plan a project's views and evaluate all its expressions; return its hash."""
    for each in made.views:
        plan = make_plan(each)
        row = to_batch(each.stream.schema, [dict.fromkeys(each.stream.schema)])
        masks = [e for mask in plan.masks for e in (mask.where, mask.not_null) if e is not None]
        for expression in [*(cell.expression for cell in plan.cells), *masks]:
            assert len(expression.evaluate(row)) == 1
    row = to_batch(made.request.schema, [dict.fromkeys(made.request.schema)])
    for expression in made.request.inputs.values():
        assert len(expression.evaluate(row)) == 1
    return made.hash


def result_or_error(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TidemillError as error:
        return error


def outcome(argument: Argument, value: Any) -> str | None:
    """Return the hash of a project with a value for an argument; None where it is refused."""
    made = result_or_error(lambda: argument.make(value))
    if isinstance(made, TidemillError):
        assert any(name in str(made) for name in argument.names), made
        assert len(str(made)) < 2_000, made
        return None
    # The definition is valid by itself; a project may still refuse it.
    found = result_or_error(lambda: hash_when_it_works(argument.project(made)))
    if isinstance(found, TidemillError):
        assert len(str(found)) < 2_000, found
        return None
    return str(found)


@functools.cache
def outcomes(argument: str) -> dict[str, str | None]:
    return {name: outcome(ARGUMENTS[argument], value) for name, value in values().items()}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_value_works_or_is_refused_by_the_arguments_name(argument: str) -> None:
    assert None in outcomes(argument).values(), "nothing was refused: the argument is not checked"


def test_what_works_has_the_same_hash_in_another_process() -> None:
    code = (
        "import json; from tests.features.definitions import hostile_arguments_test as t; "
        "print(json.dumps({name: t.outcomes(name) for name in t.ARGUMENTS}))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    there: dict[str, dict[str, str | None]] = json.loads(other.stdout)
    assert there == {name: outcomes(name) for name in ARGUMENTS}
    hashes = [hash for found in there.values() for hash in found.values() if hash is not None]
    assert len(hashes) > 1_000


drawn_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.from_regex(r"[0-9]{1,30}(us|ms|s|m|h|d|w)", fullmatch=True)
    | st.sampled_from([*SCHEMA, *SCHEMA.values()]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from([*SCHEMA]), inner, max_size=4)
        | st.frozensets(st.text() | st.integers(), max_size=4)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(ARGUMENTS)), drawn_values)
def test_a_drawn_value_works_or_is_refused_too(argument: str, value: Any) -> None:
    outcome(ARGUMENTS[argument], value)
