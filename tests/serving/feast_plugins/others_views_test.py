"""Views of other people beside ours: history, materialize, push and writes as in Feast's stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pytest

from tests.support import others_views
from tests.support.others_views import AT, HOUR
from tests.support.parcels import PARCELS
from tests.support.scan_history import write_scan_history
from tests.support.stores import STORES, place_of
from tidemill.features.contract import time_of
from tidemill.features.errors import InputError, StoreError
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import StorePlaces

ASKED = pd.DataFrame({"person": ["ann", "bob", "zoe"], "event_timestamp": [AT + 2 * HOUR] * 3})
MATERIALIZED = ["created", "rates", "inferred", "mapped", "streamed", "written"]


def _stock(root: Path) -> feast.FeatureStore:
    return feast.FeatureStore(
        config=feast.RepoConfig(
            project="parcels",
            provider="local",
            repo_path=root,
            registry=str(root / "registry.db"),
            online_store={"type": "sqlite", "path": str(root / "stock.db")},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture(scope="module", params=STORES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[feast.FeatureStore, feast.FeatureStore]]:
    """Our store, with our views in it, and Feast's, each with the views of other people."""
    root, other = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("stock")
    with place_of(request.param, root) as place:
        ours = open_store(PARCELS, StorePlaces.below(root, online=place), clock="wall")
        stores = ours, _stock(other)
        for store, folder in zip(stores, (root, other), strict=True):
            others_views.write_files(folder)
            store.apply(others_views.views(folder))
            store.materialize(AT - HOUR, AT + 9 * HOUR, MATERIALIZED)
        yield stores


def _history(store: feast.FeatureStore, *refs: str, **options: Any) -> Any:
    found = store.get_historical_features(ASKED, list(refs), **options).to_df()
    return found.reindex(sorted(found.columns), axis=1).sort_values("person").to_dict("list")


def _online(store: feast.FeatureStore, *refs: str) -> Any:
    keys = [{"person": name} for name in ("ann", "bob", "zoe")]
    return store.get_online_features(list(refs), keys).to_dict()


Both = tuple[feast.FeatureStore, feast.FeatureStore]


@pytest.mark.parametrize(
    "refs",
    [
        ("created:x", "created:y"),
        ("streamed:x",),
        ("inferred:x", "inferred:ok"),
        ("mapped:renamed",),
        ("created:x", "rates:rate"),
        ("computed:w", "created:x"),
        ("written:z",),
    ],
    ids=str,
)
@pytest.mark.parametrize("full", [False, True])
def test_history_is_feasts(both: Both, refs: tuple[str, ...], full: bool) -> None:
    ours, stock = (_history(store, *refs, full_feature_names=full) for store in both)
    assert str(ours) == str(stock)  # NaN equals NaN


@pytest.mark.parametrize(
    "refs",
    [
        ("created:x", "created:y"),
        ("streamed:x", "streamed:y"),
        ("inferred:x", "inferred:y", "inferred:ok"),
        ("mapped:renamed",),
        ("rates:rate",),
        ("computed:w", "created:x"),
        ("written:z", "written:a"),
    ],
    ids=str,
)
def test_materialized_values_are_feasts(both: Both, refs: tuple[str, ...]) -> None:
    ours, stock = (_online(store, *refs) for store in both)
    assert ours == stock
    assert any(value is not None for name in ours for value in ours[name] if name != "person")


def test_later_writes_and_pushes_are_read_as_in_feasts(both: Both) -> None:
    row = {"person": ["ann"], "event_timestamp": [AT + 9 * HOUR], "x": [7], "y": [1.0]}
    moment = {"event_timestamp": [AT + 9 * HOUR]}
    for store in both:
        store.write_to_online_store("written", df=pd.DataFrame({**row, "z": [9.5], "a": [3]}))
        store.write_to_online_store("rates", df=pd.DataFrame({**moment, "rate": [7.5]}))
        more = {"created": [AT], "ok": [True]}
        store.push("pushed", pd.DataFrame({**row, **more}))
    refs = ("written:z", "written:a", "rates:rate", "streamed:x", "streamed:y")
    ours, stock = (_online(store, *refs) for store in both)
    assert ours == stock
    assert (ours["z"][0], ours["x"][0]) == (9.5, 7)


def test_history_of_a_span_of_time_is_feasts_without_a_view_of_ours(both: Both) -> None:
    span = {"entity_df": None, "start_date": AT, "end_date": AT + 5 * HOUR}
    ours, stock = (
        store.get_historical_features(features=["created:x"], **span).to_df() for store in both
    )
    assert ours.sort_values("person").to_dict("list") == stock.sort_values("person").to_dict("list")
    with pytest.raises(InputError, match=r"view 'by_depot'.*needs entity rows"):
        both[0].get_historical_features(features=["created:x", "by_depot:scans_1d"], **span)


def test_every_row_comes_back_once_in_its_order(both: Both) -> None:
    rows = pd.concat([ASKED.iloc[::-1], ASKED], ignore_index=True).assign(note=range(6))
    found = both[0].get_historical_features(rows, ["rates:rate", "created:x"]).to_arrow()
    assert found["note"].to_pylist() == list(range(6))
    assert found["rate"].to_pylist() == [2.5] * 6  # Feast's store keeps one row of them
    assert found["x"].to_pylist() == [None, 4, 5, 5, 4, None]
    before = pd.DataFrame({"person": ["ann"], "event_timestamp": [AT - HOUR]})
    found = both[0].get_historical_features(before, ["created:x"]).to_arrow()
    assert found["x"].to_pylist() == [None]  # Feast's store drops the row


def test_one_request_takes_our_views_and_theirs(both: Both, tmp_path: Path) -> None:
    root = tmp_path
    store = open_store(PARCELS, StorePlaces.below(root), clock="wall")
    others_views.write_files(root)
    store.apply(others_views.views(root))
    scanned, until = AT + HOUR, AT + 5 * HOUR
    write_scan_history(root, at_us=time_of(scanned), until_us=time_of(until))
    rows = pa.Table.from_pandas(ASKED.assign(depot=[7, 7, 7]), preserve_index=False)
    refs = ["by_depot:scans_1d", "created:x", "written:z"]
    found = store.get_historical_features(rows, refs).to_df()
    assert found["scans_1d"].tolist() == [1, 1, 1]
    assert found["x"].tolist()[:2] == [5.0, 4.0]
    assert found["z"].tolist()[:2] == [10.0, 8.0]


def test_offline_write_adds_to_their_file(both: Both) -> None:
    row = {"person": ["new"], "event_timestamp": [AT], "created": [AT], "x": [11], "y": [1.0]}
    frame = pd.DataFrame({**row, "ok": [True]})
    rows = pd.DataFrame({"person": ["new"], "event_timestamp": [AT + HOUR]})
    for store in both:
        store.write_to_offline_store("created", frame)
        assert store.get_historical_features(rows, ["created:x"]).to_df()["x"].tolist() == [11]


def test_source_that_is_no_file_is_named(both: Both, tmp_path: Path) -> None:
    source = feast.BigQuerySource(name="far", table="a.b.c", timestamp_field="event_timestamp")
    person = both[0].get_entity("person")
    field = feast.Field(name="x", dtype=feast.types.Int64)
    view = feast.FeatureView(name="far_away", entities=[person], schema=[field], source=source)
    both[0].apply([view])
    with pytest.raises(StoreError, match=r"data source 'far' is BigQuerySource; .* from files"):
        both[0].get_historical_features(ASKED, ["far_away:x"]).to_arrow()
