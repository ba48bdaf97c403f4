"""Writing parcels to a store that is away, or has lost writes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.fills import Target, opened
from tests.support.logged import logged_by
from tests.support.parcels import DEPOT_SPACE
from tidemill.features.errors import (
    ConflictingPublication,
    LostPublications,
    NoKeySpace,
    StoreError,
    StoreUnavailable,
)
from tidemill.pipelines.publish import store_writer
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_writer import Outages, StoreWriter, retry_while_unavailable
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.rows import Row, RowBatch, online_keys
from tidemill.serving.online.sqlite.database import SqliteDatabase


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


class Losing:
    """A database that counts calls, and can lose all before some of them."""

    def __init__(self, database: SqliteDatabase, before: Collection[int] = ()) -> None:
        self.database, self.calls, self._before = database, 0, before
        self.name = database.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        self.calls += 1
        if self.calls in self._before:
            self.database.drop([DEPOT_SPACE])
        return self.database.publish(parcels)


class Operators:
    """Operators of both shards, which have reached a frontier."""

    def __init__(self, target: Target, frontier: int) -> None:
        self.frontier, self._target = frontier, target
        self.asked: list[tuple[str, int]] = []

    def whole(self, view: str, shard: int) -> list[Parcel]:
        self.asked.append((view, shard))
        return [parcel(self._target, None, self.frontier, shard)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    made = SqliteDatabase(str(tmp_path / "online.db"))
    yield made
    made.close()


@pytest.fixture
def target(database: SqliteDatabase) -> Target:
    return opened(database, [DEPOT_SPACE], shards=2)[0]


def writer_to(
    database: SqliteDatabase | Losing, target: Target, give_up_after_us: int = 5_000_000
) -> StoreWriter:
    return StoreWriter(database, run_fills(target), give_up_after_us)  # type: ignore[arg-type]


def test_a_shard_whose_writes_were_lost_is_written_whole_in_the_same_call(
    database: SqliteDatabase, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    counted, operators = Losing(database), Operators(target, 30)
    writer = writer_to(counted, target)
    database.publish([parcel(target, None, 10), parcel(target, None, 10, shard=1)])
    writer.write([parcel(target, 20, 30), parcel(target, 10, 30, shard=1)], operators.whole)
    assert frontiers(database) == {0: 30, 1: 30}
    assert operators.asked == [("by_depot", 0)]
    # Together, one by one, and the whole shard.
    assert counted.calls == 1 + 2 + 1
    said = [record.getMessage() for record in logged_by(store_writer.__name__, caplog)]
    assert [text.partition(":")[0] for text in said] == [
        "the whole shard is published again",
        f"{database.name}, view by_depot, shard 0".partition(":")[0],
    ]
    writer.write([parcel(target, 30, 40), parcel(target, 30, 40, shard=1)], operators.whole)
    assert frontiers(database) == {0: 40, 1: 40}
    assert counted.calls == 4 + 1


def test_until_a_shard_is_whole_its_frontier_is_withdrawn(
    database: SqliteDatabase, target: Target
) -> None:
    database.publish([parcel(target, None, 10), parcel(target, None, 10, shard=1)])
    seen: list[dict[int, int]] = []

    def whole(_: str, shard: int) -> list[Parcel]:
        seen.append(frontiers(database))
        return [parcel(target, None, 30, shard)]

    writer_to(database, target).write([parcel(target, 20, 30)], whole)
    assert seen == [{1: 10}]
    assert frontiers(database) == {0: 30, 1: 10}


def test_an_emptied_store_gets_its_key_spaces_and_shards_again(
    database: SqliteDatabase, target: Target
) -> None:
    operators = Operators(target, 30)
    database.drop([DEPOT_SPACE])
    writer_to(database, target).write(
        [parcel(target, 20, 30), parcel(target, 20, 30, shard=1)], operators.whole
    )
    assert frontiers(database) == {0: 30, 1: 30}
    assert operators.asked == [("by_depot", 0), ("by_depot", 1)]


def test_a_store_that_loses_writes_while_it_is_mended_is_mended_again(
    database: SqliteDatabase, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "_FIRST_WAIT_S", 0.001)
    operators = Operators(target, 30)
    # Before the whole shards are written, and when they are written alone.
    losing = Losing(database, before=(4, 6))
    writer_to(losing, target).write(
        [parcel(target, 20, 30), parcel(target, 20, 30, shard=1)], operators.whole
    )
    assert frontiers(database)[1] == 30
    assert losing.calls > 6
    writer_to(database, target).write(
        [parcel(target, 30, 40), parcel(target, 30, 40, shard=1)], Operators(target, 40).whole
    )
    assert frontiers(database) == {0: 40, 1: 40}


def test_a_store_that_loses_every_write_is_given_up(
    database: SqliteDatabase, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "_FIRST_WAIT_S", 0.001)

    def lost(_: str, shard: int) -> list[Parcel]:
        return [parcel(target, 90, 100, shard)]  # it builds on what never is there

    with pytest.raises((LostPublications, NoKeySpace), match="`tidemill republish`"):
        writer_to(database, target, 50_000).write([parcel(target, 20, 30)], lost)


def test_a_contradiction_is_no_loss(database: SqliteDatabase, target: Target) -> None:
    operators, writer = Operators(target, 20), writer_to(database, target)
    writer.write([parcel(target, None, 20)], operators.whole)
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
    with pytest.raises(ConflictingPublication, match="differ"):
        writer.write([target.batch(rows, frontier_us=20)], operators.whole)
    assert operators.asked == []


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
    assert [record.getMessage() for record in logged_by(store_writer.__name__, caplog)] == [
        *(
            f"the online store takes no writes for {seconds} s now (the stream waits, and gives "
            f"up after 600 s: online_store.give_up_after): {error}"
            for seconds in (0, 10, 20)
        ),
        "store takes writes again, after 25.0 s",
    ]
