"""Eight writers race over 4,000 keys, are killed and restart: no key may end up wrong.

Two of the writers get each publication, in an order of their own and in part twice; half of the
publications are corrections, with the same event timestamp and a higher revision. Each writer is
killed (-9) in the middle of a write twice and restarts a few writes earlier. What Feast's own
stores do with two publications in the wrong order, by one writer, stands beside it.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import pytest
from feast import FeatureStore, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore

from tests.support import fork_server
from tests.support.feast_definitions import feast_objects
from tests.support.parcels import BY_DEPOT, DEPOT_SPACE, PARCELS, depot_rows, feast_rows
from tests.support.redis_server import running
from tidemill.features.feast_objects import REVISION
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.sqlite.database import SqliteDatabase

KEYS = 4_000
WRITERS = 8
LIVES = 3
REPEATED_WRITES = 3

Publication = tuple[int, int, int, int]
"""Depot, event timestamp, revision, value."""


def _value(time: int, revision: int) -> int:
    return 100 * time + revision


NEWEST = (2, 2)
"""The newest publication of each key: event timestamp and revision."""

PUBLICATIONS: list[Publication] = [
    (key, time, revision, _value(time, revision))
    for key in range(KEYS)
    for time, revision in ((1, 0), (1, 1), (2, 1), NEWEST)
]


def _writes(writer: int, rows_a_write: int) -> list[list[Publication]]:
    """The publications of a writer: its quarter of them, some twice, shuffled."""
    own = [
        publication
        for number, publication in enumerate(PUBLICATIONS)
        if writer in (number % WRITERS, number // 7 % WRITERS)
    ]
    chance = random.Random(writer)
    own += chance.sample(own, len(own) // 10)
    chance.shuffle(own)
    return [own[at : at + rows_a_write] for at in range(0, len(own), rows_a_write)]


class Store(Protocol):
    """A store in the race; it is pickled for the writers."""

    @property
    def rows_a_write(self) -> int:
        """Number of publications that a writer writes at once."""

    def write(self, rows: Sequence[Publication], number: int) -> None:
        """Write publications; ``number`` counts the writes of a writer."""

    def standing(self) -> list[tuple[int, int] | None]:
        """Return revision and value of every key."""


@dataclass(frozen=True)
class Ordered:
    """One of our databases, written in any order; `fills_test` races writers of releases."""

    database: OnlineDatabase
    rows_a_write: int = 50

    def write(self, rows: Sequence[Publication], number: int) -> None:
        batch = online_rows(BY_DEPOT, depot_rows(*rows), 0)
        self.database.write(DEPOT_SPACE, batch)

    def standing(self) -> list[tuple[int, int] | None]:
        keys = online_rows(BY_DEPOT, depot_rows(*((key, 1, 0, 0) for key in range(KEYS))), 0).keys
        ((_, rows),) = self.database.read([(DEPOT_SPACE, keys)])
        return [
            None if row is None else (row.revision, int.from_bytes(row.cells[:8], "little"))
            for row in rows
        ]


@dataclass(frozen=True)
class Stock:
    """One of Feast's own online stores, by its own write path."""

    config: RepoConfig
    table: FeatureView
    store: OnlineStore
    rows_a_write: int = 500

    def write(self, rows: Sequence[Publication], number: int) -> None:
        protos = feast_rows(BY_DEPOT, depot_rows(*rows))
        while True:
            try:
                self.store.online_write_batch(self.config, self.table, protos, progress=None)
                return
            except sqlite3.OperationalError as error:  # it waits for a lock for seconds only
                if "locked" not in str(error):
                    raise

    def standing(self) -> list[tuple[int, int] | None]:
        rows = depot_rows(*((key, 1, 0, 0) for key in range(KEYS)))
        keys = [row[0] for row in feast_rows(BY_DEPOT, rows)]
        found = self.store.online_read(self.config, self.table, keys)
        return [
            None if values is None else (values[REVISION].int64_val, values["scans_1d"].int64_val)
            for _, values in found
        ]


def _stock(folder: Path, online_store: dict[str, Any]) -> Stock:
    config = RepoConfig(
        project="parcels",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=online_store,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(feast_objects(PARCELS, str(folder)).all)
    kind = SqliteOnlineStore if online_store["type"] == "sqlite" else RedisOnlineStore
    return Stock(config, store.get_feature_view("by_depot"), kind())


def _progress(folder: Path, writer: int) -> Path:
    return folder / f"writer-{writer}"


def _run_writer(store: Store, folder: Path, writer: int, life: int) -> None:
    """Start a few writes before the end of the last life; die in a write, but not in the last."""
    progress = _progress(folder, writer)
    begin = max(int(progress.read_text()) - REPEATED_WRITES, 0) if progress.exists() else 0
    writes = _writes(writer, store.rows_a_write)
    death = len(writes) * (life + 1) // LIVES if life < LIVES - 1 else None
    for number in range(begin, len(writes)):
        if number == death:
            delay_s = random.Random(writer * LIVES + life).uniform(0, 0.004)
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        store.write(writes[number], number)
        if death is None or number < death:
            progress.write_text(str(number + 1))
    while death is not None:
        signal.pause()


def _race(store: Store, folder: Path) -> int:
    """Let the writers race; return the number of wrong keys."""
    processes = fork_server.processes()
    exits: list[list[int | None]] = [[] for _ in range(WRITERS)]
    running: dict[int, tuple[int, BaseProcess]] = {}

    def start(writer: int) -> None:
        life = len(exits[writer])
        process = processes.Process(target=_run_writer, args=(store, folder, writer, life))
        process.start()
        running[process.sentinel] = (writer, process)

    for writer in range(WRITERS):
        start(writer)
    while running:
        for sentinel in wait(running):
            writer, process = running.pop(sentinel)
            process.join()
            exits[writer].append(process.exitcode)
            if len(exits[writer]) < LIVES:
                start(writer)
    assert exits == [[-signal.SIGKILL] * (LIVES - 1) + [0]] * WRITERS
    return _wrong(store)


def _wrong(store: Store) -> int:
    right = (NEWEST[1], _value(*NEWEST))
    found = store.standing()
    assert len(found) == KEYS
    return sum(one != right for one in found)


@contextmanager
def _sqlite(folder: Path) -> Iterator[tuple[Ordered, Callable[[], Stock]]]:
    database = SqliteDatabase(str(folder / "online.db"))
    yield (
        Ordered(database),
        lambda: _stock(folder, {"type": "sqlite", "path": str(folder / "stock.db")}),
    )


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[Ordered, Callable[[], Stock]]]:
    with running(folder / "redis") as server:
        address = f"127.0.0.1:{server.port}"
        yield (
            Ordered(RedisDatabase(server.place)),
            lambda: _stock(folder, {"type": "redis", "connection_string": address}),
        )


STORES = {"sqlite": _sqlite, "redis": _redis}


@pytest.mark.parametrize("kind", STORES)
def test_no_key_is_wrong_after_the_race(tmp_path: Path, kind: str) -> None:
    with STORES[kind](tmp_path) as (ordered, _):
        ordered.database.create([DEPOT_SPACE])
        wrong = _race(ordered, tmp_path)
        assert wrong == 0, f"{wrong} of {KEYS} keys are wrong"


@pytest.mark.parametrize(
    ("kind", "first", "then"), [("sqlite", NEWEST, (1, 1)), ("redis", (2, 1), NEWEST)]
)
def test_what_feasts_own_store_does_with_one_writer(
    tmp_path: Path, kind: str, first: tuple[int, int], then: tuple[int, int]
) -> None:
    """SQLite lets an older one overwrite a newer one; Redis drops a correction. Ours do neither."""
    with STORES[kind](tmp_path) as (ordered, stock):
        ordered.database.create([DEPOT_SPACE])
        for store, wrong in ((ordered, 0), (stock(), KEYS)):
            for number, (time, revision) in enumerate((first, then)):
                value = _value(time, revision)
                for at in range(0, KEYS, 1_000):
                    keys = range(at, at + 1_000)
                    store.write([(key, time, revision, value) for key in keys], number)
            assert _wrong(store) == wrong
