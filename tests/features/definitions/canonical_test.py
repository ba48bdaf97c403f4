"""The canonical form of definitions, its hash, and that neither can change."""

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
from tests.support.definitions import (
    ARRIVALS,
    SCHEMA,
    label,
    project,
    request,
    stream,
    view,
)
from tidemill import (
    Entity,
    FeatureView,
    col,
    count,
    rate,
)
from tidemill.examples.flights.project import project as flights
from tidemill.features import zones
from tidemill.features.definitions import Project, spec_hash
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import load


def test_definitions_are_frozen() -> None:
    for thing in (ARRIVALS, Entity("e"), view(), request(), label(), project()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.name = "other"  # type: ignore[misc]


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
    # The staleness bound changes reads, not values.
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
    # Preprocessing and the model have stamps of their own.
    assert project(model=len, preprocessing_fn=len).hash == project().hash


@given(st.data())
def test_every_definition_has_a_json_form_and_a_hash_of_16_digits(data: st.DataObject) -> None:
    made = data.draw(strategies.views())
    assert json.loads(json.dumps(made.spec())) == made.spec()
    assert len(made.hash) == 16
    assert made.hash == spec_hash(made.spec())
    assert len({column.name for column in made.columns}) == len(made.columns)


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from tests.support.definitions import project; print(project().hash)"
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


def parcels_of_numbers() -> Project:
    """Return the parcels without what is a bool or a time."""
    typed = ("signed", "due")
    schema = {name: dtype for name, dtype in parcels.SCANS.schema.items() if name not in typed}
    scans = dataclasses.replace(parcels.SCANS, schema=schema)
    views = [
        dataclasses.replace(
            view,
            stream=scans,
            features={name: one for name, one in view.features.items() if name not in typed},
        )
        for view in parcels.PARCELS.views
    ]
    return parcels.project(*views)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda _: flights, "befd4a4878478aeb"),
        (
            lambda folder: load(write_project("tiny_shop", folder) / "tidemill.yaml").project,
            "2a22377fb771aa91",
        ),
        (lambda _: parcels_of_numbers(), "fbafa5a02847518f"),
        (lambda _: parcels.PARCELS, "8e31215c9a3de1d0"),
    ],
    ids=["flights", "scaffold", "parcels of numbers", "parcels"],
)
def test_a_hash_stays_what_stores_bundles_and_states_are_stamped_with(
    made: Callable[[Path], Any], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another canonical form parts every user from what was made before."""
    monkeypatch.setattr(zones, "tzdata_version", lambda: "2026.6")
    assert spec_hash(made(tmp_path).spec()) == wanted
