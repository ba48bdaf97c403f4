"""Projects: what is refused, and what a project knows of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.definitions import (
    ARRIVALS,
    Mistake,
    check_refused,
    each_mistake,
    label,
    project,
    request,
    stream,
    view,
)
from tidemill import Entity, col, last, max
from tidemill.features.errors import DefinitionError, DuplicateName, UnknownColumn, WrongType
from tidemill.features.models.preprocessing import model_inputs

TIMES = {"last_cancelled": last(col("cancelled"), over="1h"), "newest": max(col("at"), over="1h")}
MISTAKES: list[Mistake] = [
    (lambda: project(name="My project"), DefinitionError, "project name 'My project'"),
    (lambda: project(views=[]), DefinitionError, "project 'flights' has no feature views"),
    (lambda: project(views=[view(), view()]), DuplicateName, "view 'airport' is defined twice"),
    (
        lambda: project(
            views=[view(), view(name="b", entity=Entity("origin", dtype="int64"), key="number")]
        ),
        DuplicateName,
        "entity 'origin' is defined twice; share one object",
    ),
    (
        lambda: project(views=[view(), view(name="b", stream=stream())]),
        DuplicateName,
        "stream 'arrivals' is defined twice; share one object",
    ),
    (
        lambda: project(request=request(name="arrivals")),
        DuplicateName,
        "'arrivals' names a stream and the request",
    ),
    (
        lambda: project(request=request(keys={"orgin": "origin"})),
        UnknownColumn,
        r"request\.keys names entity 'orgin'; did you mean 'origin'",
    ),
    (
        lambda: project(request=request(keys={"origin": "dest"})),
        UnknownColumn,
        "request column for the key of entity 'origin' 'dest'",
    ),
    (
        lambda: project(request=request(keys={"origin": "number"})),
        WrongType,
        "'number' must be string, found int64",
    ),
    (
        lambda: project(label=label(on={"flight": "id"})),
        UnknownColumn,
        "project 'flights': label join column 'flight'",
    ),
    (lambda: project(label=label(on={"number": "id"})), WrongType, "'number' must be string"),
    (
        lambda: project(label=label(on={"_position": "id"})),
        UnknownColumn,
        "project 'flights': label join column '_position' is not in the schema",
    ),
    (
        lambda: project(views={"airport": view()}),
        WrongType,
        "project 'flights': views must be a list of feature views, found {'airport'",
    ),
    (lambda: project(views=view()), WrongType, "views must be a list of feature views"),
    (lambda: project(views={view()}), WrongType, "views must be a list of feature views"),
    (
        lambda: project(views=[view(), None]),
        WrongType,
        r"views\[1\] must be a FeatureView, found N",
    ),
    (lambda: project(request=None), WrongType, "project 'flights': request must be a Request"),
    (lambda: project(label=col("delay") > 15), WrongType, "label must be a Label, or None"),
    (lambda: project(model="build"), WrongType, "'flights': model must be a function; found 'bui"),
    (lambda: project(preprocessing_fn=3), WrongType, "preprocessing_fn must be a function"),
    (
        lambda: project(views=[view(features=TIMES)], model=print),
        WrongType,
        r"feature airport\.newest is a timestamp, which no model takes; take its hour_of_day or",
    ),
]


@each_mistake(MISTAKES)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    check_refused(define, error, says)


def test_bools_are_model_inputs_and_times_are_features_without_a_model() -> None:
    inputs = model_inputs(
        project(views=[view(features={"f": TIMES["last_cancelled"]})], model=print)
    )
    assert [(one.name, one.dtype, one.kind) for one in inputs] == [
        ("airport__f", "bool", "numeric")
    ]
    columns = project(views=[view(features=TIMES)]).columns
    assert [column.dtype for column in columns] == ["bool", "timestamp"]


def test_required_columns_are_time_and_id_whatever_views_there_are() -> None:
    assert ARRIVALS.required == ("at", "id")
    assert request().required == ("at", "id")


def test_the_streams_of_a_project_are_each_there_once_and_the_labels_last() -> None:
    landings = stream(name="landings")
    whole = project(views=[view(), view(name="b")], label=label(stream=landings))
    assert whole.streams == (ARRIVALS, landings)
    assert whole.stream("landings") is landings
    assert whole.view("b") is whole.views[1]
    with pytest.raises(UnknownColumn, match="no event stream 'landing'; did you mean 'landings'"):
        whole.stream("landing")
    with pytest.raises(UnknownColumn, match="no feature view 'airprt'; did you mean 'airport'"):
        whole.view("airprt")
