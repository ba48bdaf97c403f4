"""Writing parcels to a store that is away, has lost writes, or is overtaken."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.fills import Target, opened
from tests.support.parcels import BY_DEPOT, DEPOT_SPACE, project
from tidemill.features.errors import LostPublications, NoKeySpace, StoreError, StoreUnavailable
from tidemill.pipelines.publish import store_writer
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_writer import Outages, StoreWriter, retry_while_unavailable
from tidemill.pipelines.stream.lost_writes import LOST_WRITES
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.rows import Row, RowBatch, online_keys
from tidemill.serving.online.sqlite.database import SqliteDatabase

PROJECT = project(BY_DEPOT)
RUN = "a run"


def parcel(target: Target, since: int | None, frontier: int, shard: int = 0) -> Parcel:
    """A parcel of one of two shards, from one frontier to another."""
    key = online_keys("depot", pa.array([shard]))[0]
    row = Row(key, frontier - 1, 1, 10**15, shard, encode_row(DEPOT_SPACE.dtypes, [frontier]))
    return target.parcel(row, since_us=since, frontier_us=frontier, shard=shard)


def run_fills(target: Target) -> RunFills:
    """The fills of a run that writes a target."""
    return RunFills({"by_depot": target.fill})


def frontiers(database: SqliteDatabase) -> dict[int, int]:
    return dict(database.read([(DEPOT_SPACE, [])])[0].frontiers.by_shard)


class Counted:
    """A database that counts calls, and can call a function before each."""

    def __init__(self, database: SqliteDatabase, before: dict[int, Parcel] | None = None) -> None:
        self.database, self.calls, self._before = database, 0, before or {}
        self.name = database.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        self.calls += 1
        if self.calls in self._before:
            self.database.publish([self._before[self.calls]])
        return self.database.publish(parcels)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    made = SqliteDatabase(str(tmp_path / "online.db"))
    yield made
    made.close()


@pytest.fixture
def target(database: SqliteDatabase) -> Target:
    return opened(database, [DEPOT_SPACE], shards=2)[0]


@pytest.fixture
def run() -> Iterator[str]:
    """A run whose operators of both shards are in this process."""
    with LOST_WRITES.of(RUN):
        assert [LOST_WRITES.operates(RUN, "by_depot", shard) for shard in (0, 1)] == [False, False]
        yield RUN


def test_lost_writes_stay_noted_until_the_whole_shard_comes(
    database: SqliteDatabase, target: Target, run: str
) -> None:
    counted = Counted(database)
    writer = StoreWriter(counted, PROJECT, run_fills(target), run)  # type: ignore[arg-type]
    database.publish([parcel(target, None, 10), parcel(target, None, 10, shard=1)])
    writer.write([parcel(target, 20, 30), parcel(target, 10, 30, shard=1)])
    assert frontiers(database) == {1: 30}
    assert [LOST_WRITES.operates(run, "by_depot", shard) for shard in (0, 1)] == [True, False]
    before = counted.calls
    writer.write([parcel(target, 30, 40)])  # the loss is noted: no retry
    assert counted.calls == before + 2
    assert frontiers(database) == {1: 30}
    writer.write([parcel(target, None, 50), parcel(target, 30, 50, shard=1)])
    assert frontiers(database) == {0: 50, 1: 50}
    assert not LOST_WRITES.operates(run, "by_depot", 0)


def test_a_hole_that_somebody_else_mended_is_closed(
    database: SqliteDatabase, target: Target, run: str
) -> None:
    writer = StoreWriter(database, PROJECT, run_fills(target), run)
    writer.write([parcel(target, 20, 30)])
    assert LOST_WRITES.operates(run, "by_depot", 0)
    database.publish([parcel(target, None, 30)])
    writer.write([parcel(target, 30, 40)])
    assert not LOST_WRITES.operates(run, "by_depot", 0)


def test_an_emptied_store_gets_its_key_spaces_again(
    database: SqliteDatabase, target: Target, run: str
) -> None:
    database.drop([DEPOT_SPACE])
    StoreWriter(database, PROJECT, run_fills(target), run).write(
        [parcel(target, 20, 30), parcel(target, None, 30, shard=1)]
    )
    assert frontiers(database) == {1: 30}
    assert [LOST_WRITES.operates(run, "by_depot", shard) for shard in (0, 1)] == [True, False]


@pytest.mark.parametrize("run_name", [None, "a run whose operators are in another process"])
def test_without_the_operators_in_this_process_a_loss_is_an_error(
    run_name: str | None, database: SqliteDatabase, target: Target, run: str
) -> None:
    writer = StoreWriter(database, PROJECT, run_fills(target), run_name)
    with pytest.raises(LostPublications, match="`tidemill republish`"):
        writer.write([parcel(target, 20, 30)])
    database.drop([DEPOT_SPACE])
    with pytest.raises(NoKeySpace, match="`tidemill republish`"):
        writer.write([parcel(target, None, 30)])
    assert database.spaces() == []
    assert not LOST_WRITES.operates(run, "by_depot", 0)


def test_a_parcel_that_overtook_another_waits_for_it(
    database: SqliteDatabase, target: Target, run: str
) -> None:
    counted = Counted(database, before={4: parcel(target, None, 20)})
    StoreWriter(counted, PROJECT, run_fills(target), run).write([parcel(target, 20, 30)])  # type: ignore[arg-type]
    assert not LOST_WRITES.operates(run, "by_depot", 0)
    assert frontiers(database) == {0: 30}


def test_the_store_error_of_a_failed_run_is_raised_whatever_the_engine_raises(
    database: SqliteDatabase, target: Target
) -> None:
    def fail(name: str) -> None:
        with LOST_WRITES.of("one"):
            LOST_WRITES.operates(name, "by_depot", 0)
            other = parcel(target, None, 20)
            cells = [encode_row(DEPOT_SPACE.dtypes, [7])]
            rows = RowBatch(
                other.rows.keys,
                other.rows.event_timestamps,
                other.rows.revisions,
                other.rows.valid_until,
                0,
                cells,
            )
            writer = StoreWriter(database, PROJECT, run_fills(target), name)
            writer.write([other])
            with pytest.raises(StoreError, match="differ"):
                writer.write([target.batch(rows, frontier_us=20)])
            raise RuntimeError("nothing in progress")

    with pytest.raises(StoreError, match="differ"):
        fail("one")
    with LOST_WRITES.of("another"), pytest.raises(RuntimeError, match="nothing in progress"):
        fail("another")


def test_every_failure_is_tried_again_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []

    def action() -> str:
        tries.append(None)
        if len(tries) < 4:
            raise StoreUnavailable("away")
        return "done"

    monkeypatch.setattr(store_writer, "OUTAGES", Outages())
    assert retry_while_unavailable(action, "store") == "done"
    assert len(tries) == 4

    def refuse() -> None:
        tries.append(None)
        raise StoreError("wrong password")

    with pytest.raises(StoreError, match=r"^wrong password$"):
        retry_while_unavailable(refuse, "store")
    assert len(tries) == 5


def test_waits_are_anything_up_to_a_limit_that_doubles() -> None:
    import tenacity

    for attempt in range(1, 12):
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        most = min(0.05 * 2 ** (attempt - 1), 5.0)
        waits = [store_writer._BACK_OFF(state) for _ in range(400)]
        assert max(waits) <= most
        assert max(waits) > 0.9 * most
        assert min(waits) < 0.1 * most


def test_an_outage_is_said_every_ten_seconds_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    outages = Outages(lambda: now[0])
    error = StoreUnavailable("online store redis://there, key space a__b__c: start Redis there")
    outages.over("store")
    with caplog.at_level(logging.WARNING):
        for tenth in range(251):
            now[0] = tenth / 10
            outages.failed("store", error, 600_000_000)
        outages.over("store")
        outages.over("store")
    assert [record.getMessage() for record in caplog.records] == [
        *(
            f"the online store takes no writes for {seconds} s now (the stream waits, and gives "
            f"up after 600 s: online_store.give_up_after): {error}"
            for seconds in (0, 10, 20)
        ),
        "store takes writes again, after 25.0 s",
    ]
