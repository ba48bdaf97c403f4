"""The change-point log on disk."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.parcels import BY_COURIER, BY_DEPOT, courier_rows, depot_rows
from tidemill.features.contract import DAY, LATEST_EVENT, TIME_MAX, TIME_MIN
from tidemill.features.errors import InputError, LostPublications, OutputConflict, StoreError
from tidemill.serving.offline.log import OfflineLog, Span


@pytest.fixture
def log(tmp_path: Path) -> OfflineLog:
    return OfflineLog(tmp_path / "by_depot")


def _files(log: OfflineLog) -> list[str]:
    return sorted(str(f.relative_to(log.directory)) for f in log.directory.rglob("*.parquet"))


def test_rows_stand_by_the_day_of_their_event_timestamp(log: OfflineLog) -> None:
    log.write(BY_DEPOT, depot_rows((7, DAY - 1, 1, 1), (7, DAY, 2, 2), (8, -1, 1, 3)), "p")
    assert _files(log) == [
        "date=1969-12-31/p.parquet",
        "date=1970-01-01/p.parquet",
        "date=1970-01-02/p.parquet",
    ]
    table = pq.read_table(log.directory / "date=1970-01-02" / "p.parquet", partitioning=None)
    assert table.to_pylist() == [
        {
            "depot": 7,
            "event_timestamp": datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC),
            "scans_1d": 2,
            "tidemill_valid_until": 10**15,
            "tidemill_revision": 2,
        }
    ]


def test_rows_of_another_day_between_two_of_one_stand_in_their_own(log: OfflineLog) -> None:
    log.write(BY_DEPOT, depot_rows((7, DAY - 1, 1, 1), (8, DAY, 2, 2), (9, DAY - 2, 1, 3)), "p")
    depots = {
        day: pq.read_table(log.day(day) / "p.parquet", partitioning=None)
        .column("depot")
        .to_pylist()
        for day in log.days()
    }
    assert depots == {"1970-01-01": [7, 9], "1970-01-02": [8]}


def test_part_has_the_highest_revision_of_an_instant_in_order(log: OfflineLog) -> None:
    rows = [(8, 5, 1, 1), (7, 9, 4, 40), (7, 9, 6, 60), (7, 9, 5, 50), (7, 2, 3, 30)]
    (file,) = log.write(BY_DEPOT, depot_rows(*rows), "p")
    table = pq.read_table(file, partitioning=None)
    assert table.column("depot").to_pylist() == [7, 7, 8]
    assert table.column("scans_1d").to_pylist() == [30, 60, 1]


def test_same_part_replaces_itself(log: OfflineLog) -> None:
    for scans in (1, 2):
        log.write(BY_DEPOT, depot_rows((7, 10, 1, scans)), "p")
    assert _files(log) == ["date=1970-01-01/p.parquet"]
    assert pq.read_table(log.files(0, 100)[0]).column("scans_1d").to_pylist() == [2]
    assert not list(log.directory.rglob("*.unfinished"))


def test_only_days_of_a_span_are_read_and_files_of_no_day_always(log: OfflineLog) -> None:
    for day in range(4):
        log.write(BY_DEPOT, depot_rows((7, day * DAY, 1, 1)), "p")
    (log.directory / "of-no-day.parquet").touch()
    found = [str(f.relative_to(log.directory)) for f in log.files(DAY + 5, 2 * DAY)]
    assert found == [
        "of-no-day.parquet",
        "date=1970-01-02/p.parquet",
        "date=1970-01-03/p.parquet",
    ]
    assert len(log.files(TIME_MIN, TIME_MAX)) == 5


def test_calendar_has_a_first_and_a_last_day(log: OfflineLog) -> None:
    log.write(BY_DEPOT, depot_rows((7, LATEST_EVENT, 1, 1)), "p")
    assert _files(log) == ["date=9999-12-31/p.parquet"]
    assert log.files(LATEST_EVENT, TIME_MAX) == log.files(TIME_MIN, TIME_MAX)


def test_other_columns_are_refused(log: OfflineLog) -> None:
    with pytest.raises(InputError, match="view 'by_depot' must have the columns"):
        log.write(BY_DEPOT, courier_rows({"entity_key": b"x"}), "p")


@pytest.mark.parametrize("part", ["", "a/b", ".hidden", "_reached"])
def test_part_that_is_no_file_name_is_refused(log: OfflineLog, part: str) -> None:
    with pytest.raises(InputError, match="cannot name a part"):
        log.write(BY_DEPOT, depot_rows((7, 1, 1, 1)), part)


def test_log_reaches_as_far_as_its_last_shard(log: OfflineLog) -> None:
    assert log.reached() is None
    log.reach(0, 2, since_us=TIME_MIN, until_us=50)
    reached = log.reached()
    assert reached is not None
    assert reached.first_us > reached.last_us, "a shard that has not reported covers nothing"
    log.reach(1, 2, since_us=10, until_us=70)
    assert log.reached() == Span(10, 50)
    log.reach(0, 2, since_us=50, until_us=90)
    assert log.reached() == Span(10, 70)


def test_older_span_changes_nothing(log: OfflineLog) -> None:
    log.reach(0, 1, since_us=0, until_us=50)
    log.reach(0, 1, since_us=10, until_us=20)
    assert log.reached() == Span(0, 50)


def test_rows_that_do_not_join_on_are_refused_and_not_written(log: OfflineLog) -> None:
    rows = depot_rows((7, 10, 1, 1))
    log.append(BY_DEPOT, {1: rows}, shard=0, shards=1, since_us=TIME_MIN, until_us=20)
    before = _files(log)
    rows = depot_rows((7, 40, 2, 2))
    with pytest.raises(LostPublications, match=r"ends at \S+000020Z, .* continue from \S+30Z"):
        log.append(BY_DEPOT, {3: rows}, shard=0, shards=1, since_us=30, until_us=50)
    assert _files(log) == before
    assert log.reached() == Span(TIME_MIN, 20)


def test_repeated_append_changes_nothing_also_in_another_order(log: OfflineLog) -> None:
    rows = [(7, 10, 1, 1), (8, 12, 1, 3)]
    for order in (rows, rows[::-1]):
        log.append(BY_DEPOT, {4: depot_rows(*order)}, shard=0, shards=1, since_us=0, until_us=20)
    assert len(_files(log)) == 1
    other = {4: depot_rows((7, 10, 1, 2))}
    with pytest.raises(OutputConflict, match=r"00000-00000-of-00001-000000000004.*other content"):
        log.append(BY_DEPOT, other, shard=0, shards=1, since_us=0, until_us=20)


def test_a_part_is_a_release_however_appends_group_them(log: OfflineLog, tmp_path: Path) -> None:
    releases = {n: depot_rows((7, 10 + n, n, n)) for n in (1, 2, 3)}
    log.append(BY_DEPOT, releases, shard=0, shards=1, since_us=0, until_us=20)
    whole = {path.name: path.read_bytes() for path in log.directory.rglob("*.parquet")}
    assert len(whole) == 3
    for numbers in ((1,), (1, 2), (2, 3)):
        some = {n: releases[n] for n in numbers}
        log.append(BY_DEPOT, some, shard=0, shards=1, since_us=0, until_us=20)
    assert {path.name: path.read_bytes() for path in log.directory.rglob("*.parquet")} == whole


def test_another_number_of_shards_is_refused(log: OfflineLog) -> None:
    log.reach(0, 2, since_us=0, until_us=20)
    rows = depot_rows((7, 1, 1, 1))
    with pytest.raises(StoreError, match="it has 2 shards, and a writer has 3"):
        log.append(BY_DEPOT, {1: rows}, shard=0, shards=3, since_us=0, until_us=30)
    assert _files(log) == []


def test_log_without_a_file_has_no_columns(log: OfflineLog) -> None:
    with pytest.raises(StoreError, match="there is no file in it"):
        log.schema()


def test_log_of_a_view_stands_below_the_root_by_definition(tmp_path: Path) -> None:
    one, other = (OfflineLog.of(tmp_path, view).directory for view in (BY_DEPOT, BY_COURIER))
    assert one == tmp_path / "by_depot" / BY_DEPOT.hash
    assert other != one


def test_part_with_the_name_of_a_segments_is_refused(log: OfflineLog) -> None:
    """`cut_back` would remove it like a part that a stream has added."""
    with pytest.raises(InputError, match="segment 12 of a stream"):
        log.write(BY_DEPOT, depot_rows((7, 1, 1, 1)), "00012-mine")


def test_cut_back_takes_what_segments_have_added_and_nothing_else(log: OfflineLog) -> None:
    log.write(BY_DEPOT, depot_rows((7, 5, 1, 1)), "history-00000-of-00001-000000")
    log.write(BY_DEPOT, depot_rows((7, 6, 1, 1)), "written-0123")
    log.reach(0, 1, since_us=TIME_MIN, until_us=10)
    for segment in range(3):
        log.append(
            BY_DEPOT,
            {segment: depot_rows((7, 10 * segment + 15, 1, 1))},
            shard=0,
            shards=1,
            since_us=10 * segment + 10,
            until_us=10 * segment + 20,
            segment=segment,
        )
    assert log.cut_back(2, [30])
    assert [file.name[:7] for file in log.files(0, 99)] == [
        "00000-0",
        "00001-0",
        "history",
        "written",
    ]
    assert not log.cut_back(1, [35]), "the log ends at 30"
    assert log.cut_back(0, [10])
    assert [file.name[:7] for file in log.files(0, 99)] == ["history", "written"]
    assert log.reached() == Span(TIME_MIN, 10)


def test_days_before_that_of_the_slowest_shard_get_no_more_rows(log: OfflineLog) -> None:
    assert log.ended_before() is None
    log.reach(0, 2, since_us=0, until_us=9 * DAY)
    assert str(log.ended_before()) < "1970", "a shard that has not reported can add to any day"
    log.reach(1, 2, since_us=0, until_us=3 * DAY + 1)
    assert log.ended_before() == "1970-01-04"
