"""Definitions made again from the canonical form that a record has of them.

A definition that the code no longer has can so still be computed, and what was made with it be
proven. Only what is made again with the very hash of the record is given out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

from tidemill.features.contract import format_duration
from tidemill.features.definitions import expressions
from tidemill.features.definitions.aggregations import REGISTRY, Aggregation
from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.definitions.expressions import Expression
from tidemill.features.definitions.labels import Label
from tidemill.features.definitions.project import Project
from tidemill.features.definitions.requests import REJECT
from tidemill.features.definitions.streams import EventStream
from tidemill.features.definitions.views import Entity, FeatureView
from tidemill.features.errors import DefinitionError

_BINARY: Final[Mapping[str, Callable[..., Expression]]] = {
    **dict.fromkeys("+-*/", expressions.Arithmetic),
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), expressions.Comparison),
    **dict.fromkeys(("and", "or"), expressions.Logic),
}
_UNARY: Final[Mapping[str, Callable[[Expression], Expression]]] = {
    "not": expressions.Not,
    "is_null": expressions.IsNull,
}
_FIELDS: Final = ("hour_of_day", "day_of_week")


def recorded_expression(spec: Any) -> Expression:
    """Return the expression of a canonical form (`Expression.spec`).

    Raises:
        DefinitionError: No expression has this form.
    """
    match spec:
        case ["col", str(name)]:
            return expressions.Column(name)
        case ["lit", "float64", str(value)]:
            return expressions.Literal(float.fromhex(value))
        case ["lit", _, value]:
            return expressions.Literal(value)
        case ["fill_null", operand, ["lit", *_] as value]:
            return expressions.FillNull(recorded_expression(operand), _literal(value))
        case ["is_in", operand, [*values]]:
            listed = tuple(_literal(value).value for value in values)
            return expressions.IsIn(recorded_expression(operand), listed)
        case [str(field), operand, str(zone)] if field in _FIELDS:
            return expressions.LocalField(field, recorded_expression(operand), zone)
        case [str(what), operand] if what in _UNARY:
            return _UNARY[what](recorded_expression(operand))
        case [str(op), left, right] if op in _BINARY:
            return _BINARY[op](op, recorded_expression(left), recorded_expression(right))
    raise DefinitionError(f"no expression has the canonical form {spec!r}")


def _literal(spec: Any) -> expressions.Literal:
    found = recorded_expression(spec)
    if not isinstance(found, expressions.Literal):
        raise DefinitionError(f"no literal has the canonical form {spec!r}")
    return found


def recorded_aggregation(spec: Mapping[str, Any]) -> Aggregation:
    """Return the aggregation of a canonical form (`Aggregation.spec`).

    Raises:
        DefinitionError: None that is registered has this form.
    """
    kind = REGISTRY.get(spec["aggregation"])
    if kind is None:
        raise DefinitionError(f"there is no aggregation {spec['aggregation']!r}")
    given: dict[str, Any] = {}
    for field in fields(kind):
        value = spec.get(field.name)
        if isinstance(value, list):
            given[field.name] = recorded_expression(value)
        elif isinstance(value, str) and field.type in ("float", float):
            given[field.name] = float.fromhex(value)
        elif value is not None:
            given[field.name] = value
    return kind(**given)


def recorded_project(spec: Mapping[str, Any], now: Project) -> Project | None:
    """Return the project of a canonical form (`Project.spec`), without a model.

    The columns of its streams and its request are those of now: what they have got since changes no
    hash of what does not read it.

    Args:
        spec: The canonical form.
        now: The project as it is now.

    Returns:
        None if it cannot be made again: a source is gone, a column that was read is wider now, or
        an aggregation is no longer there.
    """
    try:
        made = _made(spec, now)
    except (DefinitionError, KeyError, TypeError, ValueError):
        return None
    return made if made.hash == spec_hash(spec) else None


def _made(spec: Mapping[str, Any], now: Project) -> Project:
    asked, label = spec["request"], spec["label"]
    request = replace(
        now.request,
        keys=asked["keys"],
        inputs={name: recorded_expression(one) for name, one in asked["inputs"]},
        repeated=asked.get("repeated", REJECT),
        repeated_within=_duration(asked.get("repeated_within_us")),
        **_bounds(asked),
    )
    of_streams = [one["stream"] for one in (*spec["views"], *([] if label is None else [label]))]
    streams = {one["stream"]: _stream(one, now) for one in of_streams}
    return Project(
        spec["project"],
        request,
        [_view(one, now, streams) for one in spec["views"]],
        None if label is None else _label(label, streams),
    )


def _duration(duration_us: int | None) -> str | None:
    return None if duration_us is None else format_duration(duration_us)


def _bounds(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far out of order rows of a source may arrive."""
    return {
        "out_of_orderness": format_duration(spec["out_of_orderness_us"]),
        "allowed_lateness": format_duration(spec["tolerance_us"] - spec["out_of_orderness_us"]),
        "max_ahead": format_duration(spec["max_ahead_us"]),
    }


def _stream(spec: Mapping[str, Any], now: Project) -> EventStream:
    found, bounds = now.stream(spec["stream"]), _bounds(spec)
    if bounds == _bounds(found.spec()):
        return found
    return replace(found, **bounds)


def _view(spec: Mapping[str, Any], now: Project, streams: Mapping[str, EventStream]) -> FeatureView:
    known = {view.name: view for view in now.views}.get(spec["view"])
    stream = streams[spec["stream"]["stream"]]
    if known is not None and known.stream is stream and known.hash == spec_hash(spec):
        return known
    entity = Entity(spec["entity"]["entity"], spec["entity"]["join_key"], spec["entity"]["dtype"])
    same = (one.entity for one in now.views if one.entity.spec() == entity.spec())
    return FeatureView(
        spec["view"],
        next(same, entity),
        stream,
        format_duration(spec["hop_us"]),
        {name: recorded_aggregation(one) for name, one in spec["features"]},
        key=spec["key"],
    )


def _label(spec: Mapping[str, Any], streams: Mapping[str, EventStream]) -> Label:
    return Label(
        spec["label"],
        streams[spec["stream"]["stream"]],
        recorded_expression(spec["value"]),
        spec["on"],
        format_duration(spec["horizon_us"]),
        spec.get("recurring", False),
    )
