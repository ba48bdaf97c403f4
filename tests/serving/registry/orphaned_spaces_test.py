"""Key spaces outlive the versions that refer to them, until they are cleaned up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pytest

from tests.support import every_type, parcels, stores, versions
from tests.support.every_type import KEYS
from tests.support.parcels import BY_COURIER, BY_DEPOT
from tests.support.redis_server import running
from tests.support.versions import (
    NEW,
    OLD,
    WIDER,
    apply,
    client,
    depot,
    keep_client,
    promote,
    publish,
    read,
    registered_names,
)
from tidemill import FeatureView, count
from tidemill.features.errors import StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.feast_rows import key_space
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.orphaned_spaces import drop_orphans, find_orphans
from tidemill.serving.registry.registration import open_store, plan_project
from tidemill.serving.registry.state import named_spaces
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import FeastPlace, OnlinePlace, default_place
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.redis_place import RedisPlace
from tidemill.serving.stores.registry_places import FileRegistry, RegistryPlace

place, root = versions.place, versions.root
online = stores.place


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisPlace]:
    with running(tmp_path / "redis") as server:
        yield server.place


def test_cleaning_keeps_what_anybody_refers_to(root: Path, place: RegistryPlace) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    apply(NEW, root, place)
    third = parcels.project(BY_COURIER, depot(scans_1d=count(over="3d")))
    apply(third, root, place)
    assert find_orphans(third, StorePlaces.below(root, registry=place)) == []
    promote(third, root, place)
    found = find_orphans(third, StorePlaces.below(root, registry=place))
    gone = {KeySpace.of("parcels", view).name for view in (BY_DEPOT, WIDER)}
    assert {orphan.space.name for orphan in found} == gone
    # One of them is registered again before it is dropped.
    apply(NEW, root, place)
    assert drop_orphans(third, StorePlaces.below(root, registry=place), found) == [
        KeySpace.of("parcels", BY_DEPOT).name
    ]
    kept = set(open_database(default_place(root)).spaces())
    assert kept == {KeySpace.of("parcels", v).name for v in (BY_COURIER, WIDER, third.views[1])}


def test_cleaning_by_an_empty_registry_is_refused(root: Path, place: RegistryPlace) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    other = FileRegistry(root / "other.db")
    with pytest.raises(StoreError, match=r"other\.db holds no view of project 'parcels'"):
        find_orphans(OLD, StorePlaces.below(root, registry=other))


@pytest.mark.parametrize("name", ["small", "by_depot__v3", "every type, ours"])
def test_rows_of_foreign_views_are_nobodys_orphans(
    root: Path, place: RegistryPlace, online: OnlinePlace, name: str
) -> None:
    def read_ann() -> Any:
        refs = [f"{name}:int64"]
        return store.get_online_features(refs, [{"person": KEYS[1]}]).to_dict()["int64"]

    store = open_store(OLD, StorePlaces.below(root, online=online, registry=place), clock="replay")
    entity, view = every_type.view(root, name)
    store.apply([entity, view])
    table = store.get_feature_view(name)
    store._get_provider().online_write_batch(store.config, table, every_type.rows(), progress=None)
    open_store(NEW, StorePlaces.below(root, online=online, registry=place), clock="replay")
    apply(NEW, root, place, online=online, promote=True, unfilled_too=True)
    foreign = key_space(store.config, table).name
    spaces = plan_project(NEW, StorePlaces.below(root, online=online, registry=place)).plan.spaces
    assert foreign not in {space.name for space in spaces or ()}

    found = find_orphans(NEW, StorePlaces.below(root, online=online, registry=place))
    gone = [KeySpace.of("parcels", BY_DEPOT).name]
    assert [orphan.space.name for orphan in found] == gone
    assert drop_orphans(NEW, StorePlaces.below(root, online=online, registry=place), found) == gone
    assert read_ann() == [2**63 - 1]

    # Nor those of a run with an empty root.
    database = open_database(online)
    database.drop(list(named_spaces(database, NEW.name)))
    assert database.spaces() == [foreign]
    assert read_ann() == [2**63 - 1]
    # Not even if this registry does not have it.
    other = FileRegistry(root / "other.db")
    open_store(NEW, StorePlaces.below(root, online=online, registry=other), clock="replay")
    assert find_orphans(NEW, StorePlaces.below(root, online=online, registry=other)) == []


def test_feast_that_deletes_a_view_leaves_its_rows(root: Path, place: RegistryPlace) -> None:
    store = open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    view = store.get_feature_view("by_depot")
    store.apply([], objects_to_delete=[view], partial=False)
    store.refresh_registry()
    assert registered_names(store) == {"by_courier"}
    assert KeySpace.of("parcels", BY_DEPOT).name in open_database(default_place(root)).spaces()
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    assert read(client(root, place), "by_depot:scans_1d") == [5]


def test_lost_key_spaces_are_made_again(root: Path, place: RegistryPlace) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    apply(NEW, root, place)
    database = open_database(default_place(root))
    names = database.spaces()
    assert len(names) == 3
    database.close()
    for file in root.glob("online.db*"):
        file.unlink()
    open_store(NEW, StorePlaces.below(root, registry=place), clock="replay")
    assert open_database(default_place(root)).spaces() == names


def test_store_that_keeps_rows_by_name_reads_versions_by_theirs(
    root: Path, place: RegistryPlace
) -> None:
    # Feast's own SQLite store, by its generic path: a table for each Feast view.
    online = FeastPlace({"type": "sqlite", "path": str(root / "feast.db")}, root, place)
    apply(OLD, root, place, online=online)
    _publish_by_name(online, BY_DEPOT, 5)
    apply(NEW, root, place, online=online)
    _publish_by_name(online, WIDER, 8)
    config = repo_config(
        OLD.name, StorePlaces.below(root, online=online, registry=place), clock="wall"
    )
    stock = keep_client(feast.FeatureStore(config=config))
    assert read(stock, "by_depot:scans_1d") == [5]
    assert read(stock, "by_depot__v2:scans_1d") == [8]
    with pytest.raises(StoreError, match="rows of the old definition would answer"):
        apply(NEW, root, place, online=online, promote=True)
    apply(NEW, root, place, online=online, promote=True, unfilled_too=True)
    open_database(online).close()
    _publish_by_name(online, WIDER, 9)
    stock.refresh_registry()
    assert read(stock, "by_depot:scans_1d") == [9]
    assert registered_names(stock) == {"by_courier", "by_depot"}
    with pytest.raises(StoreError, match="keeps rows by the view's name"):
        find_orphans(NEW, StorePlaces.below(root, online=online, registry=place))


def _publish_by_name(online: FeastPlace, view: FeatureView, scans: int) -> None:
    parcels.publish(open_database(online), view, parcels.depot_rows((7, 1_000, 1, scans)))


def test_versions_and_cleaning_on_redis(
    root: Path, place: RegistryPlace, redis: RedisPlace
) -> None:
    def published(view: FeatureView, scans: int) -> None:
        parcels.publish(open_database(redis), view, parcels.depot_rows((7, 1_000, 1, scans)))

    old, new = parcels.project(BY_DEPOT), parcels.project(WIDER)
    apply(old, root, place, online=redis)
    published(BY_DEPOT, 5)
    apply(new, root, place, online=redis)
    with pytest.raises(StoreError, match="nothing was published to it"):
        apply(new, root, place, online=redis, promote=True)
    published(WIDER, 8)
    config = repo_config(
        old.name, StorePlaces.below(root, online=redis, registry=place), clock="replay"
    )
    assert read(keep_client(feast.FeatureStore(config=config)), "by_depot:scans_1d") == [5]
    apply(new, root, place, online=redis, promote=True)
    assert read(keep_client(feast.FeatureStore(config=config)), "by_depot:scans_1d") == [8]

    gone, kept = (KeySpace.of("parcels", view).name for view in (BY_DEPOT, WIDER))
    found = find_orphans(new, StorePlaces.below(root, online=redis, registry=place))
    assert [(orphan.space.name, orphan.frontiers.least) for orphan in found] == [(gone, 5_000)]
    assert drop_orphans(new, StorePlaces.below(root, online=redis, registry=place), found) == [gone]
    assert open_database(redis).spaces() == [kept]
    assert read(keep_client(feast.FeatureStore(config=config)), "by_depot:scans_1d") == [8]
