"""A Redis that forgets, fills up, stops or loses data: every loss is reported."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from tests.support.fills import Target, opened
from tests.support.parcels import COURIER_SPACE, DEPOT_SPACE
from tests.support.redis_server import RedisServer, free_port, row_keys, running
from tidemill.features.errors import LostPublications, NoKeySpace, StoreError, StoreUnavailable
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.redis.rows import current_key, fill_key, parts_key
from tidemill.serving.online.rows import Row, RowBatch, online_keys
from tidemill.serving.stores.redis_place import RedisPlace

KEYS = 50

_TARGETS: dict[RedisPlace, Target] = {}
"""The fill that each server's readers see."""


def _row(key: int, time: int, revision: int = 1) -> Row:
    raw = online_keys("depot", pa.array([key]))[0]
    return Row(raw, time, revision, 10**15, 0, encode_row(DEPOT_SPACE.dtypes, [time]))


def _step(database: RedisDatabase, number: int) -> Parcel:
    """The parcel of one advance of a shard: every key again, from frontier to frontier."""
    rows = RowBatch.of([_row(key, 10 * number) for key in range(KEYS)], 0)
    since = 10 * number if number else None
    return _TARGETS[database.place].batch(rows, since_us=since, frontier_us=10 * number + 10)


def _assert_stands_at(database: RedisDatabase, number: int) -> None:
    keys = [_row(key, 0).key for key in range(KEYS)]
    (snapshot,) = database.read([(DEPOT_SPACE, keys)])
    assert snapshot.rows == [_row(key, 10 * number) for key in range(KEYS)]
    assert snapshot.frontiers.by_shard == {0: 10 * number + 10}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def database(server: RedisServer) -> RedisDatabase:
    return _made(server)


def _made(server: RedisServer) -> RedisDatabase:
    made = RedisDatabase(server.place)
    (_TARGETS[made.place],) = opened(made, [DEPOT_SPACE])
    return made


def test_server_that_forgot_its_scripts_is_told_again(
    server: RedisServer, database: RedisDatabase
) -> None:
    for number in range(4):
        server.client().script_flush()
        assert database.publish([_step(database, number), _step(database, number)]) == [KEYS, 0]
    _assert_stands_at(database, 3)


def test_server_that_was_emptied_has_no_key_space(
    server: RedisServer, database: RedisDatabase
) -> None:
    database.publish([_step(database, 0)])
    server.kill()
    server.start()
    for _ in range(2):
        with pytest.raises(
            NoKeySpace, match=r"no key space parcels__by_depot__.*emptied .*republish"
        ):
            database.publish([_step(database, 1)])
        with pytest.raises(NoKeySpace, match=r"no key space parcels__by_depot__.*register"):
            database.read([(DEPOT_SPACE, [])])
    target = _TARGETS[database.place]
    database.restore([target.fill], target.writer)
    with pytest.raises(LostPublications, match="has no mark, with no frontier"):
        database.publish([_step(database, 1)])
    # The records of the key space and its fill, and the token; no row.
    assert server.client().dbsize() == 5


def test_log_without_its_end_is_noticed(tmp_path: Path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always"}
    with running(tmp_path / "redis", options) as server:
        database = _made(server)
        (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
        for number in range(4):
            database.publish([_step(database, number)])
            if number == 1:
                whole = log.stat().st_size
        server.kill()
        with log.open("rb+") as file:
            file.truncate(whole + 100)  # a part of what step 2 wrote
        server.start()
        _assert_stands_at(database, 1)
        with pytest.raises(LostPublications, match=r"stands at .* with frontier .*20Z: it has"):
            database.publish([_step(database, 4)])
        _assert_stands_at(database, 1)
        for number in range(2, 5):
            database.publish([_step(database, number)])
        _assert_stands_at(database, 4)


def test_older_dump_is_noticed(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"dbfilename": "dump.rdb"}) as server:
        database = _made(server)
        database.publish([_step(database, 0)])
        server.client().save()
        database.publish([_step(database, 1)])
        server.kill()
        server.start()
        with pytest.raises(
            LostPublications, match=r"stands at mark .* with frontier .*10Z: it has"
        ):
            database.publish([_step(database, 2)])
        _assert_stands_at(database, 0)
        whole = dataclasses.replace(
            _step(database, 2), mark_before=None
        )  # a republication from state
        database.publish([whole])
        _assert_stands_at(database, 2)


def test_server_that_comes_back_with_its_data_goes_on(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        database = _made(server)
        for number in range(6):
            database.publish([_step(database, number)])
            server.kill()
            with pytest.raises(
                StoreUnavailable, match=r"redis://127.*by_depot.*no connection .*sta"
            ):
                database.publish([_step(database, number + 1)])
            server.start()
        _assert_stands_at(database, 5)


def test_connection_that_the_server_closed_is_opened_again(
    server: RedisServer, database: RedisDatabase
) -> None:
    for number in range(3):
        database.publish([_step(database, number)])
        assert server.client().client_kill_filter(_type="normal") >= 1
        _assert_stands_at(database, number)
        assert server.client().client_kill_filter(_type="normal") >= 1


def test_server_that_does_not_answer_is_given_up_in_time(server: RedisServer) -> None:
    database = RedisDatabase(dataclasses.replace(server.place, timeout_us=200_000))
    (_TARGETS[database.place],) = opened(database, [DEPOT_SPACE])
    database.publish([_step(database, 0)])
    server.freeze()
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"key space parcels__by_depot.* within 0\.2 s"):
        database.publish([_step(database, 1)])
    assert time.monotonic() - began_s < 15
    server.thaw()
    # The parcel may have arrived; writing it again, and later ones, does no harm.
    database.publish([_step(database, 1), _step(database, 2)])
    _assert_stands_at(database, 2)


def _publish_each(database: RedisDatabase, parcels: Sequence[Parcel]) -> None:
    for parcel in parcels:
        database.publish([parcel])


def test_full_memory_writes_nothing_of_a_parcel_and_passes(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"maxmemory": "3mb"}) as server:
        database = _made(server)
        rows = [_row(key, 10) for key in range(40_000)]
        parcels = [
            _TARGETS[database.place].batch(
                RowBatch.of(rows[at : at + 500], 0),
                since_us=at - 499 if at else None,
                frontier_us=at + 1,
            )
            for at in range(0, len(rows), 500)
        ]
        with pytest.raises(StoreUnavailable, match=r"by_depot.* OOM .*raise its maxmemory"):
            _publish_each(database, parcels)
        (snapshot,) = database.read([(DEPOT_SPACE, [row.key for row in rows])])
        stands = sum(row is not None for row in snapshot.rows)
        assert 0 < stands < len(rows)
        assert snapshot.frontiers.by_shard == {0: stands - 500 + 1}
        server.client().config_set("maxmemory", "100mb")
        database.publish(parcels)
        (snapshot,) = database.read([(DEPOT_SPACE, [row.key for row in rows])])
        assert snapshot.rows == rows


def test_full_memory_lets_key_spaces_be_removed(tmp_path: Path) -> None:
    """The error names this remedy."""
    with running(tmp_path / "redis") as server:
        database = _made(server)
        database.create([COURIER_SPACE])
        rows = RowBatch.of([_row(key, 10) for key in range(5_000)], 0)
        database.publish([_TARGETS[database.place].batch(rows, frontier_us=10)])
        server.client().config_set("maxmemory", "1mb")
        with pytest.raises(StoreUnavailable, match="OOM"):
            database.publish([_step(database, 1)])
        database.drop([DEPOT_SPACE])
        assert database.spaces() == [COURIER_SPACE.name]
        # The records of the other key space and its fill, and the token.
        assert server.client().dbsize() == 5


def test_replica_that_takes_no_writes_is_named_and_can_be_read(
    tmp_path: Path, server: RedisServer, database: RedisDatabase
) -> None:
    database.publish([_step(database, 0)])
    options = {"replicaof": f"127.0.0.1 {server.port}", "repl-diskless-sync-delay": "0"}
    with running(tmp_path / "replica", options) as replica:
        copy = RedisDatabase(replica.place)
        deadline_s = time.monotonic() + 120
        while not replica.client().exists(current_key(DEPOT_SPACE)):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        _assert_stands_at(copy, 0)
        with pytest.raises(StoreUnavailable, match=r"by_depot.* READONLY .*name the primary"):
            copy.publish([_step(database, 1)])
        server.kill()
        replica.client().replicaof("NO", "ONE")
        copy.publish([_step(database, 1)])
        _assert_stands_at(copy, 1)


def test_server_that_cannot_save_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with running(folder, {"save": "3600 1", "dbfilename": "dump.rdb"}) as server:
        database = _made(server)
        (folder / "dump.rdb" / "in-the-way").mkdir(parents=True)
        client = server.client()
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.01)
        with pytest.raises(StoreUnavailable, match=r"by_depot.* MISCONF .*make room there"):
            database.publish([_step(database, 0)])


def test_server_that_still_reads_its_data_is_waited_for(tmp_path: Path) -> None:
    options = {"dbfilename": "dump.rdb", "loading-process-events-interval-bytes": "1024"}
    with running(tmp_path / "redis", options) as server:
        database = _made(server)
        rows = RowBatch.of([_row(key, 10) for key in range(3_000)], 0)
        database.publish([_TARGETS[database.place].batch(rows, frontier_us=10)])
        server.client().save()
        server.kill()
        server.options["key-load-delay"] = "500"
        server.start(until_loaded=False)
        with pytest.raises(
            StoreUnavailable, match=r"by_depot.* LOADING .*after a start: try again"
        ):
            database.publish([_step(database, 1)])


def _run_endless_script(server: RedisServer) -> None:
    with pytest.raises(redis.ResponseError):
        server.client().eval("while true do end", 0)


def _publish_for_seconds(database: RedisDatabase) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        database.publish([_step(database, 0)])


def test_server_that_runs_a_script_without_end_is_named(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"busy-reply-threshold": "20"}) as server:
        database = _made(server)
        thread = threading.Thread(target=_run_endless_script, args=(server,))
        thread.start()
        try:
            with pytest.raises(StoreUnavailable, match=r"by_depot.* BUSY .*SCRIPT KILL"):
                _publish_for_seconds(database)
        finally:
            server.client().script_kill()
            thread.join()
        database.publish([_step(database, 0)])
        _assert_stands_at(database, 0)


@pytest.mark.parametrize("name", ["fill", "parts", "current"])
def test_keys_of_another_program_are_named(
    server: RedisServer, database: RedisDatabase, name: str
) -> None:
    client = server.client()
    fill = _TARGETS[database.place].fill.id
    keys = {"fill": fill_key(fill), "parts": parts_key(fill), "current": current_key(DEPOT_SPACE)}
    calls = {
        "fill": [lambda: database.publish([_step(database, 0)])],
        "parts": [
            lambda: database.publish([_step(database, 0)]),
            lambda: database.read([(DEPOT_SPACE, [])]),
        ],
        "current": [lambda: database.read([(DEPOT_SPACE, [])])],
    }
    database.read([(DEPOT_SPACE, [])])
    client.delete(keys[name])
    client.lpush(keys[name], "a list")
    for call in calls[name]:
        with pytest.raises(StoreError, match=r"by_depot.* WRONGTYPE .*choose another db") as caught:
            call()
        assert not isinstance(caught.value, StoreUnavailable)
    assert row_keys(client, fill) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_server_that_may_evict_rows_is_refused(tmp_path: Path, policy: str) -> None:
    with running(tmp_path / "redis", {"maxmemory-policy": policy}) as server:
        with pytest.raises(StoreError, match=f"{policy}, so .* evict rows.*noeviction"):
            RedisDatabase(server.place).create([DEPOT_SPACE])
        assert server.client().dbsize() == 0


def test_policy_that_evicts_only_what_expires_is_taken(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"maxmemory-policy": "volatile-ttl"}) as server:
        database = _made(server)
        database.publish([_step(database, 0)])


def test_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    with (
        running(
            tmp_path / "redis", {"cluster-enabled": "yes", "cluster-port": str(free_port())}
        ) as server,
        pytest.raises(StoreError, match="node of a Redis Cluster"),
    ):
        RedisDatabase(server.place).create([DEPOT_SPACE])


def test_writer_leaves_no_row_behind_a_removal(
    server: RedisServer, database: RedisDatabase
) -> None:
    rows = RowBatch.of([_row(key, 10) for key in range(20_000)], 0)
    database.publish([_TARGETS[database.place].batch(rows, frontier_us=10)])
    refused: list[StoreError] = []

    def keep_writing() -> None:
        for key in itertools.count(20_000):
            try:
                database.write(DEPOT_SPACE, RowBatch.of([_row(key, 10)], 0))
            except StoreError as error:
                refused.append(error)
                return

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        time.sleep(0.05)
        database.drop([DEPOT_SPACE])
    finally:
        writer.join()
    assert "there is no key space" in str(refused[0])
    assert server.client().keys("*") == [b"tm:token"]


def test_key_space_that_is_half_removed_is_gone_and_made_anew_empty(
    server: RedisServer, database: RedisDatabase
) -> None:
    """Its removal was interrupted."""
    database.create([COURIER_SPACE])
    database.publish([_step(database, 0)])
    fill = _TARGETS[database.place].fill.id
    server.client().delete(current_key(DEPOT_SPACE))
    server.client().hdel(fill_key(fill), "layout")
    for call in (
        lambda: database.publish([_step(database, 1)]),
        lambda: database.read([(DEPOT_SPACE, [])]),
    ):
        with pytest.raises(StoreError, match="there is no key space"):
            call()
    assert database.spaces() == sorted([COURIER_SPACE.name, DEPOT_SPACE.name])
    database.create([DEPOT_SPACE, COURIER_SPACE])
    (snapshot,) = database.read([(DEPOT_SPACE, [_row(key, 0).key for key in range(KEYS)])])
    assert snapshot.rows == [None] * KEYS
    assert snapshot.frontiers.by_shard == {}
    assert row_keys(server.client(), fill) == []
