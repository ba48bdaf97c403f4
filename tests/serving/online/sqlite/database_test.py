"""The online database keeps the newest publication, for any writers and any order."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from tests.support import fork_server
from tests.support.fills import current_target, opened
from tests.support.parcels import COURIER_SPACE, DEPOT_SPACE
from tidemill.features.errors import LostPublications, StoreError, StoreUnavailable
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.rows import KeySpace, Row, RowBatch, online_keys
from tidemill.serving.online.sqlite import connections
from tidemill.serving.online.sqlite.database import SqliteDatabase

KEYS = 500
WRITERS = 4


def _key(depot: int) -> bytes:
    return online_keys("depot", pa.array([depot]))[0]


def _row(key: int, time: int, revision: int, value: int, valid_until: int = 10**15) -> Row:
    cells = encode_row(DEPOT_SPACE.dtypes, [value])
    return Row(_key(key), time, revision, valid_until, 0, cells)


@pytest.fixture
def database(tmp_path: Path) -> SqliteDatabase:
    made = SqliteDatabase(str(tmp_path / "online.db"))
    opened(made, [DEPOT_SPACE, COURIER_SPACE])
    return made


def _write(database: SqliteDatabase, *rows: Row) -> int:
    return database.write(DEPOT_SPACE, RowBatch.of(rows, 0))


def _publish(
    database: SqliteDatabase,
    *rows: Row,
    frontier_us: int,
    since_us: int | None = None,
    shard: int = 0,
    of: int = 1,
    space: KeySpace = DEPOT_SPACE,
) -> int:
    target = current_target(database, space, of)
    parcel = target.parcel(*rows, frontier_us=frontier_us, since_us=since_us, shard=shard)
    return database.publish([parcel])[0]


def _standing(database: SqliteDatabase, keys: Sequence[int]) -> list[Row | None]:
    return database.read([(DEPOT_SPACE, [_key(key) for key in keys])])[0].rows


def _race_publications(writer: int) -> list[Row]:
    rows = [
        _row(key, time, revision, 1_000 * time + revision)
        for key in range(KEYS)
        for time in range(5)
        for revision in range(2)
    ]
    random.Random(writer).shuffle(rows)
    return rows + rows[:500]


def _write_all(path: str, writer: int, start_line: Barrier) -> None:
    database = SqliteDatabase(path)
    rows = _race_publications(writer)
    start_line.wait()
    for start in range(0, len(rows), 100):
        _write(database, *rows[start : start + 100])
        _publish(database, frontier_us=writer + start)
    database.close()


def _assert_race_won(database: SqliteDatabase) -> None:
    wanted: list[Row | None] = [_row(key, 4, 1, 4_001) for key in range(KEYS)]
    found = _standing(database, range(KEYS))
    wrong = sum(a != b for a, b in zip(found, wanted, strict=True))
    assert wrong == 0, f"{wrong} of {KEYS} keys are wrong"
    frontiers = database.read([(DEPOT_SPACE, [])])[0].frontiers
    assert frontiers.by_shard == {0: 5_400 + WRITERS - 1}


def test_racing_threads_leave_no_wrong_key(database: SqliteDatabase) -> None:
    start_line = threading.Barrier(WRITERS)
    threads = [
        threading.Thread(target=_write_all, args=(database.path, writer, start_line))
        for writer in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _assert_race_won(database)


def test_racing_processes_leave_no_wrong_key(database: SqliteDatabase) -> None:
    processes = fork_server.processes()
    start_line = processes.Barrier(WRITERS)
    writers = [
        processes.Process(target=_write_all, args=(database.path, writer, start_line))
        for writer in range(WRITERS)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * WRITERS
    _assert_race_won(database)


def test_forked_process_opens_its_own_connection(database: SqliteDatabase) -> None:
    _write(database, _row(1, 10, 1, 7))
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_write, args=(database, _row(1, 20, 1, 8)))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert _standing(database, [1]) == [_row(1, 20, 1, 8)]


def _create(root: str, start_line: Barrier) -> None:
    for number in range(30):
        start_line.wait()
        SqliteDatabase(f"{root}/{number}/online.db").create([DEPOT_SPACE, COURIER_SPACE])


def test_many_may_create_the_same_database_at_once(tmp_path: Path) -> None:
    processes = fork_server.processes()
    start_line = processes.Barrier(4, timeout=240)
    creators = [
        processes.Process(target=_create, args=(str(tmp_path), start_line)) for _ in range(4)
    ]
    for process in creators:
        process.start()
    for process in creators:
        process.join()
    assert [process.exitcode for process in creators] == [0] * 4


def test_many_keys_are_read_in_their_order(database: SqliteDatabase) -> None:
    rows = [_row(key, 10, 1, key) for key in range(25_000)]
    _write(database, *rows)
    keys = [*range(25_000), 10**6, 3]
    random.Random(1).shuffle(keys)
    found = _standing(database, keys)
    assert found == [None if key == 10**6 else rows[key] for key in keys]


def test_missing_store_is_named(tmp_path: Path) -> None:
    nowhere = SqliteDatabase(str(tmp_path / "absent.db"))
    with pytest.raises(StoreError, match=r"no online store at .*absent\.db; register"):
        nowhere.read([(DEPOT_SPACE, [])])
    nowhere.drop([DEPOT_SPACE])
    assert not (tmp_path / "absent.db").exists()


def test_unregistered_view_is_named(tmp_path: Path) -> None:
    database = SqliteDatabase(str(tmp_path / "online.db"))
    database.create([COURIER_SPACE])
    with pytest.raises(StoreError, match=r"there is no key space parcels__by_depot__.*register"):
        _write(database, _row(1, 10, 1, 7))


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "online.db").write_text("a text, not a database " * 100)
    with pytest.raises(StoreError, match=r"online\.db: file is not a database"):
        SqliteDatabase(str(tmp_path / "online.db")).create([DEPOT_SPACE])


@pytest.mark.parametrize("damage", [b"ROXID", b"R\xceWID"])
def test_a_damaged_schema_is_named_with_a_remedy(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "online.db"
    database = SqliteDatabase(str(path))
    database.create([DEPOT_SPACE])
    database.close()
    for file in tmp_path.glob("online.db-*"):
        file.unlink()
    path.write_bytes(path.read_bytes().replace(b"WITHOUT ROWID", b"WITHOUT " + damage))
    with pytest.raises(StoreError, match=r"online\.db: malformed .*`tidemill republish`"):
        SqliteDatabase(str(path)).read([(DEPOT_SPACE, [])])


def test_store_that_was_removed_and_made_again_is_empty(database: SqliteDatabase) -> None:
    _write(database, _row(1, 10, 1, 7))
    for file in Path(database.path).parent.iterdir():
        file.unlink()
    database.create([DEPOT_SPACE])
    assert _standing(database, [1]) == [None]


def test_writer_that_keeps_the_lock_is_waited_for_and_then_named(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.1)
    database.close()
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"online\.db: database is locked; nothing was wri"):
        _publish(database, _row(1, 10, 1, 7), frontier_us=20)
    other.execute("ROLLBACK")
    other.close()
    assert _publish(database, _row(1, 10, 1, 7), frontier_us=20) == 1


def test_all_parcels_of_a_call_are_written_or_none(database: SqliteDatabase) -> None:
    target = current_target(database, DEPOT_SPACE, 2)
    good = target.parcel(_row(1, 10, 1, 7), frontier_us=20)
    lost = target.parcel(shard=1, since_us=5, frontier_us=20)
    with pytest.raises(LostPublications):
        database.publish([good, lost])
    (snapshot,) = database.read([(DEPOT_SPACE, [_key(1)])])
    assert snapshot.rows == [None]
    assert snapshot.frontiers.by_shard == {}


def test_place_without_a_store_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "online.db").touch()
    with pytest.raises(StoreError, match=r"no online store in it; register the project"):
        SqliteDatabase(str(tmp_path / "online.db")).drop([DEPOT_SPACE])
