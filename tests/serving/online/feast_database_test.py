"""Feast's own stores by its generic write path: what is written, and which guarantees are lost."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pytest
import redis
import yaml
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from tests.support import every_type, parcels, redis_server
from tests.support.fills import begun, mark_of
from tests.support.parcels import (
    BY_DEPOT,
    COURIER_SPACE,
    DEPOT_SPACE,
    PARCELS,
    courier_rows,
    depot_rows,
)
from tidemill import FeatureView, count
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT
from tidemill.features.errors import ConfigurationError, StoreError, StoreUnavailable
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.serving.online.backends import missing_guarantees, open_database
from tidemill.serving.online.feast_database import LOST_GUARANTEES, FeastDatabase
from tidemill.serving.online.parcels import online_rows, parcels_of
from tidemill.serving.online.reader import OnlineReader
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import repo_config, write_feature_store_yaml
from tidemill.serving.stores.online_places import FeastPlace, default_place, feast_section
from tidemill.serving.stores.places import StorePlaces

COURIERS: list[dict[str, Any]] = [
    {
        "entity_key": b"ann",
        "grams_1d": 2**63 - 1,
        "metres_1d": -5e-324,
        "valid_until": 2**61,
        "signed": False,
        "due": EARLIEST_EVENT + 1,
    },
    {
        "entity_key": "dé".encode(),
        "grams_1d": 2**53 + 1,
        "metres_1d": 0.1 + 0.2,
        "idle": 77,
        "signed": True,
        "due": LATEST_EVENT,
    },
    {"entity_key": b"nil"},
]


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeastPlace]:
    if request.param == "sqlite":
        yield FeastPlace({"type": "sqlite", "path": "stock.db"}, tmp_path)
        return
    with redis_server.running(tmp_path / "redis") as server:
        address = f"{redis_server.HOST}:{server.port}"
        yield FeastPlace({"type": "redis", "connection_string": address}, tmp_path)


@pytest.fixture
def store(place: FeastPlace, tmp_path: Path) -> feast.FeatureStore:
    return open_store(PARCELS, StorePlaces.below(tmp_path, online=place), clock="wall")


def _publish(place: FeastPlace, rows: pa.RecordBatch, frontier_us: int = 5_000) -> int:
    view = parcels.view_of(rows)
    return parcels.publish(open_database(place), view, rows, frontier_us=frontier_us)


def _scans(store: feast.FeatureStore, depot: int) -> tuple[Any, str]:
    answer = store.get_online_features(["by_depot:scans_1d"], [{"depot": depot}])
    status = FieldStatus.Name(answer.proto.results[-1].statuses[0])
    return answer.to_dict()["scans_1d"][0], status


def test_stock_store_reads_every_published_value(
    place: FeastPlace, store: feast.FeatureStore
) -> None:
    assert _publish(place, courier_rows(*COURIERS)) == 3
    names = ["grams_1d", "metres_1d", "idle", "signed", "due", VALID_UNTIL, REVISION]
    answer = store.get_online_features(
        [f"by_courier:{name}" for name in names],
        [{"courier": row["entity_key"].decode()} for row in COURIERS],
    ).to_dict()
    assert type(store._get_provider().online_store).__module__.startswith("feast.")
    for name in names[:5]:
        assert repr(answer[name]) == repr([row.get(name) for row in COURIERS])
    assert answer[VALID_UNTIL] == [2**61, 10**15, 10**15]
    assert answer[REVISION] == [1, 1, 1]


def test_newest_row_of_a_call_is_written_once(place: FeastPlace, store: feast.FeatureStore) -> None:
    newer, correction, older = (7, 30, 2, 300), (7, 30, 3, 301), (7, 10, 1, 100)
    assert _publish(place, depot_rows(correction, older, newer, (8, 10, 1, 5))) == 2
    assert _scans(store, 7) == (301, "PRESENT")
    assert _scans(store, 8) == (5, "PRESENT")


def test_lost_guarantees_are_really_lost(place: FeastPlace, store: feast.FeatureStore) -> None:
    """When one of these fails, Feast has improved: then shorten `LOST_GUARANTEES`."""
    _publish(place, depot_rows((7, 30_000_000, 2, 300)), frontier_us=40_000_000)
    # No age: the frontier of half a century ago is not stored, so the row reads as fresh.
    assert _scans(store, 7) == (300, "PRESENT")
    # A correction at the same instant: Redis drops it, SQLite keeps the last write.
    _publish(place, depot_rows((7, 30_000_000, 3, 301)))
    _publish(place, depot_rows((7, 30_000_000, 2, 300)))
    assert _scans(store, 7) == (300, "PRESENT")
    # A lost write is not detected: these build on a release that was never written.
    database = open_database(place)
    (target,) = begun(database, [DEPOT_SPACE])
    parcels = parcels_of(
        target.fill,
        target.writer,
        BY_DEPOT,
        depot_rows((9, 30_000_000, 2, 9)),
        shard=0,
        mark_before=mark_of(10**12),
        mark=mark_of(10**13),
        frontier_us=10**13,
    )
    database.publish(parcels)
    assert _scans(store, 9) == (9, "PRESENT")
    if place.type == "sqlite":
        _publish(place, depot_rows((7, 1, 1, 100)))
        assert _scans(store, 7) == (100, "PRESENT")


def test_reading_as_of_an_instant_is_refused(place: FeastPlace, store: feast.FeatureStore) -> None:
    database = open_database(place)
    with pytest.raises(StoreError, match=rf"type '{place.type}' keeps no frontiers.*SDK"):
        OnlineReader(database, PARCELS, "replay").read({"by_depot": pa.array([7])})
    with pytest.raises(StoreError, match="cannot list its key spaces"):
        database.spaces()


def test_another_definition_is_refused(place: FeastPlace, store: feast.FeatureStore) -> None:
    wider = FeatureView(
        "by_depot", parcels.DEPOT, parcels.SCANS, hop="1h", features={"scans_1d": count(over="2d")}
    )
    rows = online_rows(BY_DEPOT, depot_rows((7, 10, 1, 1)), 0)
    with pytest.raises(StoreError, match=r"no key space parcels__by_depot__.*register the project"):
        open_database(place).write(KeySpace.of("parcels", wider), rows)
    assert open_database(place).write(DEPOT_SPACE, rows) == 1


def test_a_run_that_starts_again_finds_nothing(
    place: FeastPlace, store: feast.FeatureStore, tmp_path: Path
) -> None:
    _publish(place, depot_rows((7, 30, 2, 300)))
    store.apply(list(every_type.view(tmp_path)))
    foreign = store.get_feature_view("every type, ours")
    write_foreign = store._get_provider().online_write_batch
    write_foreign(store.config, foreign, every_type.rows(), progress=None)
    database = open_database(place)
    database.drop([DEPOT_SPACE, COURIER_SPACE])
    database.create([DEPOT_SPACE, COURIER_SPACE])
    # Feast views that Tidemill did not generate stay.
    asked = ["every type, ours:int32"], [{"person": every_type.KEYS[1]}]
    assert store.get_online_features(*asked).to_dict()["int32"] == [2**31 - 1]
    # Feast's Redis returns PRESENT with nulls for an entity that was never seen.
    absent = "NOT_FOUND" if place.type == "sqlite" else "PRESENT"
    assert _scans(store, 7) == _scans(store, 99) == (None, absent)
    _publish(place, depot_rows((7, 10, 1, 100)))
    assert _scans(store, 7) == (100, "PRESENT")


def test_database_is_plain_data(place: FeastPlace, store: feast.FeatureStore) -> None:
    database = pickle.loads(pickle.dumps(open_database(place)))
    assert database == FeastDatabase(place)
    database.close()
    assert database.write(DEPOT_SPACE, online_rows(BY_DEPOT, depot_rows((1, 1, 1, 1)), 0)) == 1
    database.close()


def test_store_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    port = redis_server.free_port()
    place = FeastPlace({"type": "redis", "connection_string": f"127.0.0.1:{port}"}, tmp_path)
    open_store(PARCELS, StorePlaces.below(tmp_path, online=place), clock="wall")
    with pytest.raises(
        StoreUnavailable, match=r"'redis' could not write 1 rows .*by_depot"
    ) as said:
        _publish(place, depot_rows((7, 30, 2, 300)))
    assert isinstance(said.value.__cause__, redis.ConnectionError)


def test_store_that_refuses_is_named(tmp_path: Path) -> None:
    place = FeastPlace({"type": "sqlite", "path": "stock.db"}, tmp_path)
    open_store(PARCELS, StorePlaces.below(tmp_path, online=place), clock="wall")
    (tmp_path / "stock.db").unlink()
    with pytest.raises(StoreError, match=r"'sqlite' could not write .* no such table"):
        open_database(place).write(
            DEPOT_SPACE, online_rows(BY_DEPOT, depot_rows((7, 30, 2, 300)), None)
        )


def test_docs_name_the_warning_and_each_lost_guarantee(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "online-store.md").read_text()
    said = missing_guarantees(FeastPlace({"type": "sqlite", "path": "stock.db"}, tmp_path))
    assert said is not None
    assert said in " ".join(page.split())
    (listed,) = re.findall(r"\nSo:\n\n(.*?)\n\n", page, re.DOTALL)
    assert tuple(line[2:-1] for line in listed.splitlines()) == LOST_GUARANTEES


def test_warning_says_each_lost_guarantee(tmp_path: Path) -> None:
    warning = missing_guarantees(FeastPlace({"type": "postgres"}, tmp_path))
    assert warning is not None
    assert "'postgres'" in warning
    assert all(lost in warning for lost in LOST_GUARANTEES)
    assert missing_guarantees(default_place(tmp_path)) is None


_POSTGRES = {
    "type": "postgres",
    "host": "db.example",
    "port": 5432,
    "database": "features",
    "user": "tidemill",
    "password": "${STORE_SECRET}",
}
_BIGTABLE = {"type": "bigtable", "project_id": "a-project", "instance": "features"}


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


@pytest.mark.parametrize(
    ("options", "client"),
    [
        (_POSTGRES, "psycopg_pool"),
        ({"type": "dynamodb", "region": "eu-central-1"}, "boto3"),
        (_BIGTABLE, "google.cloud.bigtable"),
    ],
)
def test_configuration_of_a_store_that_is_not_here_is_feasts_own(
    options: dict[str, Any], client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FeastPlace(options, tmp_path)
    assert feast_section(place, "wall", tmp_path) == options
    monkeypatch.setenv("STORE_SECRET", "s3cret")
    text = write_feature_store_yaml(
        PARCELS.name, StorePlaces.below(tmp_path, online=place), clock="wall"
    ).read_text()
    assert yaml.safe_load(text)["online_store"] == options
    assert "s3cret" not in repr(place)
    if not _importable(client):
        with pytest.raises(ConfigurationError, match=f"type '{options['type']}': .*install what"):
            repo_config(PARCELS.name, StorePlaces.below(tmp_path, online=place), clock="wall")
        return
    section = repo_config(
        PARCELS.name, StorePlaces.below(tmp_path, online=place), clock="wall"
    ).online_store
    for name, value in options.items():
        assert getattr(section, name) == ("s3cret" if name == "password" else value)
    loaded = feast.repo_config.load_repo_config(tmp_path, tmp_path / "feature_store.yaml")
    assert loaded.online_store == section


def test_secret_in_plain_text_is_refused(tmp_path: Path) -> None:
    for options, named in (
        ({"type": "postgres", "password": "s3cret"}, "options.password"),
        ({"type": "redis", "connection_string": "h:1,password=s3cret"}, "connection_string"),
        ({"type": "x", "deep": {"url": "a://u:s3cret@h/db"}}, "options.deep.url"),
    ):
        with pytest.raises(ConfigurationError, match=named) as refused:
            FeastPlace(options, tmp_path)
        assert "s3cret" not in str(refused.value)
    FeastPlace({"type": "redis", "connection_string": "h:1,password=${SECRET}"}, tmp_path)


def test_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_SECRET", raising=False)
    place = FeastPlace(
        {"type": "redis", "connection_string": "h,password=${STORE_SECRET}"}, tmp_path
    )
    with pytest.raises(ConfigurationError, match="variable STORE_SECRET is not set"):
        repo_config(PARCELS.name, StorePlaces.below(tmp_path, online=place), clock="wall")


def test_options_without_a_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="name its type, such as postgres; found path"):
        FeastPlace({"path": "x"}, tmp_path)
