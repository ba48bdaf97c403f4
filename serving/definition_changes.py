"""Differences between two definitions, in the words in which they were written.

The old side is a canonical form (`features.definitions.views.FeatureView.spec`, `Project.spec`)
from a registry or a bundle, because the code that wrote it is no longer available.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from tidemill.features.contract import format_duration
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.feast_objects import field_name

_WORDS: Final = {
    "over": "window",
    "column": "expression",
    "tolerance": "out_of_orderness + allowed_lateness",
    "version": "spec version",
}
_INFIX: Final = ("+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">=", "and", "or")


class Change(Enum):
    """How a definition differs from the registered one."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class FeatureChange:
    """How a feature differs from the registered one.

    Attributes:
        feature: Its name within the view.
        change: Whether it is added, changed or removed.
        details: Its definition or, if it is changed, each difference: ``window 1d -> 2d``.
    """

    feature: str
    change: Change
    details: tuple[str, ...]


def feature_changes(
    old: Mapping[str, Any], old_dtypes: Mapping[str, str], view: FeatureView
) -> tuple[FeatureChange, ...]:
    """Compare the features of a registered definition with those of the code.

    Args:
        old: The registered canonical form.
        old_dtypes: Feast field name to registered type (`serving.registry.state`).
        view: The code's definition.

    Returns:
        The features that differ: the code's in order, then the removed ones.
    """
    before: dict[str, Mapping[str, Any]] = dict(old["features"])
    after = {name: aggregation.spec() for name, aggregation in view.features.items()}
    was = [name for name in before if name in after]
    now = [name for name in after if name in before]
    dtypes = {column.feature: (field_name(column), column.dtype) for column in view.columns}
    out = []
    for name, spec in after.items():
        if name not in before:
            out.append(FeatureChange(name, Change.ADDED, tuple(_written(spec))))
            continue
        details = list(_differences(before[name], spec))
        field, dtype = dtypes[name]
        if field in old_dtypes and old_dtypes[field].lower() != dtype:
            details.append(f"dtype {old_dtypes[field].lower()} -> {dtype}")
        if was.index(name) != now.index(name):
            details.append(f"position {was.index(name) + 1} -> {now.index(name) + 1}")
        if details:
            out.append(FeatureChange(name, Change.CHANGED, tuple(details)))
    removed = [name for name in before if name not in after]
    out += [FeatureChange(name, Change.REMOVED, tuple(_written(before[name]))) for name in removed]
    return tuple(out)


def view_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare two canonical forms except for their features; yields such as ``hop 1h -> 2h``."""
    parts = [{k: v for k, v in spec.items() if k != "features"} for spec in (old, new)]
    return tuple(_differences(*parts))


def project_changes(old: Mapping[str, Any], project: Project) -> Iterator[str]:
    """Yield each difference between a stored canonical form and the code's definitions.

    For example ``view 'aircraft', feature 'late_rate': window 7d -> 1d``.
    """
    new = project.spec()
    yield from _differences(*map(_without_views, (old, new)))
    yield from _moved(
        "model inputs", *([name for name, _ in spec["request"]["inputs"]] for spec in (old, new))
    )
    before = {spec["view"]: spec for spec in old["views"]}
    for name in [name for name in before if name not in {view.name for view in project.views}]:
        yield f"view {name!r}: removed"
    for view in project.views:
        where = f"view {view.name!r}"
        if view.name not in before:
            yield f"{where}: new"
            continue
        for detail in view_changes(before[view.name], view.spec()):
            yield f"{where}: {detail}"
        for feature in feature_changes(before[view.name], {}, view):
            what = {Change.ADDED: ("new",), Change.REMOVED: ("removed",)}.get(feature.change, ())
            yield f"{where}, feature {feature.feature!r}: {', '.join([*what, *feature.details])}"
    yield from _moved("views", list(before), [view.name for view in project.views])


def _without_views(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a project's canonical form without its views; its model inputs are a mapping."""
    request = {**spec["request"], "inputs": dict(spec["request"]["inputs"])}
    # A project without a label has none of the properties of a label.
    rest = {k: v for k, v in spec.items() if k != "views" and v is not None}
    return {**rest, "request": request}


def _moved(what: str, old: list[str], new: list[str]) -> Iterator[str]:
    # The order of views and inputs is the order of the feature vector.
    if old != new and sorted(old) == sorted(new):
        yield f"order of {what} {', '.join(old)} -> {', '.join(new)}"


def new_features(view: FeatureView) -> tuple[FeatureChange, ...]:
    """Return the features of a view that is added."""
    return tuple(
        FeatureChange(name, Change.ADDED, tuple(_written(aggregation.spec())))
        for name, aggregation in view.features.items()
    )


def write_expression(spec: Any) -> str:
    """Write the canonical form of an expression as a user would.

    >>> write_expression(["and", [">", ["col", "grams"], ["lit", "int64", 3]], ["col", "heavy"]])
    '((grams > 3) and heavy)'
    """
    if not isinstance(spec, Sequence) or isinstance(spec, str) or not spec:
        return _plain(spec)
    head, *rest = spec
    if head == "col":
        return str(rest[0])
    if head == "lit":
        dtype, value = rest
        return repr(value) if dtype == "string" else _plain(value)
    operands = [write_expression(operand) for operand in rest]
    if head in _INFIX and len(operands) == 2:
        return f"({operands[0]} {head} {operands[1]})"
    return f"{head}({', '.join(operands)})"


def _written(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of an aggregation, its name first."""
    for name, value in spec.items():
        text = write_expression(value)
        yield text if name == "aggregation" else f"{_word(name)} {text}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(_flat(old)), dict(_flat(new))
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield f"{_word(name)} {_value(name, before)} -> {_value(name, after)}"


def _flat(spec: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in spec.items():
        if isinstance(value, Mapping):
            # The spec of an entity holds its name as entity.entity, that of a stream likewise.
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _word(name: str) -> str:
    *above, last = name.split(".")
    word = last.removesuffix("_us")
    if above and above[-1] == word:
        return ".".join(above)
    return ".".join([*above, _WORDS.get(word, word)])


def _value(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return "none"
    value = values[name]
    return format_duration(value) if name.endswith("_us") else write_expression(value)


def _plain(value: Any) -> str:
    if isinstance(value, str) and value.removeprefix("-").startswith("0x"):
        return repr(float.fromhex(value))
    return "null" if value is None else str(value)
