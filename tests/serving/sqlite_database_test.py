"""The online database keeps the newest publication, whoever writes and in whatever order."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import threading
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract import TIME_MAX, TIME_MIN
from features.errors import ConflictingPublication, InputError, StoreError
from serving.online_cells import encode_row
from serving.online_rows import Row, online_keys
from serving.sqlite_database import SqliteDatabase
from tests.serving.parcels import COURIER_SPACE, DEPOT_SPACE

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
    made.create([DEPOT_SPACE, COURIER_SPACE])
    return made


def _standing(database: SqliteDatabase, keys: Sequence[int]) -> list[Row | None]:
    return database.read([(DEPOT_SPACE, [_key(key) for key in keys])])[0].rows


@settings(max_examples=40)
@given(
    publications=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 3)), max_size=30
    ).flatmap(lambda some: st.permutations(some + some[:5])),
    cut=st.integers(0, 35),
)
def test_newest_stands_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, publications: list[tuple[int, int, int]], cut: int
) -> None:
    database = SqliteDatabase(str(tmp_path_factory.mktemp("order") / "online.db"))
    database.create([DEPOT_SPACE])
    rows = [_row(key, time, rev, 100 * time + rev) for key, time, rev in publications]
    database.write(DEPOT_SPACE, rows[:cut])
    database.write(DEPOT_SPACE, rows[cut:])
    newest = [max((row for row in rows if row.key == _key(k)), default=None) for k in range(3)]
    assert _standing(database, range(3)) == newest
    database.close()


def test_equal_publication_changes_nothing(database: SqliteDatabase) -> None:
    assert database.write(DEPOT_SPACE, [_row(1, 10, 2, 7)]) == 1
    assert database.write(DEPOT_SPACE, [_row(1, 10, 2, 7)]) == 0
    assert _standing(database, [1]) == [_row(1, 10, 2, 7)]


def test_correction_with_a_higher_revision_wins(database: SqliteDatabase) -> None:
    database.write(DEPOT_SPACE, [_row(1, 10, 2, 7)])
    assert database.write(DEPOT_SPACE, [_row(1, 10, 3, 8)]) == 1
    assert database.write(DEPOT_SPACE, [_row(1, 10, 2, 7)]) == 0
    assert _standing(database, [1]) == [_row(1, 10, 3, 8)]


def test_newer_time_wins_whatever_the_revision(database: SqliteDatabase) -> None:
    database.write(DEPOT_SPACE, [_row(1, 10, 9, 7), _row(1, 11, 1, 8), _row(1, 10, 99, 9)])
    assert _standing(database, [1]) == [_row(1, 11, 1, 8)]


@pytest.mark.parametrize("other", [_row(2, 10, 2, 8), _row(2, 10, 2, 7, valid_until=5)])
def test_conflict_is_reported_and_its_batch_is_not_written(
    database: SqliteDatabase, other: Row
) -> None:
    database.write(DEPOT_SPACE, [_row(2, 10, 2, 7)])
    with pytest.raises(ConflictingPublication) as caught:
        database.write(DEPOT_SPACE, [_row(1, 99, 9, 9), other])
    message = str(caught.value)
    for part in (database.path, "'by_depot'", "depot=2", "event_timestamp 10", "revision 2"):
        assert part in message
    assert f"stored {{'scans_1d': 7}} until {10**15}" in message
    assert f"until {other.valid_until}" in message
    assert _standing(database, [1]) == [None]
    assert database.write(DEPOT_SPACE, [_row(1, 99, 9, 9)]) == 1


def test_conflict_within_one_batch_is_reported(database: SqliteDatabase) -> None:
    with pytest.raises(ConflictingPublication):
        database.write(DEPOT_SPACE, [_row(1, 10, 2, 7), _row(1, 10, 2, 8)])
    assert _standing(database, [1]) == [None]


def test_cells_of_another_width_are_refused(database: SqliteDatabase) -> None:
    with pytest.raises(StoreError, match="CHECK constraint"):
        database.write(DEPOT_SPACE, [_row(1, 10, 2, 7)._replace(cells=b"short")])


def _race_publications(writer: int) -> list[Row]:
    rows = [
        _row(key, time, revision, 1_000 * time + revision)
        for key in range(KEYS)
        for time in range(5)
        for revision in range(2)
    ]
    random.Random(writer).shuffle(rows)
    return rows + rows[:500]


def _processes() -> ForkServerContext:
    """Start processes from a server that has imported this module already: that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _write_all(path: str, writer: int, start_line: Barrier) -> None:
    database = SqliteDatabase(path)
    rows = _race_publications(writer)
    start_line.wait()
    for start in range(0, len(rows), 100):
        database.write(DEPOT_SPACE, rows[start : start + 100])
        database.write_frontier(DEPOT_SPACE, shard=0, shard_count=1, frontier_us=writer + start)
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
    processes = _processes()
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
    database.write(DEPOT_SPACE, [_row(1, 10, 1, 7)])
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=database.write, args=(DEPOT_SPACE, [_row(1, 20, 1, 8)]))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert _standing(database, [1]) == [_row(1, 20, 1, 8)]


def _create(root: str, start_line: Barrier) -> None:
    for number in range(30):
        start_line.wait()
        SqliteDatabase(f"{root}/{number}/online.db").create([DEPOT_SPACE, COURIER_SPACE])


def test_many_may_create_the_same_database_at_once(tmp_path: Path) -> None:
    processes = _processes()
    start_line = processes.Barrier(4, timeout=60)
    creators = [
        processes.Process(target=_create, args=(str(tmp_path), start_line)) for _ in range(4)
    ]
    for process in creators:
        process.start()
    for process in creators:
        process.join()
    assert [process.exitcode for process in creators] == [0] * 4


def test_frontier_never_goes_back(database: SqliteDatabase) -> None:
    for frontier in (100, 50, 100, TIME_MIN):
        database.write_frontier(DEPOT_SPACE, shard=1, shard_count=2, frontier_us=frontier)
    (snapshot,) = database.read([(DEPOT_SPACE, [])])
    assert snapshot.frontiers.by_shard == {1: 100}
    assert snapshot.frontiers.shard_count == 2


def test_rows_and_frontier_are_written_together_or_not_at_all(database: SqliteDatabase) -> None:
    def publish(value: int, frontier_us: int) -> None:
        database.publish(
            DEPOT_SPACE, [_row(1, 10, 1, value)], shard=0, shard_count=1, frontier_us=frontier_us
        )

    publish(7, 20)
    with pytest.raises(ConflictingPublication):
        publish(8, 30)
    with pytest.raises(InputError, match="end that was declared"):
        database.publish(
            DEPOT_SPACE, [_row(1, 50, 1, 9)], shard=0, shard_count=1, frontier_us=TIME_MAX
        )
    (snapshot,) = database.read([(DEPOT_SPACE, [_key(1)])])
    assert snapshot.frontiers.by_shard == {0: 20}
    assert snapshot.rows == [_row(1, 10, 1, 7)]


def test_other_shard_count_is_refused(database: SqliteDatabase) -> None:
    database.write_frontier(DEPOT_SPACE, shard=0, shard_count=2, frontier_us=1)
    with pytest.raises(StoreError, match="published with 2 shards, and now with 3"):
        database.write_frontier(DEPOT_SPACE, shard=1, shard_count=3, frontier_us=1)
    with pytest.raises(InputError, match="no shard 2 of 2"):
        database.write_frontier(DEPOT_SPACE, shard=2, shard_count=2, frontier_us=1)


def test_views_have_frontiers_of_their_own(database: SqliteDatabase) -> None:
    database.write_frontier(DEPOT_SPACE, shard=0, shard_count=1, frontier_us=5)
    courier, depot = database.read([(COURIER_SPACE, []), (DEPOT_SPACE, [])])
    assert courier.frontiers.by_shard == {}
    assert depot.frontiers.by_shard == {0: 5}


def test_many_keys_are_read_in_their_order(database: SqliteDatabase) -> None:
    rows = [_row(key, 10, 1, key) for key in range(25_000)]
    database.write(DEPOT_SPACE, rows)
    keys = [*range(25_000), 10**6, 3]
    random.Random(1).shuffle(keys)
    found = _standing(database, keys)
    assert found == [None if key == 10**6 else rows[key] for key in keys]


def test_missing_store_is_named(tmp_path: Path) -> None:
    nowhere = SqliteDatabase(str(tmp_path / "absent.db"))
    with pytest.raises(StoreError, match=r"no online store at .*absent\.db; register"):
        nowhere.read([(DEPOT_SPACE, [])])
    assert not (tmp_path / "absent.db").exists()


def test_unregistered_view_is_named(tmp_path: Path) -> None:
    database = SqliteDatabase(str(tmp_path / "online.db"))
    database.create([COURIER_SPACE])
    with pytest.raises(StoreError, match=r"no such table: parcels__by_depot__.*register"):
        database.write(DEPOT_SPACE, [_row(1, 10, 1, 7)])


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "online.db").write_text("a text, not a database " * 100)
    with pytest.raises(StoreError, match=r"online\.db: file is not a database"):
        SqliteDatabase(str(tmp_path / "online.db")).create([DEPOT_SPACE])


def test_store_that_was_removed_and_made_again_is_empty(database: SqliteDatabase) -> None:
    database.write(DEPOT_SPACE, [_row(1, 10, 1, 7)])
    for file in Path(database.path).parent.iterdir():
        file.unlink()
    database.create([DEPOT_SPACE])
    assert _standing(database, [1]) == [None]


def test_dropped_key_space_takes_its_frontiers_along(database: SqliteDatabase) -> None:
    database.publish(DEPOT_SPACE, [_row(1, 10, 1, 7)], shard=0, shard_count=1, frontier_us=20)
    database.drop([DEPOT_SPACE])
    database.create([DEPOT_SPACE])
    (snapshot,) = database.read([(DEPOT_SPACE, [_key(1)])])
    assert snapshot.rows == [None]
    assert snapshot.frontiers.by_shard == {}


def test_database_travels_to_workers(database: SqliteDatabase) -> None:
    database.write(DEPOT_SPACE, [_row(1, 10, 1, 7)])
    assert _standing(pickle.loads(pickle.dumps(database)), [1]) == [_row(1, 10, 1, 7)]
