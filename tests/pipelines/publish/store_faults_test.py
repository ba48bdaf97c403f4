"""The stream, while its online store fails in the middle of the run and comes back.

The store is a real Redis or an SQLite file, the run a real one. A fault strikes right before a
publication, and what mends it happens once a publication has failed: nothing here sleeps and hopes.
"""

from __future__ import annotations

import logging
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.redis_server import RedisServer, running
from tidemill.features.contract import HOUR, ReadStatus
from tidemill.features.errors import ConflictingPublication, StoreError, StoreUnavailable
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io import replay
from tidemill.pipelines.publish import publish
from tidemill.pipelines.recovery.republish import mend_store
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run import stream as stream_module
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online import reader
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.reader import FRONTIER, STATUS, OnlineReader
from tidemill.serving.online.sqlite import connections
from tidemill.serving.stores.online_places import OnlinePlace, SqlitePlace

SAMPLE = 5
# A busy machine makes few and large bundles on Prism: perhaps one publication follows this one.
STRIKE_AT = {"fnapi": 8, "prism": 3}
KEYS = {"by_driver": pa.array([f"d{n}" for n in range(6)]), "by_zone": pa.array(range(4))}

KEPT = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("faults")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    return config


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)
    # Every poll is a bundle.
    monkeypatch.setattr(replay._Read, "moment_s", 0.0)


def at(backfilled: Configuration, root: Path, place: OnlinePlace) -> Configuration:
    """A copy of a run, with this online store."""
    shutil.copytree(backfilled.root, root)
    config = configuration(backfilled.path.parent, root)
    return replace(config, online_store=place, stream=replace(config.stream, poll_rows=15))


@dataclass
class Publications:
    """Calls a function before each publication of a run, with its number; failed ones count."""

    happenings: dict[int, Callable[[Sequence[Parcel]], None]] = field(default_factory=dict)
    count: int = 0
    failures: int = 0
    failed: threading.Event = field(default_factory=threading.Event)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = self
        lock = threading.Lock()

        class Watched:
            def __init__(self, place: OnlinePlace) -> None:
                self._database = open_database(place)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._database, name)

            def publish(self, parcels: Sequence[Parcel]) -> list[int]:
                with lock:
                    seen.count += 1
                    happening = seen.happenings.pop(seen.count, None)
                if happening is not None:
                    happening(parcels)
                try:
                    return self._database.publish(parcels)
                except StoreUnavailable:
                    seen.failures += 1
                    seen.failed.set()
                    raise

        monkeypatch.setattr(publish, "open_database", Watched)


def run(config: Configuration, engine: str = "fnapi", **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), engine=engine, **options)


def assert_whole(config: Configuration, figures: dict[str, Any]) -> None:
    """Check that every request has a prediction, and the store equals that of a normal run."""
    assert figures["predictions"] == figures["requests"] > 100
    assert (figures["doubled"], figures["rejected"]) == (0, 0)
    proof = verify(config, QuietProgress(), sample=SAMPLE)
    assert proof["first_mismatches"] == []
    assert proof["mismatches"] == 0
    assert proof["store_values"] > 0


# Outages: the store is away, and comes back with all its rows.


def _kill(server: RedisServer) -> None:
    server.kill()


def _start(server: RedisServer) -> None:
    server.start()


def _fill(server: RedisServer) -> None:
    server.client().config_set("maxmemory", "1")


def _raise_the_limit(server: RedisServer) -> None:
    server.client().config_set("maxmemory", "0")


def _demote(server: RedisServer) -> None:
    server.client().replicaof("127.0.0.1", "1")


def _promote(server: RedisServer) -> None:
    server.client().replicaof("NO", "ONE")


OUTAGES = {
    "killed": (_kill, _start, "no connection"),
    "frozen": (RedisServer.freeze, RedisServer.thaw, "no answer within 0.3 s"),
    "full": (_fill, _raise_the_limit, "raise its maxmemory"),
    "read-only": (_demote, _promote, "it is a replica that takes no writes"),
}


@pytest.mark.parametrize(
    ("engine", "outage"),
    [*(("fnapi", name) for name in OUTAGES), ("prism", "killed"), ("prism", "full")],
)
def test_the_stream_waits_for_a_store_that_is_away(
    engine: str,
    outage: str,
    backfilled: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    strike, mend, says = OUTAGES[outage]
    with running(tmp_path / "redis", KEPT) as server:
        place = replace(server.place, timeout_us=300_000)
        config = at(backfilled, tmp_path / "run", place)
        seen = Publications({STRIKE_AT[engine]: lambda _: strike(server)})
        seen.watch(monkeypatch)
        with when(seen.failed, lambda: mend(server)), caplog.at_level(logging.WARNING):
            figures = run(config, engine)
        assert seen.failures >= 1
        # Those before the fault, those that failed, and one that has all that they had.
        assert seen.count >= STRIKE_AT[engine] + seen.failures
        assert_whole(config, figures)
    said = [
        r.getMessage()
        for r in caplog.records
        if r.name == "tidemill.pipelines.publish.store_writer"
    ]
    assert len(said) == 2, said
    assert says in said[0]
    assert f":{server.port}" in said[0]
    assert "rides_project__by_" in said[0]
    assert "takes writes again, after" in said[1]


@contextmanager
def when(event: threading.Event, action: Callable[[], None]) -> Iterator[None]:
    """Call a function in another thread when an event is set."""
    is_over = False

    def wait() -> None:
        event.wait()
        if not is_over:
            action()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(wait)
        try:
            yield
        finally:
            is_over = not event.is_set()
            event.set()
        done.result()


def test_connections_that_are_reset_again_and_again(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = 0
    with running(tmp_path / "redis") as server:
        client = server.client()

        def reset() -> None:
            nonlocal killed
            killed += client.client_kill_filter(_type="normal", skipme=True)

        config = at(backfilled, tmp_path / "run", server.place)
        seen = Publications()
        seen.watch(monkeypatch)
        with _meanwhile(seen, reset, failures=4):
            figures = run(config)
        assert killed > seen.failures > 0
        assert_whole(config, figures)


def test_a_server_that_is_killed_again_and_again(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "redis", KEPT) as server:

        def kill_and_start() -> None:
            server.kill()
            server.start()

        config = at(backfilled, tmp_path / "run", server.place)
        seen = Publications()
        seen.watch(monkeypatch)
        with _meanwhile(seen, kill_and_start, failures=4):
            figures = run(config)
        assert seen.failures > 0
        assert_whole(config, figures)


@contextmanager
def _meanwhile(seen: Publications, action: Callable[[], None], failures: int) -> Iterator[None]:
    """Call a function in another thread repeatedly, until this many publications have failed."""
    begun, over = threading.Event(), threading.Event()
    seen.happenings[3] = lambda _: begun.set()

    def repeat() -> None:
        while seen.failures < failures and not over.is_set():
            action()

    with when(begun, repeat):
        try:
            yield
        finally:
            over.set()


# Losses: the store works, and has lost writes.


@dataclass
class Loss:
    """A Redis that loses its latest writes, or all.

    Attributes:
        server: The server.
        now_us: The frontier that the stream had reached.
    """

    server: RedisServer
    now_us: int = 0
    size: int = 0
    statuses: list[str] = field(default_factory=list)

    def _log(self) -> Path:
        (log,) = (self.server.folder / "appendonlydir").glob("*.incr.aof")
        return log

    def remember(self, _: Sequence[Parcel]) -> None:
        self.size = self._log().stat().st_size

    def lose_all(self, parcels: Sequence[Parcel]) -> None:
        self.server.kill()
        self.server.forget()
        self.server.start()
        self.now_us = max((parcel.frontier_us for parcel in parcels), default=0)

    def lose_the_tail(self, parcels: Sequence[Parcel]) -> None:
        self.server.kill()
        with self._log().open("rb+") as file:
            file.truncate(self.size + 100)  # a part of the next command
        self.server.start()
        self.now_us = max((parcel.frontier_us for parcel in parcels), default=0)

    def read(self, config: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read every entity as of the stream's present."""
        with monkeypatch.context() as patch:
            patch.setattr(reader, "clock_us", lambda *_: self.now_us)
            database = open_database(config.online_store)
            found = OnlineReader(database, PROJECT, "wall").read(KEYS)
        for batch in found.values():
            self.statuses += batch.column(STATUS).to_pylist()
            assert max(batch.column(FRONTIER).to_pylist()) < self.now_us


@pytest.mark.parametrize(
    ("engine", "mode", "fsync", "loss"),
    [
        ("fnapi", "exact", "always", "lose_all"),
        ("fnapi", "exact", "always", "lose_the_tail"),
        ("fnapi", "exact", "everysec", "lose_the_tail"),
        ("fnapi", "eager", "always", "lose_the_tail"),
        ("prism", "exact", "always", "lose_all"),
        ("prism", "exact", "always", "lose_the_tail"),
    ],
)
def test_a_store_that_lost_writes_is_mended_by_the_stream(
    engine: str,
    mode: str,
    fsync: str,
    loss: str,
    backfilled: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until then no reader takes old values for fresh ones."""
    with running(tmp_path / "redis", {**KEPT, "appendfsync": fsync}) as server:
        config = at(backfilled, tmp_path / "run", server.place)
        config = replace(config, stream=replace(config.stream, mode=mode))
        lost, seen = Loss(server), Publications()
        strike_at = STRIKE_AT[engine]

        def strike(parcels: Sequence[Parcel]) -> None:
            getattr(lost, loss)(parcels)
            begun.set()

        begun = threading.Event()
        noted = _When(caplog, "the whole shard is published again", len(PROJECT.views) * 2)
        seen.happenings = {2: lost.remember, strike_at: strike}
        seen.watch(monkeypatch)
        noted.then = lambda: lost.read(config, monkeypatch)
        logger = logging.getLogger("tidemill.pipelines.publish.store_writer")
        logger.addHandler(noted)
        try:
            figures = run(config, engine)
        finally:
            logger.removeHandler(noted)
        assert begun.is_set()
        assert lost.statuses == [ReadStatus.OUTSIDE_MAX_AGE.name] * 10
        assert figures["store_mended_at_end"] is False
        assert_whole(config, figures)


class _When(logging.Handler):
    """Call a function when a message is logged the n-th time, before the logging call returns."""

    def __init__(self, caplog: Any, text: str, times: int) -> None:
        super().__init__()
        self._text, self._left = text, times
        self.then: Callable[[], None] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._left -= 1
            if self._left == 0:
                self.then()


@pytest.mark.parametrize("until_us", [None, EVALUATE_UNTIL + 6 * HOUR])
def test_writes_lost_after_the_last_release_are_published_at_the_end(
    until_us: int | None,
    backfilled: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(tmp_path / "redis", KEPT) as server:
        config = at(backfilled, tmp_path / "run", server.place)

        def lose_and_mend(*arguments: Any) -> bool:
            Loss(server).lose_all([])
            return mend_store(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(stream_module, "mend_store", lose_and_mend)
            figures = run(config, until_us=until_us)
        assert figures["store_mended_at_end"] is True
        if until_us is not None:
            figures = run(config, resume=True)
            assert figures["store_mended_at_end"] is False
        assert_whole(config, figures)


# SQLite.


LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@dataclass
class SqliteFault:
    """A fault of an SQLite file, and its end."""

    path: Path
    locker: subprocess.Popen[str] | None = None

    def lock(self, _: Sequence[Parcel]) -> None:
        self.locker = subprocess.Popen(
            [sys.executable, "-c", LOCK, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.locker.stdout is not None
        assert self.locker.stdout.readline() == "locked\n"

    def unlock(self) -> None:
        assert self.locker is not None
        self.locker.communicate("\n")

    def fill_the_disk(self, _: Sequence[Parcel]) -> None:
        """Limit the file size of this process to that of the store's log, like a full disk."""
        log = self.path.with_name(f"{self.path.name}-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, resource.RLIM_INFINITY))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def delete(self, _: Sequence[Parcel]) -> None:
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()


@pytest.mark.parametrize(
    ("strike", "mend", "says"),
    [("lock", "unlock", "database is locked"), ("fill_the_disk", "make_room", "disk I/O error")],
)
def test_the_stream_waits_for_a_file_that_cannot_be_written(
    strike: str,
    mend: str,
    says: str,
    backfilled: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.2)
    path = tmp_path / "store" / "online.db"
    config = at(backfilled, tmp_path / "run", SqlitePlace(path))
    fault = SqliteFault(path)
    seen = Publications({8: getattr(fault, strike)})
    seen.watch(monkeypatch)
    with when(seen.failed, getattr(fault, mend)):
        figures = run(config)
    assert seen.failures >= 1
    assert any(says in record.getMessage() for record in caplog.records)
    assert_whole(config, figures)


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_a_file_that_is_deleted_is_made_and_filled_again(
    engine: str, backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store" / "online.db"
    config = at(backfilled, tmp_path / "run", SqlitePlace(path))
    seen = Publications({STRIKE_AT[engine]: SqliteFault(path).delete})
    seen.watch(monkeypatch)
    figures = run(config, engine)
    assert figures["store_mended_at_end"] is False
    assert_whole(config, figures)


# Errors that are raised at once.


def test_nothing_piles_up_while_the_store_is_away(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more rows are read from the source, and memory does not grow."""
    polls, memory = [], []
    next_poll = replay.ReplayLog.next_poll

    def counted(*arguments: Any) -> Any:
        polls.append(None)
        return next_poll(*arguments)

    monkeypatch.setattr(replay.ReplayLog, "next_poll", counted)
    process = psutil.Process()
    with running(tmp_path / "redis", KEPT) as server:
        config = at(backfilled, tmp_path / "run", server.place)

        def wait_and_start() -> None:
            over = threading.Event()
            before = len(polls)
            for _ in range(30):
                memory.append(process.memory_info().rss)
                over.wait(0.1)
            assert len(polls) == before
            server.start()

        seen = Publications({8: lambda _: server.kill()})
        seen.watch(monkeypatch)
        with when(seen.failed, wait_and_start):
            figures = run(config)
        assert max(memory) - memory[0] < 8 * 2**20
        assert 5 < seen.failures < 60
        assert_whole(config, figures)


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_a_run_that_gave_up_can_be_resumed(
    engine: str, backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "redis", KEPT) as server:
        config = at(backfilled, tmp_path / "run", server.place)
        run(config, engine, until_us=EVALUATE_UNTIL + 2 * HOUR)
        seen = Publications({STRIKE_AT[engine]: lambda _: server.kill()})
        with monkeypatch.context() as patch:
            seen.watch(patch)
            with pytest.raises(
                StoreUnavailable, match=r"given up after 0.3 s.*`tidemill stream --resume"
            ):
                run(replace(config, give_up_after_us=300_000), engine, resume=True)
        assert seen.failures >= 2
        server.start()
        assert_whole(config, run(config, engine, resume=True))


def test_a_store_that_refuses_is_not_asked_again(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "redis") as server:
        config = at(backfilled, tmp_path / "run", server.place)

        def refuse(_: Sequence[Parcel]) -> None:
            client = server.client()
            client.config_set("requirepass", "another")
            client.client_kill_filter(_type="normal", skipme=True)

        seen = Publications({8: refuse})
        seen.watch(monkeypatch)
        with pytest.raises(StoreError, match="correct username, and the password"):
            run(config)
        assert seen.count == 8


def test_a_contradiction_is_not_offered_again(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "redis") as server:
        config = at(backfilled, tmp_path / "run", server.place)

        def contradict(parcels: Sequence[Parcel]) -> None:
            parcel = next(parcel for parcel in parcels if len(parcel.rows))
            other = replace(parcel.rows, valid_until=parcel.rows.valid_until + 1)
            database = open_database(config.online_store)
            assert database.write(parcel.space, other) > 0

        seen = Publications({8: contradict})
        seen.watch(monkeypatch)
        with pytest.raises(ConflictingPublication, match=r"differ: stored \{.* offered \{"):
            run(config)
        assert seen.count == 8
