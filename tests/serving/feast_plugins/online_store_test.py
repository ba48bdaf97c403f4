"""Our online store behind Feast's own SDK: order, values to the bit, and statuses."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import random
import struct
import time
from pathlib import Path
from typing import Any

import feast
import pandas as pd
import pyarrow as pa
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64

from tests.support import parcels, stores
from tests.support.certificates import Certificate
from tests.support.feast_definitions import feast_objects
from tests.support.fills import opened
from tests.support.parcels import (
    BY_COURIER,
    BY_DEPOT,
    COURIER_SPACE,
    DEPOT_SPACE,
    courier_rows,
    depot_rows,
    feast_rows,
)
from tests.support.redis_server import RedisServer
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, TIME_MAX, time_of
from tidemill.features.errors import ConflictingPublication, InputError, StoreError
from tidemill.features.feast_objects import DTYPE_TAG
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import Snapshot
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.reader import OnlineReader
from tidemill.serving.online.redis import database as redis_database
from tidemill.serving.online.rows import online_keys
from tidemill.serving.online.sqlite import database as sqlite_database
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import write_feature_store_yaml
from tidemill.serving.stores.online_places import OnlinePlace
from tidemill.serving.stores.places import StorePlaces

EXTREMES: list[dict[str, Any]] = [
    {
        "entity_key": b"ann",
        "grams_1d": 2**63 - 1,
        "metres_1d": 1.7976931348623157e308,
        "signed": True,
        "due": LATEST_EVENT,
    },
    {
        "entity_key": b"bob",
        "grams_1d": -(2**63),
        "metres_1d": -5e-324,
        "signed": False,
        "due": EARLIEST_EVENT,
    },
    {"entity_key": b"cat", "grams_1d": 2**53 + 1, "metres_1d": 0.1 + 0.2, "due": -1},
    {"entity_key": "dé".encode(), "grams_1d": 0, "metres_1d": 0.0, "last_metres_0": -1 / 3},
    {"entity_key": b"eve"},
]
NAMES = [
    "scans_1d",
    "grams_1d",
    "metres_1d",
    "last_metres_0",
    "last_metres_1",
    "idle",
    "signed",
    "due",
]
REFS = [f"by_courier:{name}" for name in NAMES]


place = stores.place


@pytest.fixture
def store(place: OnlinePlace, tmp_path: Path) -> feast.FeatureStore:
    made = open_store(parcels.PARCELS, StorePlaces.below(tmp_path, online=place), clock="replay")
    # What a stock client writes before the first publication would go with the switch.
    opened(open_database(place), [COURIER_SPACE, DEPOT_SPACE], shards=2)
    return made


def _depot_seven(place: OnlinePlace) -> list[Snapshot]:
    keys = online_keys("depot", pa.array([7]))
    return open_database(place).read([(DEPOT_SPACE, keys)])


def _stock_write(store: feast.FeatureStore, view: str, rows: list[Any]) -> None:
    store._get_provider().online_write_batch(
        store.config, store.get_feature_view(view), rows, progress=None
    )


def _publish(place: OnlinePlace, rows: pa.RecordBatch, frontier_us: int, shard: int = 0) -> None:
    database = open_database(place)
    parcels.publish(
        database, parcels.view_of(rows), rows, shard=shard, shards=2, frontier_us=frontier_us
    )


def _frontier(place: OnlinePlace, frontier_us: int) -> None:
    for shard in range(2):
        _publish(place, courier_rows(), frontier_us, shard)
        _publish(place, depot_rows(), frontier_us, shard)


def _read(store: feast.FeatureStore, *couriers: str, refs: list[str] = REFS) -> Any:
    return store.get_online_features(refs, [{"courier": courier} for courier in couriers])


def _statuses(answer: Any) -> dict[str, list[str]]:
    names = answer.proto.metadata.feature_names.val
    return {
        name: [FieldStatus.Name(status) for status in vector.statuses]
        for name, vector in zip(names, answer.proto.results, strict=True)
        if name not in ("courier", "depot")
    }


def _bits(value: float | int | None) -> object:
    return struct.pack("<d", value) if isinstance(value, float) else value


@pytest.mark.parametrize("path", ["fast", "stock"])
def test_sdk_reads_every_value_to_the_bit(
    place: OnlinePlace, store: feast.FeatureStore, path: str
) -> None:
    batch = courier_rows(*EXTREMES)
    if path == "fast":
        _publish(place, batch, frontier_us=1)
    else:
        _stock_write(store, "by_courier", feast_rows(BY_COURIER, batch))
    _frontier(place, 5_000)
    couriers = [row["entity_key"].decode() for row in EXTREMES]
    answer = _read(store, *couriers).to_dict()
    for name in NAMES:
        wanted = [_bits(row.get(name)) for row in EXTREMES]
        assert repr([_bits(value) for value in answer[name]]) == repr(wanted), name


def test_sdk_gives_bools_and_times_to_the_microsecond_in_every_form(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    """Feast's own UnixTimestamp would cut these times to seconds, or fail in the year 9999."""
    _publish(place, courier_rows(*EXTREMES), frontier_us=1)
    _frontier(place, 5_000)
    answer = _read(store, "ann", "bob", "cat", refs=["by_courier:signed", "by_courier:due"])
    frame, table = answer.to_df(), answer.to_arrow()
    assert frame["signed"].tolist() == [True, False, None]
    assert frame["due"].tolist() == [LATEST_EVENT, EARLIEST_EVENT, -1]
    assert table["signed"].to_pylist() == [True, False, None]
    assert table["signed"].type == pa.bool_()
    assert table["due"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()) == table["due"]
    view = store.get_feature_view("by_courier")
    (due,) = [field for field in view.features if field.name == "due"]
    assert (due.dtype, due.tags[DTYPE_TAG]) == (Int64, "timestamp")


def test_stock_dataframe_write_of_bools_and_times(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    at = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
    plain = {name: [1, 1] for name in NAMES[:6]}
    frame = pd.DataFrame({
        "courier": ["ann", "bob"], "event_timestamp": [at, at], **plain,
        "signed": pd.array([True, None], "boolean"), "due": [time_of(at) + 1, LATEST_EVENT],
    })  # fmt: skip
    store.write_to_online_store("by_courier", frame)
    _frontier(place, 2 * 10**15)
    answer = _read(store, "ann", "bob", refs=["by_courier:signed", "by_courier:due"]).to_dict()
    assert answer["signed"] == [True, None]
    assert answer["due"] == [time_of(at) + 1, LATEST_EVENT]
    # A datetime is no Int64, and no time is outside the calendar.
    with pytest.raises((TypeError, ValueError, InputError)):
        store.write_to_online_store("by_courier", frame.assign(due=[at, at]))
    with pytest.raises(InputError, match=rf"'due' is a timestamp.*found {LATEST_EVENT + 1}"):
        store.write_to_online_store("by_courier", frame.assign(due=[LATEST_EVENT + 1] * 2))
    ((key, values, time, _),) = feast_rows(BY_COURIER, courier_rows({"entity_key": b"ann"}))
    wrong = {**values, "signed": Value(int64_val=1)}
    with pytest.raises(InputError, match=r"'signed' is bool, .* bool_val, found int64_val"):
        _stock_write(store, "by_courier", [(key, wrong, time, None)])
    assert _read(store, "ann", refs=["by_courier:due"]).to_dict()["due"] == [time_of(at) + 1]


def test_both_paths_store_the_same_bytes(place: OnlinePlace, store: feast.FeatureStore) -> None:
    batch = courier_rows(*EXTREMES)
    _stock_write(store, "by_courier", feast_rows(BY_COURIER, batch))
    fast = online_rows(BY_COURIER, batch, shard=None).rows()
    keys = [row.key for row in fast]
    (snapshot,) = open_database(place).read([(COURIER_SPACE, keys)])
    assert snapshot.rows == fast


def test_stock_dataframe_write_is_read_back(place: OnlinePlace, store: feast.FeatureStore) -> None:
    at = datetime.datetime(2024, 2, 29, 12, 0, 0, 123_456, tzinfo=datetime.UTC)
    # No null here: pandas makes float64 of an int64 column with nulls, and Feast's DataFrame path
    # passes through pandas, so 2**53 + 1 would be rounded before any store sees it.
    frame = pa.table(
        {
            "depot": [7, 8],
            "event_timestamp": pa.array([at, at], pa.timestamp("us", tz="UTC")),
            "scans_1d": [2**53 + 1, 5],
            "tidemill_valid_until": [2**61, 2**61],
            "tidemill_revision": [4, 1],
        }
    ).to_pandas()
    store.write_to_online_store("by_depot", frame)
    _frontier(place, 10**15 * 2)
    answer = store.get_online_features(
        ["by_depot:scans_1d", "by_depot:tidemill_valid_until", "by_depot:tidemill_revision"],
        [{"depot": 8}, {"depot": 7}, {"depot": 8}],
    )
    assert answer.to_dict(include_event_timestamps=True) == {
        "depot": [8, 7, 8],
        "depot__ts": [0, 0, 0],
        "scans_1d": [5, 2**53 + 1, 5],
        "scans_1d__ts": [int(at.timestamp())] * 3,
        "tidemill_valid_until": [2**61] * 3,
        "tidemill_valid_until__ts": [int(at.timestamp())] * 3,
        "tidemill_revision": [1, 4, 1],
        "tidemill_revision__ts": [int(at.timestamp())] * 3,
    }
    assert answer.proto.results[1].event_timestamps[0].nanos == 123_456_000
    assert _statuses(answer)["scans_1d"] == ["PRESENT"] * 3


def test_write_without_the_technical_fields_is_revision_zero_for_ever(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    ((key, values, at, _),) = feast_rows(BY_DEPOT, depot_rows((7, 10, 5, 3)))
    _stock_write(store, "by_depot", [(key, {"scans_1d": values["scans_1d"]}, at, None)])
    (snapshot,) = open_database(place).read([(DEPOT_SPACE, online_keys("depot", pa.array([7])))])
    (row,) = snapshot.rows
    assert row is not None
    assert (row.revision, row.valid_until, row.shard) == (0, TIME_MAX, None)


def test_dataframe_without_the_technical_columns_is_revision_zero_for_ever(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    at = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
    rows = {"event_timestamp": [at, at], "scans_1d": [3, 2**53 + 1]}
    frame = pd.DataFrame({"depot": [7, 8], **rows})
    written = frame.copy()
    store.write_to_online_store("by_depot", df=frame)
    store.write_to_online_store("by_depot", inputs={"depot": [9, 9], **rows, "scans_1d": [1, 1]})
    asyncio.run(store.write_to_online_store_async("by_depot", df=frame))
    assert frame.equals(written)
    keys = online_keys("depot", pa.array([7, 8, 9]))
    (snapshot,) = open_database(place).read([(DEPOT_SPACE, keys)])
    assert [(row.revision, row.valid_until) for row in snapshot.rows if row is not None] == [
        (0, TIME_MAX)
    ] * 3
    # A row with a higher revision takes their place.
    later = frame.assign(scans_1d=[4, 5], tidemill_revision=[1, 1])
    store.write_to_online_store("by_depot", df=later)
    _frontier(place, 2 * 10**15)
    answer = store.get_online_features(
        ["by_depot:scans_1d", "by_depot:tidemill_revision"], [{"depot": key} for key in (7, 8, 9)]
    ).to_dict()
    assert (answer["scans_1d"], answer["tidemill_revision"]) == ([4, 5, 1], [1, 1, 0])


def test_naive_event_timestamp_is_utc(place: OnlinePlace, store: feast.FeatureStore) -> None:
    ((key, values, at, _),) = feast_rows(BY_DEPOT, depot_rows((7, 10, 5, 3)))
    _stock_write(store, "by_depot", [(key, values, at.replace(tzinfo=None), None)])
    (snapshot,) = open_database(place).read([(DEPOT_SPACE, online_keys("depot", pa.array([7])))])
    assert snapshot.rows == online_rows(BY_DEPOT, depot_rows((7, 10, 5, 3)), None).rows()


def test_row_that_lacks_a_feature_or_has_another_type_is_refused(
    store: feast.FeatureStore,
) -> None:
    ((key, values, at, _),) = feast_rows(BY_COURIER, courier_rows({"entity_key": b"ann"}))
    fewer = {name: value for name, value in values.items() if name != "idle"}
    with pytest.raises(InputError, match=r"view 'by_courier': .* lacks idle"):
        _stock_write(store, "by_courier", [(key, fewer, at, None)])
    other = {**values, "metres_1d": Value(float_val=1.0)}
    with pytest.raises(InputError, match=r"'metres_1d' is float64, .* found float_val"):
        _stock_write(store, "by_courier", [(key, other, at, None)])


def _shuffled_writes() -> list[tuple[int, int, int, int]]:
    rows = [(depot, time, 1, 100 * time) for depot in range(50) for time in range(1, 6)]
    random.Random(1).shuffle(rows)
    return rows


def _wrong_after_shuffled_writes(store: feast.FeatureStore) -> int:
    rows = _shuffled_writes()
    for start in range(0, len(rows), 25):
        batch = depot_rows(*rows[start : start + 25])
        _stock_write(store, "by_depot", feast_rows(BY_DEPOT, batch))
    view = store.get_feature_view("by_depot")
    keys = [key for key, *_ in feast_rows(BY_DEPOT, depot_rows(*((d, 1, 1, 1) for d in range(50))))]
    read = store._get_provider().online_store.online_read(store.config, view, keys)
    return sum(values["scans_1d"].int64_val != 500 for _, values in read)


def test_older_write_never_overwrites_through_feast(store: feast.FeatureStore) -> None:
    assert _wrong_after_shuffled_writes(store) == 0


def test_stock_sqlite_store_does_overwrite_which_is_why_ours_exists(tmp_path: Path) -> None:
    stock = feast.FeatureStore(
        config=feast.RepoConfig(
            project="parcels",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    stock.apply(feast_objects(parcels.PARCELS, str(tmp_path)).all)
    assert _wrong_after_shuffled_writes(stock) > 10


def test_conflict_through_feast_is_reported(store: feast.FeatureStore) -> None:
    _stock_write(store, "by_depot", feast_rows(BY_DEPOT, depot_rows((7, 10, 1, 3))))
    _stock_write(store, "by_depot", feast_rows(BY_DEPOT, depot_rows((7, 10, 1, 3))))
    with pytest.raises(ConflictingPublication, match=r"depot=7: .*stored .*3.*offered .*4"):
        _stock_write(store, "by_depot", feast_rows(BY_DEPOT, depot_rows((7, 10, 1, 4))))


def test_absent_row_is_not_found_and_null_in_a_row_is_present(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    _publish(place, courier_rows({"entity_key": b"ann", "scans_1d": 3}), frontier_us=1)
    _frontier(place, 5_000)
    answer = _read(store, "nobody", "ann", "nobody")
    wanted = ["NOT_FOUND", "PRESENT", "NOT_FOUND"]
    assert _statuses(answer) == dict.fromkeys(NAMES, wanted)
    assert answer.to_dict()["scans_1d"] == [None, 3, None]
    assert answer.to_dict()["metres_1d"] == [None, None, None]


def test_row_without_a_frontier_is_outside_max_age(store: feast.FeatureStore) -> None:
    _stock_write(
        store,
        "by_courier",
        feast_rows(BY_COURIER, courier_rows({"entity_key": b"ann", "scans_1d": 3})),
    )
    answer = _read(store, "ann", "nobody")
    wanted = ["OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert _statuses(answer) == dict.fromkeys(NAMES, wanted)
    assert answer.to_dict()["scans_1d"] == [None, None]


def test_overrun_row_is_outside_max_age_and_its_numbers_are_withheld(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    row = {"entity_key": b"ann", "valid_until": 5_000, "scans_1d": 3}
    _publish(place, courier_rows(row), frontier_us=1)
    _frontier(place, 4_999)
    assert _read(store, "ann").to_dict()["scans_1d"] == [3]
    _frontier(place, 5_000)
    answer = _read(store, "ann")
    assert _statuses(answer)["scans_1d"] == ["OUTSIDE_MAX_AGE"]
    assert answer.to_dict()["scans_1d"] == [None]


def test_each_view_has_its_own_statuses(place: OnlinePlace, store: feast.FeatureStore) -> None:
    row = {"entity_key": b"ann", "valid_until": 3_000, "scans_1d": 3}
    _publish(place, courier_rows(row), frontier_us=1)
    _publish(place, depot_rows((7, 1_000, 1, 8)), frontier_us=1)
    _frontier(place, 5_000)
    answer = store.get_online_features(
        store.get_feature_service("parcels"),
        [{"courier": "ann", "depot": 7}, {"courier": "bob", "depot": 7}],
        full_feature_names=True,
    )
    statuses = _statuses(answer)
    assert statuses["by_courier__scans_1d"] == ["OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert statuses["by_depot__scans_1d"] == ["PRESENT", "PRESENT"]
    assert answer.to_dict()["by_depot__scans_1d"] == [8, 8]


def test_all_views_of_a_read_are_one_round_trip(
    place: OnlinePlace, store: feast.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the SDK, and with the direct reader for many entities and for one."""
    _publish(place, courier_rows({"entity_key": b"ann"}), 10_000)
    _publish(place, depot_rows((7, 1_000, 1, 4)), 10_000)
    service = store.get_feature_service("parcels")
    both = [{"courier": name, "depot": 7} for name in ("ann", "bob", "cat")]
    reader = OnlineReader(open_database(place), parcels.PARCELS, "replay")
    reads = {
        "SDK": lambda: store.get_online_features(service, both, full_feature_names=True),
        "SDK, one": lambda: store.get_online_features(service, both[:1], full_feature_names=True),
        "many": lambda: reader.read(
            {"by_courier": pa.array(["ann", "bob"]), "by_depot": pa.array([7, 8, 9])}
        ),
        "one": lambda: reader.read_one({"by_courier": "ann", "by_depot": 7}),
    }
    for read in reads.values():
        read()  # connects, and loads the script that reads
    trips: list[int] = []
    exchange, transaction = redis_database.exchange, sqlite_database.transaction

    def exchanged(where: Any, commands: Any) -> list[Any]:
        trips.append(len(commands))
        return exchange(where, commands)

    def transacted(path: str, *, write: bool) -> Any:
        trips.append(1)
        return transaction(path, write=write)

    monkeypatch.setattr(redis_database, "exchange", exchanged)
    monkeypatch.setattr(sqlite_database, "transaction", transacted)
    for name, read in reads.items():
        trips.clear()
        read()
        assert trips == [1], name


def test_wall_clock_finds_a_stopped_stream(
    place: OnlinePlace, store: feast.FeatureStore, tmp_path: Path
) -> None:
    now_us = time.time_ns() // 1_000
    row = {"entity_key": b"ann", "valid_until": 2**61, "scans_1d": 3}
    _publish(place, courier_rows(row), frontier_us=1)
    live = open_store(parcels.PARCELS, StorePlaces.below(tmp_path, online=place), clock="wall")
    _frontier(place, now_us - 11 * 60 * 1_000_000)  # the view allows 10 minutes
    assert _statuses(_read(live, "ann"))["scans_1d"] == ["OUTSIDE_MAX_AGE"]
    assert _statuses(_read(store, "ann"))["scans_1d"] == ["PRESENT"]
    _frontier(place, now_us - 60 * 1_000_000)
    assert _statuses(_read(live, "ann"))["scans_1d"] == ["PRESENT"]


def test_async_twin_reads_the_same(place: OnlinePlace, store: feast.FeatureStore) -> None:
    fresh = {"entity_key": b"ann", "scans_1d": 3}
    overrun = {"entity_key": b"bob", "valid_until": 2_000, "scans_1d": 4}
    _publish(place, courier_rows(fresh, overrun), frontier_us=1)
    _frontier(place, 5_000)
    couriers = ["ann", "bob", "nobody"]
    rows = [{"courier": courier} for courier in couriers]
    twin = asyncio.run(store.get_online_features_async(REFS, rows))
    assert twin.proto == _read(store, *couriers).proto
    assert _statuses(twin)["scans_1d"] == ["PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]


def test_anchored_feature_reads_as_its_anchor(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    _publish(place, courier_rows({"entity_key": b"ann", "idle": 777}), frontier_us=1)
    _frontier(place, 5_000)
    assert _read(store, "ann").to_dict()["idle"] == [777]


def test_teardown_removes_the_rows_of_the_project(
    place: OnlinePlace, store: feast.FeatureStore
) -> None:
    _publish(place, depot_rows((7, 1_000, 1, 8)), frontier_us=2_000)
    store.teardown()
    with pytest.raises(StoreError, match="there is no key space parcels__by_depot__"):
        open_database(place).read([(DEPOT_SPACE, online_keys("depot", pa.array([7])))])


def test_redis_is_read_by_tls_and_as_an_acl_user_and_no_secret_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate.made_in(tmp_path, "redis")
    users = ("default off", "features on >s3cret ~tm:* &* +@all -@admin")
    monkeypatch.setenv("FEATURES_PASSWORD", "s3cret")
    server = RedisServer(tmp_path / "redis", users=users, tls=certificate)
    place = dataclasses.replace(server.place, username="features", password_env="FEATURES_PASSWORD")
    server.start()
    try:
        open_store(parcels.PARCELS, StorePlaces.below(tmp_path, online=place), clock="replay")
        _publish(place, courier_rows({"entity_key": b"ann", "scans_1d": 3}), frontier_us=1)
        _frontier(place, 5_000)
        file = write_feature_store_yaml(
            parcels.PARCELS.name, StorePlaces.below(tmp_path, online=place), clock="replay"
        )
        assert "s3cret" not in file.read_text()
        opened = feast.FeatureStore(repo_path=str(tmp_path))
        assert _read(opened, "ann").to_dict()["scans_1d"] == [3]
        monkeypatch.setenv("FEATURES_PASSWORD", "wrong")
        open_database(place).close()
        with pytest.raises(StoreError) as refused:
            _read(opened, "ann")
        assert "s3cret" not in str(refused.value)
        assert "refuses the user or the password" in str(refused.value)
    finally:
        server.kill()
