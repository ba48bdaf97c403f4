"""The direct reader: values, their age, and the empty value of never-seen entities."""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis

from tests.support import parcels
from tests.support.parcels import BY_COURIER, courier_rows, depot_rows
from tests.support.redis_server import row_keys
from tests.support.stores import STORES, place_of
from tidemill import FeatureView, col, sum
from tidemill.features.contract import (
    EARLIEST_EVENT,
    LATEST_EVENT,
    TIME_MIN,
    ReadStatus,
    moment_of,
    time_of,
)
from tidemill.features.errors import InputError, StoreError, UnknownColumn
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import KeySpace, OnlineDatabase, Snapshot
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.reader import (
    FRONTIER,
    STATUS,
    OnlineReader,
    OnlineReading,
    finish_anchored,
)
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.redis.rows import fill_key
from tidemill.serving.online.sqlite.database import SqliteDatabase
from tidemill.serving.online.sqlite.scripts import rows_table

MINUTE = 60 * 1_000_000


@pytest.fixture(params=STORES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineDatabase]:
    with place_of(request.param, tmp_path) as place:
        made = open_database(place)
        made.create([parcels.COURIER_SPACE, parcels.DEPOT_SPACE])
        yield made
        made.close()


def _publish(
    database: OnlineDatabase, rows: pa.RecordBatch, frontier_us: int, shard: int = 0, of: int = 1
) -> None:
    parcels.publish(
        database, parcels.view_of(rows), rows, shard=shard, shards=of, frontier_us=frontier_us
    )


def _read(database: OnlineDatabase, *keys: str | None) -> pa.RecordBatch:
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    return reader.read({"by_courier": pa.array(keys, pa.string())})["by_courier"]


def test_present_row_has_its_values_as_of_the_frontier(database: OnlineDatabase) -> None:
    row = {"entity_key": b"ann", "scans_1d": 3, "grams_1d": 2**63 - 1, "metres_1d": 0.1 + 0.2}
    _publish(database, courier_rows(row), frontier_us=5_000)
    assert _read(database, "ann").to_pylist() == [
        {
            "by_courier__scans_1d": 3,
            "by_courier__grams_1d": 2**63 - 1,
            "by_courier__metres_1d": 0.1 + 0.2,
            "by_courier__last_metres_0": None,
            "by_courier__last_metres_1": None,
            "by_courier__idle": None,
            "by_courier__signed": None,
            "by_courier__due": None,
            STATUS: "PRESENT",
            FRONTIER: 5_000,
        }
    ]


def test_bools_and_times_come_back_as_what_they_are(database: OnlineDatabase) -> None:
    typed = {
        "ann": (True, EARLIEST_EVENT),
        "bob": (False, LATEST_EVENT),
        "cat": (None, -1),
        "dan": (True, None),
    }
    rows = [
        {"entity_key": key.encode(), "signed": signed, "due": due}
        for key, (signed, due) in typed.items()
    ]
    _publish(database, courier_rows(*rows), frontier_us=5_000)
    for keys in (list(typed), ["ann"], ["bob"], ["cat"], ["dan"], ["cat", "nobody", "bob"]):
        read = _read(database, *keys)
        signed, due = read.column("by_courier__signed"), read.column("by_courier__due")
        assert (signed.type, due.type) == (pa.bool_(), pa.timestamp("us", "UTC"))
        wanted = [typed.get(key, (None, None)) for key in keys]
        assert signed.to_pylist() == [one for one, _ in wanted]
        assert due.cast(pa.int64()).to_pylist() == [one for _, one in wanted]
        due.validate(full=True)
        # pandas' nanoseconds end in the years 1677 and 2262.
        frame = pa.table({"due": due}).to_pandas()
        assert [None if one is pd.NaT else time_of(one) for one in frame["due"]] == [
            one for _, one in wanted
        ]
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    for key, (signed, due) in typed.items():
        values = reader.read_one({"by_courier": key})["by_courier"].values
        assert values["by_courier__signed"] is signed
        moment = values["by_courier__due"]
        assert moment == (None if due is None else moment_of(due))
        assert moment is None or moment.tzinfo is not None  # type: ignore[union-attr]


def test_a_stored_time_outside_the_calendar_is_an_error_by_name(database: OnlineDatabase) -> None:
    rows = online_rows(BY_COURIER, courier_rows({"entity_key": b"ann", "due": 1}), None)
    cells = bytearray(rows.cells_of_rows()[0])
    cells[56:64] = (LATEST_EVENT + 1).to_bytes(8, "little")
    database.write(parcels.COURIER_SPACE, replace(rows, cells=[bytes(cells)]))
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    with pytest.raises(StoreError, match=rf"by_courier__due.*{LATEST_EVENT + 1}.*1 to 9999"):
        reader.read_one({"by_courier": "ann"})
    due = _read(database, "ann").column("by_courier__due")
    assert due.cast(pa.int64()).to_pylist() == [LATEST_EVENT + 1]


def test_anchored_feature_is_finished_with_the_frontier(database: OnlineDatabase) -> None:
    row = {"entity_key": b"ann", "event_timestamp": 1_001, "idle": 1_000}
    _publish(database, courier_rows(row), frontier_us=1_001)
    assert _read(database, "ann").column("by_courier__idle").to_pylist() == [1]
    _publish(database, courier_rows(), frontier_us=7_000)
    assert _read(database, "ann").column("by_courier__idle").to_pylist() == [6_000]


def test_never_seen_entity_and_null_key_read_as_the_empty_value(database: OnlineDatabase) -> None:
    _publish(database, courier_rows({"entity_key": b"ann", "scans_1d": 3}), frontier_us=5_000)
    read = _read(database, None, "ann", "nobody", "ann")
    assert read.column("by_courier__scans_1d").to_pylist() == [0, 3, 0, 3]
    assert read.column("by_courier__grams_1d").to_pylist() == [0, None, 0, None]
    assert read.column("by_courier__metres_1d").to_pylist() == [None] * 4
    assert read.column(STATUS).to_pylist() == ["NOT_FOUND", "PRESENT", "NOT_FOUND", "PRESENT"]
    assert read.column(FRONTIER).to_pylist() == [5_000] * 4


def test_never_seen_entity_of_a_stale_view_is_outside_max_age(database: OnlineDatabase) -> None:
    assert _read(database, "nobody").column(STATUS).to_pylist() == ["OUTSIDE_MAX_AGE"]
    _publish(database, courier_rows(), frontier_us=5_000, shard=0, of=2)
    assert _read(database, "nobody").column(STATUS).to_pylist() == ["OUTSIDE_MAX_AGE"]
    assert _read(database, "nobody").column(FRONTIER).to_pylist() == [TIME_MIN]
    _publish(database, courier_rows(), frontier_us=5_000, shard=1, of=2)
    assert _read(database, "nobody").column(STATUS).to_pylist() == ["NOT_FOUND"]


def test_row_of_a_shard_that_trails_is_outside_max_age(database: OnlineDatabase) -> None:
    ann, bob = {"entity_key": b"ann", "scans_1d": 3}, {"entity_key": b"bob", "scans_1d": 4}
    _publish(database, courier_rows(ann), frontier_us=10 * MINUTE, shard=0, of=2)
    _publish(database, courier_rows(bob), frontier_us=20 * MINUTE, shard=1, of=2)
    read = _read(database, "ann", "bob")
    assert read.column(STATUS).to_pylist() == ["PRESENT", "PRESENT"]
    assert read.column(FRONTIER).to_pylist() == [10 * MINUTE, 20 * MINUTE]
    _publish(database, courier_rows(), frontier_us=20 * MINUTE + 1, shard=1, of=2)
    read = _read(database, "ann", "bob")
    assert read.column(STATUS).to_pylist() == ["OUTSIDE_MAX_AGE", "PRESENT"]
    assert read.column("by_courier__scans_1d").to_pylist() == [3, 4]


def test_row_that_should_have_been_replaced_is_outside_max_age(database: OnlineDatabase) -> None:
    row = {"entity_key": b"ann", "valid_until": 6_000, "scans_1d": 3}
    _publish(database, courier_rows(row), frontier_us=5_999)
    assert _read(database, "ann").column(STATUS).to_pylist() == ["PRESENT"]
    _publish(database, courier_rows(), frontier_us=6_000)
    assert _read(database, "ann").column(STATUS).to_pylist() == ["OUTSIDE_MAX_AGE"]


def test_wall_clock_judges_only_where_it_is_declared(database: OnlineDatabase) -> None:
    row = {"entity_key": b"ann", "valid_until": 2**61, "scans_1d": 3}
    _publish(database, courier_rows(row), frontier_us=5_000)
    wall = OnlineReader(database, parcels.PARCELS, "wall")

    def status() -> list[str]:
        read = wall.read({"by_courier": pa.array(["ann"])})["by_courier"]
        return list(read.column(STATUS).to_pylist())

    assert status() == ["OUTSIDE_MAX_AGE"]
    assert _read(database, "ann").column(STATUS).to_pylist() == ["PRESENT"]
    _publish(database, courier_rows(), frontier_us=time.time_ns() // 1_000)
    assert status() == ["PRESENT"]


def test_several_views_are_read_at_once(database: OnlineDatabase) -> None:
    _publish(database, courier_rows({"entity_key": b"ann", "scans_1d": 3}), frontier_us=5_000)
    _publish(database, depot_rows((-4, 10, 1, 8)), frontier_us=9_000)
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    read = reader.read({"by_depot": pa.array([-4, 5]), "by_courier": pa.array(["ann"])})
    assert list(read) == ["by_depot", "by_courier"]
    assert read["by_depot"].to_pydict() == {
        "by_depot__scans_1d": [8, 0],
        STATUS: ["PRESENT", "NOT_FOUND"],
        FRONTIER: [9_000, 9_000],
    }


def _as_reading(batch: pa.RecordBatch, at: int) -> OnlineReading:
    row = batch.slice(at, 1).to_pylist()[0]
    for name, value in row.items():
        if isinstance(value, datetime.datetime):  # Arrow's UTC is another object
            row[name] = value.astimezone(datetime.UTC)
    status, frontier = row.pop(STATUS), row.pop(FRONTIER)
    return OnlineReading(row, ReadStatus[status], frontier)


def test_one_entity_reads_as_it_does_in_a_batch(database: OnlineDatabase) -> None:
    fresh = {"entity_key": b"ann", "scans_1d": 3, "metres_1d": -0.0, "idle": 1_000, "signed": True}
    overrun = {"entity_key": b"bob", "valid_until": 4_000, "grams_1d": -(2**63), "due": 7}
    _publish(database, courier_rows(fresh, overrun), frontier_us=5_000)
    _publish(database, depot_rows((7, 10, 1, 8)), frontier_us=9_000)
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    couriers, depots = ["ann", "bob", "nobody", None], [7, -1, None, 7]
    keys = {"by_courier": pa.array(couriers, pa.string()), "by_depot": pa.array(depots, pa.int64())}
    batches = reader.read(keys)
    for at, (courier, depot) in enumerate(zip(couriers, depots, strict=True)):
        one = reader.read_one({"by_depot": depot, "by_courier": courier})
        assert list(one) == ["by_depot", "by_courier"]
        for view, reading in one.items():
            assert repr(reading) == repr(_as_reading(batches[view], at))
    ann = reader.read_one({"by_courier": "ann"})["by_courier"]
    assert ann.values["by_courier__idle"] == 4_000
    assert ann.status is ReadStatus.PRESENT


def test_the_empty_value_of_a_float_sum_is_a_float_for_one_entity(tmp_path: Path) -> None:
    view = FeatureView(
        "by_courier",
        entity=parcels.COURIER,
        stream=parcels.SCANS,
        hop="1h",
        features={
            "metres_1d": sum(col("metres"), over="1d"),
            "grams_1d": sum(col("grams"), over="1d"),
        },
    )
    database = SqliteDatabase(str(tmp_path / "online.db"))
    database.create([KeySpace.of("parcels", view)])
    reader = OnlineReader(database, parcels.project(view), "replay")
    values = reader.read_one({"by_courier": "nobody"})["by_courier"].values
    assert repr(values) == "{'by_courier__metres_1d': 0.0, 'by_courier__grams_1d': 0}"


def test_anchor_without_an_instant_is_null_for_one_entity(database: OnlineDatabase) -> None:
    rows = online_rows(BY_COURIER, courier_rows({"entity_key": b"ann", "idle": 1_000}), None)
    database.write(parcels.COURIER_SPACE, rows)
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    reading = reader.read_one({"by_courier": "ann"})["by_courier"]
    assert (reading.values["by_courier__idle"], reading.frontier_us) == (None, TIME_MIN)
    assert reading.status is ReadStatus.OUTSIDE_MAX_AGE


def test_all_views_are_one_call_to_the_database(database: OnlineDatabase) -> None:
    calls: list[list[str]] = []

    class Counted:
        def read(self, wanted: Any) -> list[Snapshot]:
            calls.append([space.view for space, _ in wanted])
            return database.read(wanted)

    reader = OnlineReader(Counted(), parcels.PARCELS, "replay")  # type: ignore[arg-type]
    reader.read({"by_depot": pa.array([-4, 5]), "by_courier": pa.array(["ann", None])})
    reader.read_one({"by_depot": -4, "by_courier": "ann"})
    assert calls == [["by_depot", "by_courier"]] * 2


def test_no_keys_are_no_rows(database: OnlineDatabase) -> None:
    assert _read(database).num_rows == 0


def test_wrong_view_and_wrong_key_type_are_refused(database: OnlineDatabase) -> None:
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    with pytest.raises(UnknownColumn, match="did you mean 'by_depot'"):
        reader.read({"by_depo": pa.array([1])})
    with pytest.raises(InputError, match="keys of entity 'depot' are int64, found string"):
        reader.read({"by_depot": pa.array(["1"])})
    for wrong in ("1", 1.0, True, 2**63):
        with pytest.raises(InputError, match="keys of entity 'depot' are int64, found "):
            reader.read_one({"by_depot": wrong})  # type: ignore[dict-item]
    for strange in (1, b"ann", "\ud800"):
        with pytest.raises(InputError, match="keys of entity 'courier' are string, found "):
            reader.read_one({"by_courier": strange})  # type: ignore[dict-item]


def test_anchor_without_an_instant_is_null() -> None:
    idle = next(column for column in BY_COURIER.columns if column.anchored)
    anchors = pa.array([1_000, None, 1_000])
    instants = np.array([1_500, 1_500, TIME_MIN])
    assert finish_anchored(idle, anchors, instants).to_pylist() == [500, None, None]
    assert finish_anchored(idle, anchors, 2_000).to_pylist() == [1_000, None, 1_000]
    scans = BY_COURIER.columns[0]
    assert finish_anchored(scans, anchors, 2_000).to_pylist() == [1_000, None, 1_000]


def _rows_changed(database: OnlineDatabase, change: Callable[[bytes], bytes]) -> None:
    """Change the cells of every row of a view, behind the back of the store."""
    (fill,) = (one for one in database.fills([parcels.COURIER_SPACE]) if one.is_current)
    if isinstance(database, RedisDatabase):
        client = redis.Redis(host=database.place.host, port=database.place.port)
        for key in row_keys(client, fill.id):
            client.set(key, change(client.get(key)))
        return
    assert isinstance(database, SqliteDatabase)
    with closing(sqlite3.connect(database.path)) as sqlite, sqlite:
        sqlite.execute("PRAGMA ignore_check_constraints = ON")
        for key, cells in sqlite.execute(
            f'SELECT entity_key, cells FROM "{rows_table(fill.id)}"'
        ).fetchall():
            update = f'UPDATE "{rows_table(fill.id)}" SET cells = ? WHERE entity_key = ?'
            sqlite.execute(update, (change(cells), key))


@pytest.mark.parametrize(
    "change",
    [lambda row: row[:-1], lambda row: row + b"\0", lambda row: row[:5], lambda row: b""],
    ids=["shorter", "longer", "a part", "empty"],
)
def test_a_row_that_was_changed_is_a_named_error(
    database: OnlineDatabase, change: Callable[[bytes], bytes]
) -> None:
    _publish(database, courier_rows({"entity_key": b"ann"}, {"entity_key": b"bob"}), 5_000)
    _rows_changed(database, change)
    reader = OnlineReader(database, parcels.PARCELS, "replay")
    for keys in (["ann"], ["ann", "bob"], ["ann", "nobody"]):
        with pytest.raises(StoreError, match=r"was changed and cannot be read.*republish"):
            reader.read({"by_courier": pa.array(keys)})
    with pytest.raises(StoreError, match=r"was changed and cannot be read.*republish"):
        reader.read_one({"by_courier": "ann"})
    assert reader.read_one({"by_courier": "nobody"})["by_courier"].status is ReadStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "x"), ("token", "x"), ("holder", "{"), ("holder", "{}"), ("shards", "x"),
     ("slices", ""), ("layout", "x")],
)  # fmt: skip
def test_a_record_of_a_fill_that_was_changed_is_a_named_error(
    database: OnlineDatabase, field: str, value: str
) -> None:
    _publish(database, courier_rows({"entity_key": b"ann"}), 5_000)
    (fill,) = (one for one in database.fills([parcels.COURIER_SPACE]) if one.is_current)
    if isinstance(database, RedisDatabase):
        client = redis.Redis(host=database.place.host, port=database.place.port)
        client.hset(fill_key(fill.id), field, value)
    else:
        assert isinstance(database, SqliteDatabase)
        with closing(sqlite3.connect(database.path)) as sqlite, sqlite:
            update = f"UPDATE tidemill_fills SET {field} = ? WHERE id = ?"
            sqlite.execute(update, (value, fill.id))
    with pytest.raises(StoreError, match=f"the record of fill {fill.id} .*cannot be read"):
        database.fills([parcels.COURIER_SPACE])
