"""Registering a project in process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.support import parcels
from tests.support.parcels import BY_COURIER, BY_DEPOT, DEPOT_SPACE, depot_rows
from tidemill.features.errors import StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.feast_rows import key_space
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import StorePlaces


def _registered(store: Any) -> Any:
    """Everything in the registry except the times of writes.

    A source's class is left out too, because Feast records it at the first registration only.
    """

    touched = (
        "createdTimestamp",
        "lastUpdatedTimestamp",
        "lastUpdated",
        "versionId",
        "dataSourceClassType",
    )

    def timeless(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: timeless(v) for k, v in node.items() if k not in touched}
        if isinstance(node, list):  # Feast applies from sets, so in any order
            return sorted((timeless(v) for v in node), key=repr)
        return node

    return timeless(MessageToDict(store.registry.proto()))


def test_everything_stands_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = open_store(parcels.PARCELS, StorePlaces.below(tmp_path / "root"), clock="wall")
    assert Path.cwd() == elsewhere
    assert list(elsewhere.iterdir()) == []
    assert {f.name for f in (tmp_path / "root").iterdir()} >= {"registry.db", "online.db"}
    assert {v.name for v in store.list_feature_views()} == {"by_courier", "by_depot"}
    assert {e.name for e in store.list_entities()} >= {"courier", "depot"}
    assert [s.name for s in store.list_feature_services()] == ["parcels"]


def test_registering_again_changes_nothing(tmp_path: Path) -> None:
    first = open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")
    database = open_database(default_place(tmp_path))
    parcels.publish(database, BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)

    before = _registered(first)
    assert "by_courier" in str(before)
    assert (
        _registered(open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall"))
        == before
    )
    (snapshot,) = open_database(default_place(tmp_path)).read([(DEPOT_SPACE, [])])
    assert snapshot.frontiers.by_shard == {0: 20}


def test_registry_alone_gives_the_key_space_of_the_definitions(tmp_path: Path) -> None:
    config = repo_config(parcels.PARCELS.name, StorePlaces.below(tmp_path), clock="wall")
    store = open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")
    for view in (BY_COURIER, BY_DEPOT):
        registered = store.get_feature_view(view.name)
        assert key_space(config, registered) == KeySpace.of("parcels", view)


def test_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "online.db").mkdir()
    with pytest.raises(StoreError, match=r"online\.db"):
        open_store(parcels.PARCELS, StorePlaces.below(tmp_path), clock="wall")


def test_workers_write_and_read_without_feast() -> None:
    code = (
        "import sys, tidemill.serving.online.parcels, tidemill.serving.online.reader\n"
        "import tidemill.serving.registry.registration\n"
        "print([name for name in ('feast', 'pandas', 'apache_beam') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
