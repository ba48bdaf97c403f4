"""Functions that make definitions; a test passes only the arguments that it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tidemill import Entity, EventStream, FeatureView, Label, Project, Request, col, count
from tidemill.features.errors import DefinitionError

SCHEMA = {
    "at": "timestamp",
    "id": "string",
    "origin": "string",
    "number": "int64",
    "delay": "float64",
    "cancelled": "bool",
}


def stream(**changes: Any) -> EventStream:
    defaults: dict[str, Any] = {
        "name": "arrivals",
        "schema": SCHEMA,
        "event_time": "at",
        "event_id": "id",
    }
    return EventStream(**(defaults | changes))


def view(**changes: Any) -> FeatureView:
    defaults: dict[str, Any] = {
        "name": "airport",
        "entity": Entity("origin"),
        "stream": ARRIVALS,
        "hop": "5m",
        "features": {"arrivals": count(over="1h")},
    }
    return FeatureView(**(defaults | changes))


def request(**changes: Any) -> Request:
    defaults: dict[str, Any] = {
        "name": "departures",
        "schema": SCHEMA,
        "request_time": "at",
        "request_id": "id",
    }
    return Request(**(defaults | changes))


def label(**changes: Any) -> Label:
    defaults: dict[str, Any] = {
        "name": "late",
        "stream": ARRIVALS,
        "value": col("delay") > 15,
        "on": {"id": "id"},
        "horizon": "1d",
    }
    return Label(**(defaults | changes))


def project(**changes: Any) -> Project:
    defaults: dict[str, Any] = {"name": "flights", "request": request(), "views": [view()]}
    return Project(**(defaults | changes))


ARRIVALS = stream()

Mistake = tuple[Callable[[], Any], type[DefinitionError], str]
"""A wrong definition, the class of its error, and a pattern for the message."""


def each_mistake(mistakes: list[Mistake]) -> pytest.MarkDecorator:
    """Run a test for each mistake: ``def test(define, error, says)``."""
    names = [says[:40] for _, _, says in mistakes]
    return pytest.mark.parametrize(("define", "error", "says"), mistakes, ids=names)


def check_refused(define: Callable[[], Any], error: type[DefinitionError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        define()
    assert type(caught.value) is error
