"""``feast apply`` in the generated folder registers what is registered, and the user's files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import feast
import pytest

import tidemill
from tests.support import others_views, parcels
from tests.support.parcels import BY_COURIER, BY_DEPOT, DEPOT
from tests.support.versions import NEW, OLD, apply, contents, registered_names
from tidemill import count
from tidemill.features.errors import StoreError
from tidemill.serving.registry.registration import open_store, plan_project
from tidemill.serving.registry.repository import registered_objects
from tidemill.serving.registry.state import read_registered
from tidemill.serving.stores.feast_config import (
    OBJECTS_MODULE,
    write_feature_store_yaml,
    write_objects_module,
)
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import default_registry

USERS = """
import feast
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from tidemill_objects import by_courier, depot_entity

theirs = feast.FeatureView(
    name="theirs",
    entities=[depot_entity],
    schema=[feast.Field(name="x", dtype=Float64)],
    source=feast.FileSource(name="x", path="x.parquet", timestamp_field="event_timestamp"),
)


@on_demand_feature_view(
    sources=[by_courier], schema=[feast.Field(name="twice", dtype=Int64)], mode="pandas"
)
def doubled(inputs):
    return inputs[["scans_1d"]].rename(columns={"scans_1d": "twice"}) * 2
"""


def _repository(root: Path) -> feast.FeatureStore:
    """Register a version and a pending one, and write what `tidemill apply` writes."""
    apply(OLD, root, default_registry(root))
    apply(NEW, root, default_registry(root))
    places = StorePlaces.below(root)
    write_feature_store_yaml(OLD.name, places, clock="replay")
    write_objects_module(places)
    return feast.FeatureStore(repo_path=str(root))


def _feast(root: Path, *words: str) -> str:
    """Run Feast's own command line in the folder."""
    command = [str(Path(sys.executable).with_name("feast")), "--chdir", str(root), *words]
    source = str(Path(tidemill.__path__[0]).parent)
    environment = {**os.environ, "HOME": str(root), "PYTHONPATH": source}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_feast_apply_keeps_every_version_and_adds_the_users_own_files(tmp_path: Path) -> None:
    before = contents(_repository(tmp_path))
    (tmp_path / "users.py").write_text(USERS)
    said = _feast(tmp_path, "apply")
    assert "Could not validate FileSource path '" + str(tmp_path / "offline") not in said
    store = feast.FeatureStore(repo_path=str(tmp_path))
    assert [view.name for view in store.list_on_demand_feature_views()] == ["doubled"]
    after = contents(store)
    for kind, kept in before.items():
        assert [thing for thing in after[kind] if thing in kept] == kept, kind
    assert "theirs" in registered_names(store)
    assert registered_objects(tmp_path).keys() == {
        "by_courier",
        "by_depot",
        "by_depot__v2",
        "courier_entity",
        "depot_entity",
        "parcels__next_service",
        "parcels_service",
    }


def test_module_of_an_empty_registry_names_the_command(tmp_path: Path) -> None:
    places = StorePlaces.below(tmp_path)
    write_feature_store_yaml(OLD.name, places, clock="replay")
    write_objects_module(places)
    with pytest.raises(StoreError, match=r"holds no view .* project 'parcels'.*`tidemill apply`"):
        registered_objects(tmp_path)
    assert OBJECTS_MODULE == "tidemill_objects.py"


def test_descriptions_are_registered_at_once_and_kept_by_feast_apply(tmp_path: Path) -> None:
    place = default_registry(tmp_path)
    apply(OLD, tmp_path, place)
    team = {"owner": "ann@example", "tags": {"team": "risk"}, "description": "Ours."}
    feature = count(over="1d", description="Scans of a day.", owner="bob@example")
    depot = dataclasses.replace(DEPOT, **team)
    view = dataclasses.replace(BY_DEPOT, entity=depot, features={"scans_1d": feature}, **team)
    project = dataclasses.replace(parcels.project(BY_COURIER, view), **team)
    done = apply(project, tmp_path, place)
    assert (done.plan.to_promote, project.hash) == ((), OLD.hash)
    places = StorePlaces.below(tmp_path)
    write_feature_store_yaml(OLD.name, places, clock="replay")
    write_objects_module(places)
    for is_applied in (False, True):
        if is_applied:
            _feast(tmp_path, "apply")
        store = feast.FeatureStore(repo_path=str(tmp_path))
        registered = store.get_feature_view("by_depot")
        described = (
            registered,
            store.get_entity("depot"),
            store.get_feature_service("parcels"),
            store.registry.get_project("parcels"),
        )
        for thing in described:
            assert (thing.owner, thing.description) == ("ann@example", "Ours.")
            assert thing.tags["team"] == "risk"
        assert registered.features[0].description == "Scans of a day."
        assert registered.features[0].tags["owner"] == "bob@example"
    assert plan_project(project, places).registers == ()
    apply(OLD, tmp_path, place)  # without a description again
    assert feast.FeatureStore(repo_path=str(tmp_path)).get_feature_view("by_depot").owner == ""
    assert plan_project(OLD, places).registers == ()


def test_entity_of_an_on_demand_view_of_others_is_in_use(tmp_path: Path) -> None:
    store = open_store(OLD, StorePlaces.below(tmp_path), clock="replay")
    others_views.write_files(tmp_path)
    store.apply(others_views.views(tmp_path))
    found = read_registered(store)
    assert {"written", "computed"} < set(found.foreign_views)
    assert "person" in found.entities_in_use
