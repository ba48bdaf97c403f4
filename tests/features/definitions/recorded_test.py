"""Definitions made again from their canonical form are those that were recorded, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from tests.support.memory_topics import PAYMENTS, PROJECT
from tests.support.strategies import views
from tidemill import Entity, FeatureView, Project, Request, col, count
from tidemill.features.definitions.recorded import (
    recorded_aggregation,
    recorded_expression,
    recorded_project,
)
from tidemill.features.errors import DefinitionError


def as_read(spec: Any) -> Any:
    """Return a canonical form as a record has it."""
    return json.loads(json.dumps(spec))


def asking(view: FeatureView) -> Project:
    """Return a project with a view, and a request whose inputs are what its features read."""
    schema = dict(view.stream.schema)
    time, id = view.stream.event_time, view.stream.event_id
    operands = {
        name: aggregation.operand
        for name, aggregation in view.features.items()
        if aggregation.operand is not None and aggregation.operand.dtype(schema) != "timestamp"
    }
    return Project("project", Request("asked", schema, time, id, inputs=operands), [view])


@settings(max_examples=150, deadline=None)
@given(views())
def test_every_aggregation_and_expression_is_made_again(view: FeatureView) -> None:
    project = asking(view)
    (feature, *_) = view.features.values()
    one_view = replace(view, features={"only": count(over=feature.over)})
    now = replace(project, views=[one_view], request=replace(project.request, inputs={}))
    made = recorded_project(as_read(project.spec()), now)
    assert made is not None
    assert made.spec() == project.spec()
    assert made.hash == project.hash
    assert [column.name for column in made.columns] == [column.name for column in project.columns]


def test_what_has_not_changed_is_the_definition_of_now() -> None:
    made = recorded_project(as_read(PROJECT.spec()), PROJECT)
    assert made is not None
    assert made.views[0] is PROJECT.views[0]


def test_a_definition_that_cannot_be_made_again_is_none() -> None:
    spec = as_read(PROJECT.spec())
    (view,) = PROJECT.views
    other = FeatureView("other", Entity("card"), replace(PAYMENTS, name="else"), "1m",
                        {"n": count(over="1h")})  # fmt: skip
    assert recorded_project(spec, replace(PROJECT, views=[other])) is None
    wider = replace(PAYMENTS, schema={**PAYMENTS.schema, "shop": "float64"},
                    widened={"shop": "int64"})  # fmt: skip
    reads = replace(view, features={"n": count(col("shop"), over="1h")})
    before = as_read(replace(PROJECT, views=[reads]).spec())
    assert recorded_project(before, replace(PROJECT, views=[replace(view, stream=wider)])) is None
    # One that does not read the column is.
    found = recorded_project(spec, replace(PROJECT, views=[replace(reads, stream=wider)]))
    assert found is not None
    assert found.views[0].hash == view.hash
    gone = as_read(PROJECT.spec())
    gone["views"][0]["features"][0][1]["aggregation"] = "gone"
    assert recorded_project(gone, PROJECT) is None


def test_bounds_are_those_of_the_record() -> None:
    (view,) = PROJECT.views
    later = replace(PAYMENTS, out_of_orderness="1m", allowed_lateness="3m")
    request = replace(PROJECT.request, max_ahead="2h", repeated="count", repeated_within="1h")
    now = replace(PROJECT, views=[replace(view, stream=later)], request=request)
    for one, other in ((PROJECT, now), (now, PROJECT)):
        made = recorded_project(as_read(one.spec()), other)
        assert made is not None
        assert made.views[0].stream.spec() == one.views[0].stream.spec()
        assert made.request.spec() == one.request.spec()


@pytest.mark.parametrize(
    "spec",
    [[], ["col"], ["col", 1], ["^", ["col", "a"], ["col", "b"]], ["lit", "int64"], "a", None],
)
def test_another_form_is_refused(spec: Any) -> None:
    with pytest.raises(DefinitionError, match="no expression has the canonical form"):
        recorded_expression(spec)


def test_an_aggregation_that_is_gone_is_named() -> None:
    with pytest.raises(DefinitionError, match="no aggregation 'gone'"):
        recorded_aggregation({"aggregation": "gone", "over": "1h"})
