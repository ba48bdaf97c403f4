"""Two writers of one store: the elder is stopped at any place, wakes later, and is refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support import fork_server
from tests.support.fills import OTHER_HOLDER, Target, mark_of, opened, taken
from tests.support.parcels import DEPOT_SPACE
from tests.support.redis_server import running
from tidemill.features.errors import StoreError, SupersededWriter
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.redis import database as redis_module
from tidemill.serving.online.redis import writes as redis_writes
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.rows import Row, RowBatch, online_keys
from tidemill.serving.online.sqlite import database as sqlite_module
from tidemill.serving.online.sqlite.database import SqliteDatabase

KEYS = online_keys("depot", pa.array(range(50)))
PARTS = 2


@pytest.fixture(params=["sqlite", "redis"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineDatabase]:
    if request.param == "sqlite":
        yield SqliteDatabase(str(tmp_path / "online.db"))
        return
    with running(tmp_path / "redis") as server:
        yield RedisDatabase(server.place)


def release(target: Target, number: int, value: int) -> list[Parcel]:
    """Every key in each of the shards, with a value that tells the writer."""
    cells = encode_row(DEPOT_SPACE.dtypes, [value])
    out = []
    for shard in range(PARTS):
        rows = [Row(key, number, number, 10**15, shard, cells) for key in KEYS[shard::PARTS]]
        parcel = target.batch(RowBatch.of(rows, shard), frontier_us=10 * number)
        before = None if number == 1 else mark_of(10 * (number - 1), str(value))
        out.append(replace(parcel, mark=mark_of(10 * number, str(value)), mark_before=before))
    return out


def values(database: OnlineDatabase) -> set[bytes]:
    ((_, rows),) = database.read([(DEPOT_SPACE, KEYS)])
    return {row.cells for row in rows if row is not None}


PLACES = {
    "sqlite": [(sqlite_module, "transaction"), (sqlite_module, "newest_per_key")],
    "redis": [(redis_writes, "newest_per_key"), (redis_module, "exchange")],
}
"""Functions of a parcel's way before each of which the elder is stopped."""


def _elder(database: OnlineDatabase, target: Target, place: int, pipe: Connection) -> None:
    """Publish release 2, and stop at a place on the way; tell what became of it."""
    kind = "sqlite" if isinstance(database, SqliteDatabase) else "redis"
    module, name = PLACES[kind][place]
    before = getattr(module, name)

    def stopped(*arguments: Any, **named: Any) -> Any:
        setattr(module, name, before)
        os.kill(os.getpid(), signal.SIGSTOP)
        return before(*arguments, **named)

    setattr(module, name, stopped)
    try:
        pipe.send(database.publish(release(target, 2, 0)))
    except StoreError as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _wait_until_stopped(pid: int) -> None:
    deadline_s = time.monotonic() + 120
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.mark.parametrize("place", range(2))
def test_elder_that_wakes_within_a_parcel_writes_nothing(
    database: OnlineDatabase, place: int
) -> None:
    (target,) = opened(database, [DEPOT_SPACE], shards=PARTS)
    database.publish(release(target, 1, 0))
    processes = fork_server.processes()
    mine, theirs = processes.Pipe()
    elder = processes.Process(target=_elder, args=(database, target, place, theirs))
    elder.start()
    assert elder.pid is not None
    _wait_until_stopped(elder.pid)
    holds_the_lock = isinstance(database, SqliteDatabase) and place == 1
    if not holds_the_lock:
        younger = taken(database, target, OTHER_HOLDER)
        parcels = [
            replace(parcel, mark_before=mark_of(10, "0")) for parcel in release(younger, 2, 1)
        ]
        assert database.publish(parcels) == [25, 25]
    os.kill(elder.pid, signal.SIGCONT)
    assert mine.poll(120)
    found = mine.recv()
    elder.join()
    if holds_the_lock:
        # Within SQLite's own transaction nobody else can take the token: the elder is not elder.
        assert found == [25, 25]
        return
    assert str(found).startswith("SupersededWriter: "), found
    assert "another-host" in found
    assert values(database) == {encode_row(DEPOT_SPACE.dtypes, [1])}
    with pytest.raises(SupersededWriter):
        database.publish(release(target, 3, 0))
    assert values(database) == {encode_row(DEPOT_SPACE.dtypes, [1])}
