"""Definitions: a mistake shows when it is defined, with the name of the thing and the mend."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import parcels, strategies
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    last,
    last_k,
    mean,
    rate,
    time_since_last,
)
from tidemill.examples.flights.project import project as flights
from tidemill.features import zones
from tidemill.features.contract import DAY, HOUR, MINUTE
from tidemill.features.definitions import spec_hash
from tidemill.features.errors import DefinitionError, DuplicateName, UnknownColumn, WrongType
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import load

SCHEMA = {
    "at": "timestamp",
    "id": "string",
    "origin": "string",
    "number": "int64",
    "delay": "float64",
    "cancelled": "bool",
}


def stream(**changes: Any) -> EventStream:
    given = {"name": "arrivals", "schema": SCHEMA, "event_time": "at", "event_id": "id"}
    return EventStream(**(given | changes))


def view(**changes: Any) -> FeatureView:
    given: dict[str, Any] = {
        "name": "airport",
        "entity": Entity("origin"),
        "stream": ARRIVALS,
        "hop": "5m",
        "features": {"arrivals": count(over="1h")},
    }
    return FeatureView(**(given | changes))


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "name": "departures",
        "schema": SCHEMA,
        "request_time": "at",
        "request_id": "id",
    }
    return Request(**(given | changes))


def label(**changes: Any) -> Label:
    given: dict[str, Any] = {
        "name": "late",
        "stream": ARRIVALS,
        "value": col("delay") > 15,
        "on": {"id": "id"},
        "horizon": "1d",
    }
    return Label(**(given | changes))


def project(**changes: Any) -> Project:
    given: dict[str, Any] = {"name": "flights", "request": request(), "views": [view()]}
    return Project(**(given | changes))


ARRIVALS = stream()

MISTAKES: list[tuple[Callable[[], Any], type[DefinitionError], str]] = [
    # Streams
    (lambda: stream(name="Arrivals"), DefinitionError, "stream name 'Arrivals' must be lower-case"),
    (lambda: stream(name="a__b"), DefinitionError, "single underscores"),
    (lambda: stream(name=7), DefinitionError, "stream name 7"),
    (lambda: stream(schema={}), DefinitionError, "stream 'arrivals': the schema has no columns"),
    (
        lambda: stream(schema=SCHEMA | {"delay": "float"}),
        WrongType,
        "stream 'arrivals': column 'delay' has dtype 'float'; did you mean 'float64'",
    ),
    (
        lambda: stream(event_time="att"),
        UnknownColumn,
        "stream 'arrivals': event_time 'att' is not in the schema; did you mean 'at'",
    ),
    (lambda: stream(event_time="id"), WrongType, "event_time 'id' must be timestamp, found string"),
    (lambda: stream(event_id="delay"), WrongType, "event_id 'delay' must be string or int64"),
    (
        lambda: stream(out_of_orderness="5"),
        DefinitionError,
        "stream 'arrivals': out_of_orderness '5' is not a duration",
    ),
    (lambda: stream(allowed_lateness=5), DefinitionError, "allowed_lateness .* write the unit"),
    (lambda: stream(max_ahead="soon"), DefinitionError, "max_ahead 'soon'"),
    (
        lambda: stream(event_id=["id", "at"]),
        WrongType,
        r"event_id must be the name of one column, a text; found \['id', 'at'\] \(list\)",
    ),
    (lambda: stream(event_time=None), WrongType, "event_time must be the name of one column"),
    (
        lambda: stream(schema=["at", "id"]),
        WrongType,
        r"stream 'arrivals': the schema must be a dict such as \{'at': 'timestamp'\}",
    ),
    (lambda: stream(schema=SCHEMA | {3: "int64"}), WrongType, "a column of the schema .* found 3"),
    (lambda: stream(schema=SCHEMA | {"": "int64"}), DefinitionError, "column of the schema is emp"),
    (lambda: stream(schema=SCHEMA | {"\ud800": "int64"}), DefinitionError, "surrogate"),
    (
        lambda: stream(schema=SCHEMA | {"delay": float}),
        WrongType,
        "dtype of column 'delay' must be",
    ),
    (
        lambda: stream(schema=SCHEMA | {"_position": "int64"}),
        DefinitionError,
        "stream 'arrivals': column '_position' is the name of a column that every row .* rename",
    ),
    (
        lambda: stream(max_ahead="400000000d"),
        DefinitionError,
        "stream 'arrivals': max_ahead '400000000d' is too long; take at most 11574074d",
    ),
    *(
        (
            lambda name=name: stream(schema=SCHEMA | {name: "int64"}),
            DefinitionError,
            f"stream 'arrivals': column '{name}' is the name of a column that every row .* rename",
        )
        for name in ("_received", "_partition", "_sent", "__reject__", "__drop__")
    ),
    (lambda: stream(name="a" * 101), DefinitionError, "has 101 characters; take at most 100"),
    # Entities
    (lambda: Entity("tail number"), DefinitionError, "entity name 'tail number'"),
    (
        lambda: Entity("tail", dtype="float64"),
        WrongType,
        "entity 'tail': a key is string or int64, found 'float64'",
    ),
    (
        lambda: Entity("tail", join_key=("a", "b")),
        WrongType,
        r"entity 'tail': join_key must be the name of one column, a text; found \('a', 'b'\)",
    ),
    (
        lambda: Entity("tail", join_key="event_timestamp"),
        DefinitionError,
        "entity 'tail': join_key 'event_timestamp' is the name of a column that every publication",
    ),
    (lambda: Entity("tail", dtype=str), WrongType, "entity 'tail': dtype must be a text"),
    # Views
    (lambda: view(name="9"), DefinitionError, "view name '9'"),
    (
        lambda: view(key="orgin"),
        UnknownColumn,
        "view 'airport': key of entity 'origin' 'orgin' is not .* did you mean 'origin'",
    ),
    (lambda: view(key="number"), WrongType, "'number' must be string, found int64"),
    (lambda: view(hop="0s"), DefinitionError, "view 'airport': the hop must be longer than zero"),
    (lambda: view(hop="often"), DefinitionError, "view 'airport': hop 'often' is not a duration"),
    (lambda: view(max_staleness="old"), DefinitionError, "view 'airport': max_staleness 'old'"),
    (lambda: view(features={}), DefinitionError, "view 'airport' has no features"),
    (lambda: view(features={"A": count(over="1h")}), DefinitionError, "feature name 'A'"),
    (
        lambda: view(features={"n": col("delay")}),
        WrongType,
        r"feature airport\.n must be an aggregation such as count\(over='1d'\), found Column",
    ),
    (
        lambda: view(features={"n": mean(col("dely"), over="1h")}),
        UnknownColumn,
        r"feature airport\.n on stream 'arrivals': column 'dely' .* did you mean 'delay'",
    ),
    (
        lambda: view(features={"n": mean(col("id"), over="1h")}),
        WrongType,
        r"feature airport\.n on stream 'arrivals': mean takes int64 or float64, found string",
    ),
    (
        lambda: view(features={"n": count(over="1h", where=col("delay"))}),
        WrongType,
        "'where' must be bool, found float64",
    ),
    (
        lambda: view(features={"n": count(over="7m")}),
        DefinitionError,
        r"feature airport\.n: the window 7m is not a multiple of the hop 5m; choose a hop",
    ),
    (
        lambda: view(
            features={
                "d": last_k(col("delay"), k=2, over="1h"),
                "d_0": last(col("delay"), over="1h"),
            }
        ),
        DuplicateName,
        "'airport__d_0' would be the name of two feature columns; rename",
    ),
    (lambda: view(entity=None), WrongType, "view 'airport': entity must be an Entity, found None"),
    (
        lambda: view(entity="origin"),
        WrongType,
        r"view 'airport': entity must be an Entity, found 'origin' \(str\)",
    ),
    (
        lambda: view(stream=None),
        WrongType,
        "view 'airport': stream must be an EventStream, found N",
    ),
    (lambda: view(key=3), WrongType, "view 'airport': key of entity 'origin' must be the name"),
    (
        lambda: view(features=[count(over="1h")]),
        WrongType,
        r"view 'airport': features must be a dict such as \{'orders_1d': count\(over='1d'\)\}",
    ),
    (
        lambda: view(features={"origin": count(over="1h")}),
        DefinitionError,
        r"feature airport\.origin: 'origin' is the name of a column that every publication",
    ),
    (lambda: view(hop=5), DefinitionError, r"view 'airport': hop must be a text such as '5m'"),
    # Requests
    (lambda: request(name="X"), DefinitionError, "request name 'X'"),
    (
        lambda: request(schema={}),
        DefinitionError,
        "request 'departures': the schema has no columns",
    ),
    (lambda: request(request_time="when"), UnknownColumn, "request_time 'when' is not in"),
    (lambda: request(request_id="cancelled"), WrongType, "request_id 'cancelled' must be string"),
    (
        lambda: request(inputs={"hour": "at"}),
        WrongType,
        r"request 'departures': input 'hour' must be an expression such as col\('hour'\)",
    ),
    (
        lambda: request(inputs={"hour": col("att").hour_of_day("UTC")}),
        UnknownColumn,
        "request 'departures': input 'hour': column 'att' .* did you mean 'at'",
    ),
    (lambda: request(inputs={"Hour": col("number")}), DefinitionError, "input name 'Hour'"),
    (lambda: request(allowed_lateness="x"), DefinitionError, "'departures': allowed_lateness"),
    (
        lambda: request(inputs={"when": col("at")}),
        WrongType,
        r"request 'departures': input 'when' is a timestamp.*take its \.hour_of_day\(zone\)",
    ),
    (
        lambda: request(inputs={"label_time": col("number")}),
        DefinitionError,
        "request 'departures': input 'label_time' is the name of a column that every training row",
    ),
    (
        lambda: request(inputs={"score": col("number")}),
        DefinitionError,
        "input 'score' is the name",
    ),
    *(
        (
            lambda name=name: request(inputs={name: col("number")}),
            DefinitionError,
            f"request 'departures': input '{name}' is the name of a column that every training row",
        )
        for name in ("request_id", "request_time", "label")
    ),
    (lambda: request(inputs=[col("number")]), WrongType, "'departures': inputs must be a dict"),
    (lambda: request(keys="origin"), WrongType, "request 'departures': keys must be a dict"),
    (lambda: request(keys={"origin": None}), WrongType, "key of entity 'origin' must be the name"),
    (
        lambda: request(schema=SCHEMA | {"values": "int64"}),
        DefinitionError,
        "request 'departures': column 'values' is the name of a column",
    ),
    # Labels
    (lambda: label(name=""), DefinitionError, "label name ''"),
    (
        lambda: label(value=col("dely") > 15),
        UnknownColumn,
        "label 'late' on stream 'arrivals': value: column 'dely'",
    ),
    (lambda: label(on={}), DefinitionError, "label 'late': 'on' must join at least one column"),
    (lambda: label(on={"id": "idd"}), UnknownColumn, "label 'late': join column 'idd'"),
    (lambda: label(on={"id": "delay"}), WrongType, "join column 'delay' must be string or int64"),
    (lambda: label(horizon="0s"), DefinitionError, "label 'late': the horizon must be longer"),
    (
        lambda: label(value="cancelled"),
        WrongType,
        r"label 'late': value must be an expression such as col\('delay'\) > 15, found 'cancelled'",
    ),
    (
        lambda: label(value=col("origin")),
        WrongType,
        r"label 'late' on stream 'arrivals': value must be bool, found string; write .*> 15",
    ),
    (lambda: label(value=col("number")), WrongType, "value must be bool, found int64"),
    (lambda: label(value=col("delay")), WrongType, "value must be bool, found float64"),
    (lambda: label(value=col("at")), WrongType, "value must be bool, found timestamp"),
    (lambda: label(on="id"), WrongType, "label 'late': on must be a dict"),
    (lambda: label(value="b"), WrongType, "label 'late': value must be an expression"),
    (lambda: label(on={3: "id"}), WrongType, "label 'late': on: the request's column must be"),
    (lambda: label(stream="arrivals"), WrongType, "label 'late': stream must be an EventStream"),
    (lambda: label(horizon="400000000d"), DefinitionError, "horizon '400000000d' is too long"),
    # Projects
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
]


@pytest.mark.parametrize(
    ("define", "error", "says"), MISTAKES, ids=[says[:40] for _, _, says in MISTAKES]
)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        define()
    assert type(caught.value) is error


def test_durations_are_microseconds() -> None:
    late = stream(out_of_orderness="5m", allowed_lateness="1h", max_ahead="2d")
    assert late.out_of_orderness_us == 5 * MINUTE
    assert late.tolerance_us == HOUR + 5 * MINUTE
    assert late.max_ahead_us == 2 * DAY
    asked = request(out_of_orderness="5m", allowed_lateness="1h", max_ahead="2d")
    assert asked.tolerance_us == late.tolerance_us
    assert asked.max_ahead_us == late.max_ahead_us
    assert view(hop="5m", max_staleness="1h").max_staleness_us == HOUR
    assert label(horizon="1d").horizon_us == DAY


def test_required_columns_are_time_id_and_the_keys_of_the_streams_views() -> None:
    number = Entity("flight", join_key="number", dtype="int64")
    whole = project(views=[view(), view(name="b"), view(name="c", entity=number)])
    assert ARRIVALS.required == ("at", "id")
    assert whole.required_columns(ARRIVALS) == ("at", "id", "origin", "number")
    assert request().required == ("at", "id")
    by_id = project(views=[view(entity=Entity("id"))])
    assert by_id.required_columns(ARRIVALS) == ("at", "id")


def test_an_entitys_key_is_its_name_unless_it_is_said() -> None:
    assert Entity("origin").join_key == "origin"
    assert view(entity=Entity("airport", join_key="origin")).key == "origin"
    assert view(entity=Entity("airport"), key="origin").key == "origin"
    asked = request(keys={"airport": "origin"})
    assert asked.key_column(Entity("airport")) == "origin"
    assert asked.key_column(Entity("tail", join_key="id")) == "id"


def test_columns_are_named_by_view_feature_and_index() -> None:
    made = view(
        features={
            "n": count(over="1h"),
            "d": last_k(col("delay"), k=2, over="1h"),
            "since": time_since_last(over="1h"),
        }
    )
    assert [column.name for column in made.columns] == [
        "airport__n",
        "airport__d_0",
        "airport__d_1",
        "airport__since",
    ]
    assert dataclasses.asdict(made.columns[0]) == {
        "name": "airport__n",
        "view": "airport",
        "feature": "n",
        "index": 0,
        "dtype": "int64",
        "empty": 0,
        "anchored": False,
    }
    assert made.columns[2].index == 1
    assert made.columns[2].empty is None
    assert made.columns[3].anchored
    assert made.longest_window_us == HOUR


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


def test_definitions_are_frozen() -> None:
    for thing in (ARRIVALS, Entity("e"), view(), request(), label(), project()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.name = "other"  # type: ignore[misc]


# The canonical form and its hash

CHANGES: list[Callable[[], FeatureView]] = [
    view,
    lambda: view(name="b"),
    lambda: view(hop="10m"),
    lambda: view(key="id"),
    lambda: view(entity=Entity("other", join_key="origin")),
    lambda: view(entity=Entity("origin", join_key="id"), key="origin"),
    lambda: view(stream=stream(out_of_orderness="1s")),
    lambda: view(stream=stream(allowed_lateness="1s", max_ahead="2d")),
    lambda: view(stream=stream(schema=SCHEMA | {"more": "bool"})),
    lambda: view(features={"arrivals": count(over="2h")}),
    lambda: view(features={"other": count(over="1h")}),
    lambda: view(features={"arrivals": count(over="1h", where=col("delay") > 15)}),
    lambda: view(features={"arrivals": count(over="1h", where=col("delay") > 15.0)}),
    lambda: view(features={"arrivals": count(col("delay"), over="1h")}),
    lambda: view(features={"arrivals": rate(col("delay") > 15, over="1h")}),
    lambda: view(features={"a": count(over="1h"), "b": count(over="2h")}),
    lambda: view(features={"b": count(over="2h"), "a": count(over="1h")}),
]


def test_whatever_changes_a_feature_vector_changes_the_hash() -> None:
    hashes = [make().hash for make in CHANGES]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [make().hash for make in CHANGES]


def test_other_words_for_the_same_have_the_same_hash() -> None:
    turned = dict(reversed(SCHEMA.items()))
    same = view(
        stream=stream(schema=turned),
        key="origin",
        hop="300s",
        features={"arrivals": count(over="60m")},
    )
    assert same.hash == view().hash
    # How old an answer may be is the reader's matter, not the value's.
    assert view(max_staleness="1d").hash == view().hash


def test_a_projects_hash_covers_request_views_and_label() -> None:
    made = [
        project(),
        project(name="other"),
        project(request=request(inputs={"n": col("number")})),
        project(request=request(allowed_lateness="1m")),
        project(views=[view(hop="10m")]),
        project(label=label()),
        project(label=label(horizon="2d")),
        project(label=label(value=col("delay") > 20)),
    ]
    assert len({one.hash for one in made}) == len(made)
    # Preprocessing and the model are stamped by themselves.
    assert project(model=len, preprocessing_fn=len).hash == project().hash


@given(st.data())
def test_every_definition_has_a_json_form_and_a_hash_of_16_digits(data: st.DataObject) -> None:
    made = data.draw(strategies.views())
    assert json.loads(json.dumps(made.spec())) == made.spec()
    assert len(made.hash) == 16
    assert made.hash == spec_hash(made.spec())
    assert len({column.name for column in made.columns}) == len(made.columns)


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from tests.features.definitions.definitions_test import project; print(project().hash)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert other.stdout.strip() == project().hash


def test_a_definition_keeps_a_copy_of_what_the_user_may_change() -> None:
    """Its hash is remembered; and nobody changes the copy."""
    schema, features, keys = dict(SCHEMA), {"n": count(over="1h")}, {"origin": "origin"}
    inputs, on = {"number": col("number")}, {"id": "id"}
    arrivals = stream(schema=schema)
    whole = project(
        views=[view(stream=arrivals, features=features)],
        request=request(keys=keys, inputs=inputs),
        label=label(on=on, stream=arrivals),
    )
    before = whole.spec()
    for mine in (schema, features, keys, inputs, on):
        mine.clear()
    assert whole.spec() == before
    for mapping in (
        whole.views[0].features,
        whole.views[0].stream.schema,
        whole.request.keys,
        whole.request.inputs,
    ):
        with pytest.raises(TypeError):
            mapping["more"] = None  # type: ignore[index]
    assert pickle.loads(pickle.dumps(whole)).hash == whole.hash


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda _: flights, "1fbe6cc754559e26"),
        (
            lambda folder: load(write_project("tiny_shop", folder) / "tidemill.yaml").project,
            "4e5ba2558b704e20",
        ),
        (lambda _: parcels.PARCELS, "a1854bfa84ae7f86"),
    ],
    ids=["flights", "scaffold", "parcels"],
)
def test_a_hash_stays_what_stores_bundles_and_states_are_stamped_with(
    made: Callable[[Path], Any], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another canonical form parts every user from what was made before."""
    monkeypatch.setattr(zones, "tzdata_version", lambda: "2026.6")
    assert spec_hash(made(tmp_path).spec()) == wanted
