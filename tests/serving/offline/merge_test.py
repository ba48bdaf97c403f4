"""Merging the change-point log: equal answers before, during and after, beside other processes.

Rows are of one day unless a test says otherwise; segment None means rows of `backfill --publish`.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.parcels import BY_DEPOT, PARCELS, depot_rows
from tidemill.features.contract import DAY, TIME_MAX, TIME_MIN
from tidemill.features.errors import InputError, StoreError
from tidemill.serving.files import segment_names
from tidemill.serving.offline import merge as offline_merge
from tidemill.serving.offline.log import OfflineLog, newest_rows
from tidemill.serving.offline.merge import Merge, SegmentJoiner, merge_day, planned_merge
from tidemill.serving.offline.offline_table import offline_table
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import OFFLINE, StorePlaces

DATE = "1970-01-01"
WAIT_S = 60.0

Row = tuple[int, int, int, int]


@pytest.fixture
def log(tmp_path: Path) -> OfflineLog:
    return OfflineLog.of(tmp_path / OFFLINE, BY_DEPOT)


def names(log: OfflineLog) -> list[str]:
    return sorted(str(f.relative_to(log.directory)) for f in log.directory.rglob("*.parquet"))


def add(log: OfflineLog, segment: int | None, at_us: int, *rows: Row) -> None:
    """Add rows as a release of a segment does, or as a part of history."""
    if segment is None:
        log.write(BY_DEPOT, depot_rows(*rows), f"history-00000-of-00001-{at_us:06d}")
        return
    log.append(
        BY_DEPOT,
        {at_us: depot_rows(*rows)},
        shard=0,
        shards=1,
        since_us=TIME_MIN,
        until_us=at_us,
        segment=segment,
    )


def stands(log: OfflineLog) -> list[tuple[int, ...]]:
    """Return the rows that a join sees, with the highest revision of each instant."""
    files = log.files(TIME_MIN, TIME_MAX)
    if not files:
        return []
    tables = [pq.read_table(file, partitioning=None) for file in files]
    table = newest_rows("depot", pa.concat_tables(tables))
    times = table["event_timestamp"].cast(pa.int64())
    columns = [table["depot"], times, table["scans_1d"], table["tidemill_revision"]]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


@functools.cache
def opened(root: Path) -> feast.FeatureStore:
    return open_store(PARCELS, StorePlaces.below(root), clock="wall")


def joined(log: OfflineLog) -> list[Any]:
    """Feast's answers for five depots at every instant of the first hundred."""
    store = opened(log.directory.parents[2])
    asked = pa.table(
        {
            "depot": [depot for depot in range(5) for _ in range(100)],
            "event_timestamp": pa.array(list(range(100)) * 5, pa.timestamp("us", tz="UTC")),
        }
    )
    refs = ["by_depot:scans_1d", "by_depot:tidemill_revision"]
    found = store.get_historical_features(asked, features=refs).to_arrow()
    return list(zip(*(found[name].to_pylist() for name in found.column_names[2:]), strict=True))


def some_rows(seed: int, segments: Sequence[int | None], parts: int = 12) -> list[Any]:
    """Parts of segments, with rows at the same instants in several of them."""
    draw = random.Random(seed)
    made, revision = [], 0
    for part in range(parts):
        rows = []
        for _ in range(draw.randrange(1, 6)):
            revision += 1
            rows.append((draw.randrange(4), draw.randrange(90), revision, 1000 + revision))
        made.append((draw.choice(segments), part, rows))
    return made


def test_parts_of_a_day_become_one_and_say_the_same(log: OfflineLog) -> None:
    for part, row in enumerate([(7, 10, 1, 5), (7, 10, 2, 6), (8, 3, 1, 1), (7, DAY + 1, 3, 7)]):
        log.write(BY_DEPOT, depot_rows(row), f"p{part}")
    assert planned_merge(log, DATE) == Merge(3, 1)
    assert len(names(log)) == 4
    assert merge_day(log, "depot", DATE) == Merge(3, 1)
    assert names(log) == [f"date={DATE}/merged.parquet", "date=1970-01-02/p3.parquet"]
    assert pq.read_metadata(log.files(0, 10)[0]).num_rows == 2
    assert stands(log) == [(7, 10, 6, 2), (7, DAY + 1, 7, 3), (8, 3, 1, 1)]
    log.write(BY_DEPOT, depot_rows((7, 10, 3, 9)), "late")
    assert merge_day(log, "depot", DATE) == Merge(2, 1)
    assert stands(log)[0] == (7, 10, 9, 3)
    assert merge_day(log, "depot", DATE) == planned_merge(log, DATE) == Merge(1, 1)
    assert merge_day(log, "depot", "1999-01-01") == Merge(0, 0)


def test_log_that_is_not_there_is_not_begun(log: OfflineLog) -> None:
    assert merge_day(log, "depot", DATE) == Merge(0, 0)
    assert not log.directory.parent.exists()


@pytest.mark.parametrize("seed", range(8))
def test_joins_say_the_same_before_and_after(seed: int, log: OfflineLog) -> None:
    for part in some_rows(seed, [None, 0, 1]):
        add(log, part[0], part[1], *part[2])
    log.reach(0, 1, since_us=TIME_MIN, until_us=100)
    before = joined(log)
    assert len(set(before)) > 10
    merge = merge_day(log, "depot", DATE)
    assert merge.after <= 3 < merge.before == 12
    assert joined(log) == before


@pytest.mark.parametrize("seed", range(20))
def test_segments_are_taken_back_after_merges_as_before(seed: int, log: OfflineLog) -> None:
    draw = random.Random(seed)
    parts = some_rows(seed, [None, 1, 2, 3])
    for segment, at_us, rows in parts:
        add(log, segment, at_us, *rows)
        if draw.random() < 0.3:
            merge_day(log, "depot", DATE)
    merge_day(log, "depot", DATE)
    first = draw.randrange(1, 5)
    log.cut_back(first, [50])
    kept = [row for segment, _, rows in parts if (segment or 0) < first for row in rows]
    if kept:
        expected = newest_rows("depot", offline_table(BY_DEPOT, depot_rows(*kept)))
        times = expected["event_timestamp"].cast(pa.int64()).to_pylist()
        revisions = expected["tidemill_revision"].to_pylist()
        assert [(row[1], row[3]) for row in stands(log)] == list(zip(times, revisions, strict=True))
    else:
        assert stands(log) == []


def test_stream_goes_on_with_a_log_whose_days_were_merged(log: OfflineLog) -> None:
    log.write(BY_DEPOT, depot_rows((7, 5, 1, 1)), "history-00000-of-00001-000000")
    log.reach(0, 1, since_us=TIME_MIN, until_us=10)
    for release in range(3):
        add(log, 0, 20 + release, (7, 15 + release, 2 + release, release))
    merge_day(log, "depot", DATE)
    assert names(log) == [
        f"date={DATE}/00000-merged.parquet",
        f"date={DATE}/history-00000-of-00001-000000.parquet",
    ]
    assert log.cut_back(1, [22]), "the cut after segment 0"
    assert len(names(log)) == 2
    assert log.cut_back(0, [10]), "the stream starts over"
    assert stands(log) == [(7, 5, 1, 1)]


class Killed(BaseException):
    """Raised where a signal would kill the process."""


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Allow this number of changes of files and waits for the disk, and no more."""
    done = 0

    def limited(action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return action(*arguments, **options)

        return act

    for where, name in (
        (Path, "unlink"),
        (Path, "replace"),
        (os, "fsync"),
        (pq, "write_table"),
    ):
        monkeypatch.setattr(where, name, limited(getattr(where, name)))


def test_merge_that_was_killed_anywhere_changes_no_answer(log: OfflineLog) -> None:
    steps = 0
    while True:
        shutil.rmtree(log.directory, ignore_errors=True)
        for part in some_rows(5, [None, 1], parts=6):
            add(log, part[0], part[1], *part[2])
        log.reach(0, 1, since_us=TIME_MIN, until_us=100)
        seen, before = stands(log), joined(log)
        with pytest.MonkeyPatch.context() as patches:
            killed_after(patches, steps)
            try:
                merge_day(log, "depot", DATE)
            except Killed:
                ended = False
            else:
                ended = True
        assert stands(log) == seen
        assert joined(log) == before
        if ended:
            break
        assert merge_day(log, "depot", DATE).after == 2
        assert merge_day(log, "depot", DATE) == Merge(2, 2)
        assert not list(log.directory.rglob("*.unfinished"))
        assert joined(log) == before
        log.cut_back(1, [50])
        assert all(name.endswith("/merged.parquet") for name in names(log))
        steps += 1
    assert steps == 2 * (1 + 1 + 2) + 6, (
        "written, on the disk, in its place, the folder too; parts gone"
    )


def test_what_is_merged_is_on_the_disk_before_its_parts_go(
    log: OfflineLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(3):
        add(log, None, part, (7, part, 1, 1))
    done: list[str] = []
    fsync, unlink = os.fsync, Path.unlink

    def synced(opened: int) -> None:
        done.append(Path(f"/proc/self/fd/{opened}").readlink().name)
        fsync(opened)

    def unlinked(path: Path) -> None:
        done.append("part gone")
        unlink(path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    merge_day(log, "depot", DATE)
    merged, *then = done
    assert re.fullmatch(r"merged\.parquet\.\w+\.unfinished", merged)
    assert then == [f"date={DATE}", "part gone", "part gone", "part gone"]


def test_leavings_of_a_killed_merge_go_and_those_of_a_writer_at_work_stay(log: OfflineLog) -> None:
    add(log, None, 0, (7, 1, 1, 1))
    for name in ("merged.aa.unfinished", "00001-merged.bb.unfinished", "history-0.cc.unfinished"):
        (log.day(DATE) / name).write_bytes(b"half")
    merge_day(log, "depot", DATE)
    left = [file.name for file in log.day(DATE).glob("*.unfinished")]
    assert left == ["history-0.cc.unfinished"]


def test_merges_appends_and_joins_beside_each_other(log: OfflineLog) -> None:
    """Two merges and a running stream: no error, no lost rows, the same old answers."""
    add(log, None, 0, *((depot, 3 * depot, 1, depot + 1) for depot in range(5)))
    log.reach(0, 1, since_us=TIME_MIN, until_us=100)
    before = joined(log)
    failed: list[Exception] = []
    over = threading.Event()

    def beside(action: Callable[[], None]) -> threading.Thread:
        def act() -> None:
            try:
                while not over.is_set():
                    action()
            except Exception as error:  # noqa: BLE001 - shown at the end
                failed.append(error)

        thread = threading.Thread(target=act)
        thread.start()
        return thread

    def merge() -> None:
        merge_day(log, "depot", DATE)

    def join() -> None:
        assert joined(log) == before

    threads = [
        *(beside(merge) for _ in range(2)),
        *(beside(join) for _ in range(2)),
    ]
    released = 100
    for release in range(released):
        add(log, 1, 1_000 + release, (release % 7, 500 + release, release, release))
    over.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert failed == []
    merge_day(log, "depot", DATE)
    assert len(names(log)) == 2
    assert sorted(row[2] for row in stands(log) if row[1] >= 500) == list(range(released))


@pytest.mark.parametrize("other", ["cut_back", "merge"])
def test_who_removes_files_waits_for_a_merge(
    other: str, log: OfflineLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in range(3):
        add(log, 1, 10 + release, (7, release, 1, 1))
    has_read, may_write = threading.Event(), threading.Event()
    read = offline_merge._read_alike

    def read_and_wait(parts: Sequence[Path]) -> pa.Table:
        table = read(parts)
        has_read.set()
        may_write.wait(WAIT_S)
        return table

    monkeypatch.setattr(offline_merge, "_read_alike", read_and_wait)
    merge = threading.Thread(target=merge_day, args=(log, "depot", DATE))
    merge.start()
    assert has_read.wait(WAIT_S)
    # A release is added in between; a second merge that did not wait would remove its file.
    add(log, 1, 20, (7, 50, 1, 1))
    action: dict[str, Callable[[], object]] = {
        "cut_back": lambda: log.cut_back(1, [5]),
        "merge": lambda: merge_day(log, "depot", DATE),
    }
    monkeypatch.setattr(offline_merge, "_read_alike", read)
    waits = threading.Thread(target=action[other])
    waits.start()
    waits.join(0.5)
    may_write.set()
    merge.join(WAIT_S)
    waits.join(WAIT_S)
    expected = {"cut_back": [], "merge": [(7, 0), (7, 1), (7, 2), (7, 50)]}
    assert [row[:2] for row in stands(log)] == expected[other]


class OftenMerged(OfflineLog):
    """A log whose first listing is during a merge: it has neither the old files nor the new one."""

    def _list(self, pattern: str, first_us: int, last_us: int) -> list[Path]:
        if pattern == "*.parquet" and not (self.directory / "listed").exists():
            (self.directory / "listed").touch()
            merge_day(self, "depot", DATE)
            return []
        return super()._list(pattern, first_us, last_us)


def test_listing_that_a_merge_went_past_is_done_again(log: OfflineLog) -> None:
    for part in range(3):
        add(log, None, part, (7, part, 1, 1))
    files = OftenMerged(log.directory).files(TIME_MIN, TIME_MAX)
    assert [file.name for file in files] == ["merged.parquet"]


def test_join_whose_files_were_merged_before_it_opened_them_is_done_again(
    log: OfflineLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in some_rows(1, [None]):
        add(log, None, part[1], *part[2])
    before = joined(log)
    listed = OfflineLog.files
    listings: list[int] = []

    def listed_and_merged(self: OfflineLog, first_us: int, last_us: int) -> list[Path]:
        files = listed(self, first_us, last_us)
        listings.append(len(files))
        if len(listings) == 1:
            merge_day(self, "depot", DATE)
        return files

    monkeypatch.setattr(OfflineLog, "files", listed_and_merged)
    assert joined(log) == before
    assert listings == [12, 1]


def test_file_that_is_no_parquet_still_fails_a_join(log: OfflineLog) -> None:
    add(log, None, 0, (7, 1, 1, 1))
    (log.day(DATE) / "spoilt.parquet").write_bytes(b"")
    with pytest.raises(Exception, match="spoilt"):
        joined(log)


def test_file_that_is_not_whole_is_named_and_nothing_goes(log: OfflineLog) -> None:
    for part in range(2):
        add(log, None, part, (7, part, 1, 1))
    (log.day(DATE) / "spoilt.parquet").write_bytes(b"PAR1")
    before = names(log)
    with pytest.raises(StoreError, match=r"spoilt\.parquet is not a complete Parquet file"):
        merge_day(log, "depot", DATE)
    assert names(log) == before


def test_file_of_other_columns_is_named_and_nothing_goes(log: OfflineLog) -> None:
    add(log, None, 0, (7, 1, 1, 1))
    pq.write_table(pa.table({"depot": [1]}), log.day(DATE) / "other.parquet")
    before = names(log)
    with pytest.raises(InputError, match=r"other\.parquet has the columns depot, and "):
        merge_day(log, "depot", DATE)
    assert names(log) == before


def test_rows_of_feasts_own_write_path_are_merged_too(log: OfflineLog) -> None:
    """Its columns may be nullable, and in another order."""
    add(log, None, 0, (7, 1, 1, 10))
    store = opened(log.directory.parents[2])
    view = store.get_feature_view("by_depot")
    rows = offline_table(BY_DEPOT, depot_rows((8, 2, 1, 20)))
    store.write_to_offline_store(view.name, rows.to_pandas(), reorder_columns=True)
    (part,) = log.day(DATE).glob("written-*")
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.select(table.column_names[::-1]), part)
    before = joined(log)
    assert merge_day(log, "depot", DATE) == Merge(2, 1)
    assert joined(log) == before
    assert stands(log) == [(7, 1, 10, 1), (8, 2, 20, 1)]


@pytest.mark.parametrize("seed", range(6))
def test_files_of_a_stream_that_goes_on_are_joined_and_say_the_same(
    seed: int, log: OfflineLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every segment that counts becomes a file, and few files; those after it are left alone."""
    monkeypatch.setattr(segment_names, "TOGETHER", 4)
    plain = OfflineLog.of(tmp_path / "plain", BY_DEPOT)
    draw, joiner = random.Random(seed), SegmentJoiner(log, "depot")
    begun, revision = None, 0
    for segment in range(1, 41):
        for part in range(draw.randrange(4)):
            rows = []
            for _ in range(draw.randrange(1, 4)):
                revision += 1
                day = draw.choice([0, 0, DAY])
                rows.append((draw.randrange(4), day + draw.randrange(90), revision, revision))
            for one in (log, plain):
                add(one, segment, 10 * segment + part, *rows)
        if draw.random() < 0.5:
            joiner.join(segment - draw.randrange(2))
        if draw.random() < 0.1:
            joiner = SegmentJoiner(log, "depot")  # another run of the stream
        if draw.random() < 0.1:
            merge_day(log, "depot", DATE)  # somebody merges by hand
        assert stands(log) == stands(plain)
        begun = segment
    joiner.join(begun or 0)
    assert stands(log) == stands(plain)
    # 40 segments: at most 2 of 16, 3 of 4 and 3 of 1, and what such files have between them.
    assert len(names(log)) <= 2 * 12 < len(names(plain))
    # What counts is never taken back, and all of it is when the stream starts over.
    log.cut_back(41, [10**6])
    assert stands(log) == stands(plain)
    log.cut_back(0, [0])
    assert names(log) == []


def test_an_output_that_comes_late_is_joined_with_its_segment(log: OfflineLog) -> None:
    joiner = SegmentJoiner(log, "depot")
    add(log, 1, 1, (7, 10, 1, 5))
    add(log, 2, 2, (7, 20, 2, 6))
    joiner.join(1)
    assert names(log) == [
        f"date={DATE}/00001-merged.parquet",
        f"date={DATE}/00002-00000-of-00001-000000000002.parquet",
    ]
    add(log, 1, 3, (7, 10, 1, 5))
    joiner.join(2)
    assert names(log) == [f"date={DATE}/0000{n}-merged.parquet" for n in (1, 2)]
    assert stands(log) == [(7, 10, 5, 1), (7, 20, 6, 2)]
