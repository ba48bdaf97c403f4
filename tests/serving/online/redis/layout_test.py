"""A Redis that the version before fills wrote: brought to the present layout, with all rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.fills import begun
from tests.support.parcels import DEPOT_SPACE
from tests.support.redis_server import RedisServer, running
from tidemill.features.errors import OtherLayout
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.fills import NewFill
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.redis.rows import encode_instant, encode_rows, old_fill_id
from tidemill.serving.online.rows import Row, RowBatch, online_keys

KEYS = online_keys("depot", pa.array(range(20)))
ROWS = [
    Row(key, 10, 1, 10**15, number % 2, encode_row(DEPOT_SPACE.dtypes, [number]))
    for number, key in enumerate(KEYS)
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with what layout 1 kept of a key space of two shards, byte for byte."""
    with running(tmp_path / "redis") as made:
        client = made.client()
        prefix = b"tm:" + bytes.fromhex(old_fill_id(DEPOT_SPACE))
        for shard in range(2):
            rows = RowBatch.of(ROWS[shard::2], shard)
            for key, value in zip(rows.keys, encode_rows(rows), strict=True):
                client.set(prefix + key, value)
            frontier = encode_instant(20 + shard)
            client.hset(f"tm:frontiers:{DEPOT_SPACE.name}", str(shard), frontier)
        record: dict[str, str | bytes] = {
            "id": prefix,
            "project": DEPOT_SPACE.project,
            "view": DEPOT_SPACE.view,
            "definition": DEPOT_SPACE.definition,
            "columns": json.dumps(DEPOT_SPACE.columns),
            "shard_count": "2",
        }
        client.hset(f"tm:space:{DEPOT_SPACE.name}", mapping=record)  # type: ignore[arg-type]
        client.sadd("tm:spaces", DEPOT_SPACE.name)
        yield made


def test_it_is_refused_by_name_until_it_is_brought_to_the_present_layout(
    server: RedisServer,
) -> None:
    database = RedisDatabase(server.place)
    for call in (
        lambda: database.read([(DEPOT_SPACE, KEYS)]),
        lambda: database.fills([DEPOT_SPACE]),
        lambda: database.begin_fills([NewFill(DEPOT_SPACE, 2)]),
        lambda: database.write(DEPOT_SPACE, RowBatch.of(ROWS[:1], 0)),
    ):
        with pytest.raises(OtherLayout, match=r"layout 1; .* layout 2; .*`tidemill apply`"):
            call()
    assert database.spaces() == [DEPOT_SPACE.name]
    database.create([DEPOT_SPACE])
    database.create([DEPOT_SPACE])
    (snapshot,) = database.read([(DEPOT_SPACE, KEYS)])
    assert snapshot.rows == ROWS
    assert snapshot.frontiers.by_shard == {0: 20, 1: 21}
    assert not [name for name in server.client().keys("tm:*") if b":space:" in name]
    # It has no marks, so a stream fills another one, and readers are switched to that.
    (target,) = begun(database, [DEPOT_SPACE], shards=2)
    for shard in range(2):
        database.publish([target.parcel(shard=shard, frontier_us=21)])
    database.switch([target.fill], target.writer)
    assert database.read([(DEPOT_SPACE, KEYS)])[0].rows == [None] * len(KEYS)


def test_key_space_of_it_can_be_removed(server: RedisServer) -> None:
    database = RedisDatabase(server.place)
    database.drop([DEPOT_SPACE])
    assert server.client().keys("*") == []
