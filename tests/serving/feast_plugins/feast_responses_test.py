"""Responses made column by column equal Feast's own message, for the view's present definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import feast
import pytest
from feast.infra.online_stores.online_store import OnlineStore
from feast.types import Array, Bytes, Int64, String

from tests.support import every_type, parcels, stores
from tests.support.feast_definitions import feast_objects
from tests.support.parcels import BY_COURIER, BY_DEPOT, DEPOT, SCANS, courier_rows, depot_rows
from tidemill import FeatureView, count
from tidemill.features.feast_objects import DEFINITION_TAG, MAX_STALENESS_TAG
from tidemill.serving.feast_plugins.online_store import OrderedOnlineStore
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.feast_rows import stored_view
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import OnlinePlace
from tidemill.serving.stores.places import StorePlaces

_WIDER = FeatureView("by_depot", DEPOT, SCANS, hop="1h", features={"scans_1d": count(over="2d")})


place = stores.place


@pytest.fixture
def store(place: OnlinePlace, tmp_path: Path) -> feast.FeatureStore:
    return open_store(parcels.PARCELS, StorePlaces.below(tmp_path, online=place), clock="replay")


def _both_ways(
    store: feast.FeatureStore, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> tuple[Any, Any]:
    ours = store.get_online_features(**asked).proto
    with monkeypatch.context() as patch:
        step = "_read_features_per_fv"
        patch.setattr(OrderedOnlineStore, step, getattr(OnlineStore, step))
        return ours, store.get_online_features(**asked).proto


@pytest.mark.parametrize("names", ["full", "bare", "versions"])
def test_message_is_that_of_feasts_own_step(
    place: OnlinePlace,
    store: feast.FeatureStore,
    names: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fuller = {"scans_1d": 2**53 + 1, "metres_1d": -0.0, "event_timestamp": -1_500_001}
    rows = [{"entity_key": b"ann", **fuller}, {"entity_key": b"bob"}]
    parcels.publish(open_database(place), BY_COURIER, courier_rows(*rows))
    parcels.publish(open_database(place), BY_DEPOT, depot_rows((7, 1_234_567, 3, 8)))
    fields = ["scans_1d", "tidemill_revision", "tidemill_valid_until"]
    couriers = ["nobody", "bob", "ann", "bob"]
    ours, theirs = _both_ways(
        store,
        monkeypatch,
        features=[
            *(f"by_courier:{name}" for name in ("metres_1d", "idle", *fields[:1])),
            *(f"by_depot:{name}" for name in (fields if names == "full" else fields[1:])),
        ],
        entity_rows=[
            {"courier": courier, "depot": depot}
            for courier, depot in zip(couriers, [7, 8, 7, 9], strict=True)
        ],
        full_feature_names=names == "full",
        include_feature_view_version_metadata=names == "versions",
    )
    assert ours == theirs
    # Messages that compare equal in Python may still differ in the sign of a zero.
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert len(ours.metadata.feature_view_metadata) == (2 if names == "versions" else 0)
    assert {len(vector.values) for vector in ours.results} == {4}


def test_message_of_every_type_is_that_of_feasts_own_step(
    store: feast.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply(list(every_type.view(tmp_path)))
    view = store.get_feature_view("every type, ours")
    store._get_provider().online_write_batch(store.config, view, every_type.rows(), progress=None)
    ours, theirs = _both_ways(
        store,
        monkeypatch,
        features=[f"every type, ours:{name}" for name in every_type.VALUES],
        entity_rows=[{"person": key} for key in ["nobody", *every_type.KEYS, every_type.KEYS[0]]],
    )
    wire = [message.SerializeToString(deterministic=True) for message in (ours, theirs)]
    assert wire[0] == wire[1]


def test_changed_definition_is_read_in_the_process_that_read_the_one_before(
    place: OnlinePlace, store: feast.FeatureStore, tmp_path: Path
) -> None:
    def read() -> Any:
        return store.get_online_features(["by_depot:scans_1d"], [{"depot": 7}]).to_dict()

    parcels.publish(open_database(place), BY_DEPOT, depot_rows((7, 1_000, 1, 8)))
    assert read()["scans_1d"] == [8]
    # The same name and the same fields; another definition.
    store.apply(feast_objects(parcels.project(BY_COURIER, _WIDER), str(tmp_path)).all)
    assert read()["scans_1d"] == [None]
    parcels.publish(open_database(place), _WIDER, depot_rows((7, 1_000, 1, 15)))
    assert read()["scans_1d"] == [15]
    store.apply(feast_objects(parcels.PARCELS, str(tmp_path)).all)
    assert read()["scans_1d"] == [8]


def test_view_is_what_it_says_now_also_where_it_was_changed_in_place(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    def now() -> Any:
        return stored_view(store.config, view)

    view = store.get_feature_view("by_depot")
    first = now()
    assert now() == first
    view.tags[DEFINITION_TAG] = "0123456789abcdef"
    assert now().space.definition == "0123456789abcdef"
    view.tags[MAX_STALENESS_TAG] = "17"
    assert now().space.max_staleness_us == 17

    _, view = every_type.view(tmp_path)
    first = now()
    assert not first.judged
    kinds = {field.name: field for field in view.features}
    seen = {first.space.definition}
    for dtype in (Int64, Array(String), Array(Int64), Array(Array(Int64)), Bytes):
        kinds["string"].dtype = dtype
        seen.add(now().space.definition)
    assert len(seen) == 6
    kinds["string"].dtype = String
    assert now() == first
    store.config.project = "elsewhere"
    assert now().space.project == "elsewhere"
