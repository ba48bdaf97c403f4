"""Versions of views against Feast's real registries, in a file and in SQL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pytest

from tests.support import parcels, versions
from tests.support.feast_definitions import feast_objects
from tests.support.parcels import BY_COURIER, BY_DEPOT
from tests.support.versions import (
    NEW,
    OLD,
    WIDER,
    apply,
    client,
    contents,
    depot,
    promote,
    publish,
    publish_courier,
    read,
    read_service,
    registered_names,
)
from tidemill import Entity, FeatureView, Project, col, count, max, sum
from tidemill.features.errors import StoreError
from tidemill.features.feast_objects import DEFINITION_TAG, offline_path
from tidemill.serving.definition_changes import Change
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import OnlineReader
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.orphaned_spaces import drop_orphans, find_orphans
from tidemill.serving.registry.plan import Role
from tidemill.serving.registry.registration import feast_name, open_store, plan_project
from tidemill.serving.registry.state import read_registered
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import OFFLINE, StorePlaces
from tidemill.serving.stores.registry_places import RegistryPlace

place, root = versions.place, versions.root


def test_first_registration_is_what_feast_itself_would_register(
    root: Path, place: RegistryPlace
) -> None:
    ours = open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    other = root / "stock"
    stock = feast.FeatureStore(
        config=feast.RepoConfig(
            project="parcels",
            provider="local",
            registry=str(other / "registry.db"),
            online_store={"type": "sqlite", "path": str(other / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    stock.apply(feast_objects(OLD, OFFLINE).all)
    expected = contents(stock)
    # Feast adds an entity of its own for views without one; here there are none.
    expected["entities"] = [e for e in expected["entities"] if e["spec"]["name"] != "__dummy"]
    assert contents(ours) == expected


def test_changed_view_is_pending_and_stock_clients_keep_the_old_values(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    before = client(root, place)
    assert read(before, "by_depot:scans_1d") == [5]

    apply(NEW, root, place)
    publish(root, WIDER, 8)
    for stock in (before, client(root, place)):
        stock.refresh_registry()
        assert read(stock, "by_depot:scans_1d") == [5]
        assert read(stock, "by_depot__v2:scans_1d") == [8]
    keys = {"depot": pa.array([7])}
    for project, value in ((OLD, 5), (NEW, 8)):
        reader = OnlineReader(open_database(default_place(root)), project, "replay")
        reading = reader.read({"by_depot": keys["depot"]})["by_depot"]
        assert reading.column("by_depot__scans_1d").to_pylist() == [value]


def test_promotion_switches_view_and_service_and_keeps_the_name_it_had(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    publish_courier(root)
    apply(NEW, root, place)
    publish(root, WIDER, 8)
    keys = {"courier": "ann", "depot": 7}
    stock = client(root, place)
    assert read_service(stock, "parcels", keys)["by_depot__scans_1d"] == 5
    # The names of the features do not change with the version.
    assert read_service(stock, "parcels__next", keys)["by_depot__scans_1d"] == 8

    apply(NEW, root, place, promote=True)
    stock = client(root, place)
    assert read(stock, "by_depot:scans_1d") == [8]
    assert read(stock, "by_depot__v2:scans_1d") == [8]
    assert read_service(stock, "parcels", keys)["by_depot__scans_1d"] == 8
    assert read_service(stock, "parcels__next", keys)["by_depot__scans_1d"] == 8
    assert registered_names(stock) == {"by_courier", "by_depot", "by_depot__v2"}
    # A reader of its own definition is not affected.
    reader = OnlineReader(open_database(default_place(root)), OLD, "replay")
    reading = reader.read({"by_depot": pa.array([7])})["by_depot"]
    assert reading.column("by_depot__scans_1d").to_pylist() == [5]


def test_promotion_removes_the_name_of_the_version_before(root: Path, place: RegistryPlace) -> None:
    for days in (1, 2, 3):
        view = depot(scans_1d=count(over=f"{days}d"))
        apply(parcels.project(view), root, place)
        promote(parcels.project(view), root, place)
    assert registered_names(client(root, place)) == {"by_depot", "by_depot__v3"}
    sources = {source.name for source in client(root, place).list_data_sources()}
    assert sources == {"by_depot_publications", "by_depot__v3_publications"}


@pytest.mark.parametrize("published", [0, 1], ids=["nothing", "one shard of two"])
def test_promotion_of_what_is_not_filled_is_refused(
    root: Path, place: RegistryPlace, published: int
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    apply(NEW, root, place)
    if published:
        database = open_database(default_place(root))
        rows = parcels.depot_rows((7, 10, 1, 8))
        parcels.publish(database, WIDER, rows, shards=2, frontier_us=20)
    before = contents(client(root, place))
    lacking = "no frontier of shard 1 of 2" if published else "nothing was published to it"
    with pytest.raises(StoreError, match=rf"not promoted.*'by_depot'.*{lacking}.*--publish"):
        apply(NEW, root, place, promote=True)
    assert contents(client(root, place)) == before
    assert read(client(root, place), "by_depot:scans_1d") == [5]
    promote(NEW, root, place)
    assert read(client(root, place), "by_depot:scans_1d") != [5]


def test_new_view_is_promoted_at_once_and_joins_the_service_on_promotion(
    root: Path, place: RegistryPlace
) -> None:
    open_store(parcels.project(BY_DEPOT), StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    apply(OLD, root, place)
    stock = client(root, place)
    assert registered_names(stock) == {"by_courier", "by_depot"}
    assert read_service(stock, "parcels", {"depot": 7}) == {"by_depot__scans_1d": 5}
    with pytest.raises(StoreError, match=r"'by_courier'.*nothing was published"):
        apply(OLD, root, place, promote=True)
    publish_courier(root)
    apply(OLD, root, place, promote=True)
    both = read_service(client(root, place), "parcels", {"depot": 7, "courier": "ann"})
    assert set(both) == {column.name for column in OLD.columns}


def test_removed_view_stays_until_promotion_and_its_rows_until_cleaned(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish_courier(root)
    publish(root, BY_DEPOT, 5)
    fewer = parcels.project(BY_COURIER)
    apply(fewer, root, place)
    assert read(client(root, place), "by_depot:scans_1d") == [5]
    assert find_orphans(fewer, StorePlaces.below(root, registry=place)) == []

    apply(fewer, root, place, promote=True)
    stock = client(root, place)
    assert registered_names(stock) == {"by_courier"}
    assert {entity.name for entity in stock.list_entities()} == {"courier"}
    service = stock.get_feature_service("parcels")
    assert {p.name for p in service.feature_view_projections} == {"by_courier"}
    space = KeySpace.of("parcels", BY_DEPOT).name
    database = open_database(default_place(root))
    assert space in database.spaces()
    orphans = find_orphans(fewer, StorePlaces.below(root, registry=place))
    assert [(orphan.space.name, orphan.frontiers.by_shard) for orphan in orphans] == [
        (space, {0: 5_000})
    ]
    assert drop_orphans(fewer, StorePlaces.below(root, registry=place), orphans) == [space]
    assert database.spaces() == [KeySpace.of("parcels", BY_COURIER).name]


def test_added_and_removed_features_are_seen_only_after_promotion(
    root: Path, place: RegistryPlace
) -> None:
    first = depot(scans_1d=count(over="1d"), grams=sum(col("grams"), over="1d"))
    second = depot(scans_1d=count(over="1d"), heaviest=max(col("grams"), over="1d"))
    open_store(parcels.project(first), StorePlaces.below(root, registry=place), clock="replay")
    publish(root, first, 5, 900)
    apply(parcels.project(second), root, place)
    publish(root, second, 5, 700)
    stock = client(root, place)
    assert read(stock, "by_depot:scans_1d", "by_depot:grams") == [5, 900]
    assert read(stock, "by_depot__v2:scans_1d", "by_depot__v2:heaviest") == [5, 700]
    apply(parcels.project(second), root, place, promote=True)
    stock = client(root, place)
    assert read(stock, "by_depot:scans_1d", "by_depot:heaviest") == [5, 700]
    with pytest.raises(Exception, match="grams"):
        read(stock, "by_depot:grams")


def test_other_order_of_the_same_features_is_read_in_its_own_order(
    root: Path, place: RegistryPlace
) -> None:
    # Feast treats views with the same set of features as equal and would keep the old order,
    # in which the cells of the new definition mean other values.
    features = {"scans_1d": count(over="1d"), "grams": sum(col("grams"), over="1d")}
    first, second = depot(**features), depot(**dict(reversed(features.items())))
    open_store(parcels.project(first), StorePlaces.below(root, registry=place), clock="replay")
    publish(root, first, 5, 900)
    apply(parcels.project(second), root, place)
    publish(root, second, 901, 6)
    assert read(client(root, place), "by_depot:scans_1d", "by_depot:grams") == [5, 900]
    apply(parcels.project(second), root, place, promote=True)
    assert read(client(root, place), "by_depot:scans_1d", "by_depot:grams") == [6, 901]


def test_changed_entity_leaves_the_promoted_view_readable(root: Path, place: RegistryPlace) -> None:
    open_store(parcels.project(BY_DEPOT), StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    renamed = FeatureView(
        "by_depot",
        Entity("depot", join_key="depot_id", dtype="int64"),
        parcels.SCANS,
        hop="1h",
        key="depot",
        features={"scans_1d": count(over="1d")},
    )
    project = Project(
        "parcels",
        request=parcels.PARCELS.request.__class__(
            "quotes",
            schema={"quote": "string", "at": "timestamp", "depot_id": "int64"},
            request_time="at",
            request_id="quote",
        ),
        views=[renamed],
    )
    apply(project, root, place)
    publish(root, renamed, 6)
    stock = client(root, place)
    assert read(stock, "by_depot:scans_1d") == [5]
    assert read(stock, "by_depot__v2:scans_1d", keys={"depot_id": 7}) == [6]
    apply(project, root, place, promote=True)
    stock = client(root, place)
    assert read(stock, "by_depot:scans_1d", keys={"depot_id": 7}) == [6]
    assert [entity.name for entity in stock.list_entities()] == ["depot"]


def test_rolling_back_finds_the_old_rows_again(root: Path, place: RegistryPlace) -> None:
    open_store(parcels.project(BY_DEPOT), StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5, frontier_us=5_000)
    apply(parcels.project(WIDER), root, place)
    publish(root, WIDER, 8, frontier_us=60_000_000)
    apply(parcels.project(WIDER), root, place, promote=True)

    preview = plan_project(parcels.project(BY_DEPOT), StorePlaces.below(root, registry=place))
    (view,) = preview.plan.views
    assert (view.feast_name, view.version) == ("by_depot__v3", 3)
    (space,) = [s for s in preview.plan.spaces or () if s.role is Role.PENDING]
    assert (space.exists, space.unfilled, space.frontiers.least) == (True, None, 5_000)
    apply(parcels.project(BY_DEPOT), root, place, promote=True)
    assert read(client(root, place), "by_depot:scans_1d") == [5]


def test_going_back_before_promotion_leaves_nothing_pending_after_it(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    apply(NEW, root, place)
    preview = apply(OLD, root, place)
    assert [version.feast_name for version in preview.plan.superseded] == ["by_depot__v2"]
    assert registered_names(client(root, place)) == {"by_courier", "by_depot", "by_depot__v2"}
    promote(OLD, root, place)
    assert registered_names(client(root, place)) == {"by_courier", "by_depot"}


def test_registering_again_writes_nothing(root: Path, place: RegistryPlace) -> None:
    for project in (OLD, NEW):
        apply(project, root, place)
        preview = plan_project(project, StorePlaces.below(root, registry=place))
        assert preview.registers == ()
    promote(NEW, root, place)
    preview = plan_project(NEW, StorePlaces.below(root, registry=place))
    assert (preview.registers, preview.promotes, preview.plan.to_promote) == ((), (), ())


def test_open_store_never_promotes_over_another_definition(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    store = open_store(NEW, StorePlaces.below(root, registry=place), clock="replay")
    assert feast_name(store, WIDER) == "by_depot__v2"
    assert feast_name(store, BY_DEPOT) == "by_depot"
    assert store.get_feature_view("by_depot").tags[DEFINITION_TAG] == BY_DEPOT.hash
    with pytest.raises(StoreError, match="not registered in project 'parcels'"):
        feast_name(store, depot(scans_1d=count(over="9d")))


def test_versions_have_directories_of_their_own_offline(root: Path, place: RegistryPlace) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    apply(NEW, root, place)
    store = client(root, place)
    paths = [store.get_feature_view(n).batch_source.path for n in ("by_depot", "by_depot__v2")]
    assert paths == [offline_path(OFFLINE, view) for view in (BY_DEPOT, WIDER)]
    assert len(set(paths)) == 2


def test_things_of_other_people_are_left_alone(root: Path, place: RegistryPlace) -> None:
    store = open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    depot_entity = store.get_entity("depot")
    theirs = feast.FeatureView(
        name="theirs",
        entities=[depot_entity],
        schema=[feast.Field(name="x", dtype=feast.types.Float64)],
        source=feast.FileSource(
            name="x", path=str(root / "x.parquet"), timestamp_field="event_timestamp"
        ),
    )
    view = store.get_feature_view("by_courier")
    service = feast.FeatureService(name="theirs", features=[theirs, view[["scans_1d"]]])
    store.apply([theirs, service])
    fewer = parcels.project(BY_COURIER)
    promote(fewer, root, place)
    after = client(root, place)
    assert registered_names(after) == {"by_courier", "theirs"}
    assert "depot" in {entity.name for entity in after.list_entities()}
    assert find_orphans(fewer, StorePlaces.below(root, registry=place))[0].space.view == "by_depot"
    assert len(find_orphans(fewer, StorePlaces.below(root, registry=place))) == 1
    found = read_service(after, "theirs", {"courier": "ann", "depot": 7})
    assert set(found) == {"by_courier__scans_1d", "theirs__x"}


def test_registry_of_an_older_release_is_taken_over(root: Path, place: RegistryPlace) -> None:
    store = client(root, place)
    objects = feast_objects(OLD, OFFLINE)
    for view in objects.feature_views:
        view.tags = {k: v for k, v in view.tags.items() if k in (
            DEFINITION_TAG, "tidemill_max_staleness_us"
        )}  # fmt: skip
    store.apply(objects.all)
    preview = plan_project(NEW, StorePlaces.below(root, registry=place))
    (changed,) = [view for view in preview.plan.views if view.change is Change.CHANGED]
    assert changed.details == ("registered without its canonical form: what differs is not known",)
    apply(OLD, root, place)
    (courier, by_depot) = read_registered(client(root, place)).views
    assert courier.spec is not None
    dtypes = [courier.dtypes[name] for name in ("grams_1d", "metres_1d", "signed", "due")]
    assert dtypes == ["Int64", "Float64", "Bool", "timestamp"]
    assert by_depot.spec is not None


def test_services_follow_a_view_whose_fields_say_more(root: Path, place: RegistryPlace) -> None:
    # Feast compares a service's features with the view's, tags among them, and refuses to read
    # where they differ. An older release wrote none.
    store = client(root, place)
    objects = feast_objects(OLD, OFFLINE)
    for view in objects.feature_views:
        for field in view.features:
            field.tags = {}
    courier = objects.feature_views[0]
    theirs = feast.FeatureService(name="theirs", features=[courier[["idle", "scans_1d"]]])
    store.apply([*objects.all, theirs])
    apply(NEW, root, place)
    stock = client(root, place)
    assert stock.get_feature_view("by_courier").features[5].tags
    keys = {"courier": "ann", "depot": 7}
    assert set(read_service(stock, "theirs", keys)) == {"by_courier__idle", "by_courier__scans_1d"}
    assert len(read_service(stock, "parcels", keys)) == len(OLD.columns)


def test_client_that_is_open_sees_a_promotion_when_its_cache_ends(
    root: Path, place: RegistryPlace
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish(root, BY_DEPOT, 5)
    publish_courier(root)
    config = repo_config(OLD.name, StorePlaces.below(root, registry=place), clock="replay")
    assert config.registry.cache_ttl_seconds == 60
    config.registry.cache_ttl_seconds = 1
    stock, keys = feast.FeatureStore(config=config), {"courier": "ann", "depot": 7}

    def seen() -> tuple[Any, Any]:
        service = read_service(stock, "parcels", keys)
        return read(stock, "by_depot:scans_1d")[0], service["by_depot__scans_1d"]

    assert seen() == (5, 5)
    apply(NEW, root, place)
    publish(root, WIDER, 8)
    assert seen() == (5, 5)
    apply(NEW, root, place, promote=True)
    time.sleep(1.1)
    assert seen() == (8, 8)
