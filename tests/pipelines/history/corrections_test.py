"""History that is corrected: afterwards everything is what a root that never knew better has.

A root has streamed, and readers have seen all of it. Then its sources are corrected, and
`tidemill backfill --publish` runs, with no stream or beside one. Log, training table and offline
log must be those of a fresh root with the corrected sources; the online store must hold the fresh
root's values at the fresh root's frontiers; predictions that were served before are proven against
the history that they were made from. A reader that reads after every transaction finds no gap, no
step back, and no mixture of two histories.
"""

from __future__ import annotations

import csv
import functools
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of, offline_of
from tests.support.paused import Paused
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.stores import place_of
from tidemill.features.contract import HOUR
from tidemill.features.errors import SupersededWriter
from tidemill.features.feast_objects import REVISION
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest, table_digests
from tidemill.pipelines.ingest.replay_rejected import replay as replay_rejected
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.republish import republish, shown_frontiers
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.instants import instant_text
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.generations.current import read_current
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.redis import database as redis_database
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite import database as sqlite_database
from tidemill.serving.online.sqlite.scripts import rows_table
from tidemill.serving.stores.online_places import OnlinePlace, SqlitePlace

KEYS = {"by_driver": pa.array([f"d{n}" for n in range(7)]), "by_zone": pa.array(range(4))}
Rows = list[dict[str, str]]
SAMPLE = 20
STREAM_OUTPUT = re.compile(r"/stream-\d{6}/")
END = EVALUATE_UNTIL + 6 * HOUR
"""Where the streams end: windows of a day still hold rows of history."""


# Corrections of the rides.


def ended_between(rows: Rows, since_us: int, until_us: int) -> list[int]:
    """Return the places of rows that were received between two instants, duplicates left out."""
    first = {row["ride"]: place for place, row in reversed(list(enumerate(rows)))}
    return [
        place
        for place in sorted(first.values())
        if instant_text(since_us) <= rows[place]["received_at"] < instant_text(until_us)
    ]


def in_history(rows: Rows) -> int:
    """A ride before the stream begins, that windows at its beginning still hold."""
    return ended_between(rows, EVALUATE_UNTIL - 3 * HOUR, EVALUATE_UNTIL)[0]


def in_stream(rows: Rows) -> int:
    """A ride of the stream, that windows at its end still hold."""
    return ended_between(rows, END - 4 * HOUR, END - 2 * HOUR)[0]


def same(rows: Rows, place: int) -> list[int]:
    """The places of a ride and its duplicates."""
    return [n for n, row in enumerate(rows) if row["ride"] == rows[place]["ride"]]


def remove(rows: Rows, place: int) -> None:
    for n in reversed(same(rows, place)):
        del rows[n]


def change(rows: Rows, place: int, **fields: str) -> None:
    for n in same(rows, place):
        rows[n] = {**rows[n], **fields}


def add(rows: Rows, place: int) -> None:
    rows.insert(place, {**rows[place], "ride": "added", "driver": "d1", "fare": "99.5"})


def replace_file(rows: Rows) -> None:
    """Another export of the same rides, with other fares."""
    for row in rows:
        row["fare"] = row["fare"] and str(round(float(row["fare"]) * 1.25, 2))


CORRECTIONS: dict[str, Callable[[Rows], None]] = {
    "a row of history is removed": lambda rows: remove(rows, in_history(rows)),
    "a row of the stream is removed": lambda rows: remove(rows, in_stream(rows)),
    "the first row is removed": lambda rows: remove(rows, 0),
    "the last row is removed": lambda rows: remove(rows, ended_between(rows, 0, END)[-1]),
    "a row of history is changed": lambda rows: change(rows, in_history(rows), fare="77.25"),
    "a row of the stream is changed": lambda rows: change(rows, in_stream(rows), fare="77.25"),
    "a row is added in the past": lambda rows: add(rows, in_history(rows)),
    "a key is renamed": lambda rows: change(rows, in_history(rows), driver="d6"),
    "a rejected row is mended": lambda rows: change(rows, rejected(rows), minutes="17"),
    "a file is replaced": replace_file,
}


BESIDE_A_STREAM = (
    "a row of history is removed", "a row of the stream is changed", "a file is replaced",
)  # fmt: skip
"""What a correction changes does not depend on who writes the store meanwhile: one of each kind."""
WITHOUT_PUBLISHING = (
    *BESIDE_A_STREAM, "the last row is removed", "a key is renamed",
)  # fmt: skip


def rejected(rows: Rows) -> int:
    return next(n for n, row in enumerate(rows) if row["minutes"] == "many")


def write(folder: Path, correct: Callable[[Rows], None] | None = None) -> None:
    """Write the sources, with one row that is rejected; correct them."""
    folder.mkdir(exist_ok=True)
    write_sources(folder)
    path = folder / "rides.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    at = ended_between(rows, EVALUATE_UNTIL - 5 * HOUR, EVALUATE_UNTIL)[0]
    change(rows, at, minutes="many")
    if correct is not None:
        correct(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# What a root holds.


def values(config: Configuration) -> dict[Any, Any]:
    """Every frontier and every row of the online store, without the instant that it is from."""
    spaces = [KeySpace.of(PROJECT.name, view) for view in PROJECT.views]
    wanted = [
        (space, online_keys(view.entity.join_key, KEYS[view.name]))
        for space, view in zip(spaces, PROJECT.views, strict=True)
    ]
    database = open_database(config.online_store)
    found: dict[Any, Any] = {}
    for (space, keys), snapshot in zip(wanted, database.read(wanted), strict=True):
        found |= {
            (space.view, shard): frontier for shard, frontier in snapshot.frontiers.by_shard.items()
        }
        for key, row in zip(keys, snapshot.rows, strict=True):
            found[space.view, key] = None if row is None else row.cells
    database.close()
    return found


def log_digests(config: Configuration) -> dict[str, str | None]:
    log = Log(build_of(config.root))
    return {source: log.prefix_digest(source, log.lengths(source)) for source in log.sources()}


def training_table(config: Configuration) -> Any:
    return BuildManifest.read(build_of(config.root)).training_table


def offline(config: Configuration) -> dict[str, Any]:
    found = {}
    for view in PROJECT.views:
        log = OfflineLog.of(offline_of(config.root), view)
        table = pa.concat_tables([pq.read_table(path) for path in log.files(0, 2**62)])
        names = (view.entity.join_key, "event_timestamp", REVISION)
        rows = table.sort_by([(name, "ascending") for name in names]).to_pylist()
        found[view.name] = rows, log.ends()
    return found


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), **{"engine": "fnapi", **options})


def publish(config: Configuration) -> dict[str, Any]:
    return backfill(config, QuietProgress(), publish=True)


@dataclass
class Reader:
    """Reads all views in one request after every step of the store, and the files after a rename.

    Attributes:
        config: The configuration of the root.
        reads: How often it has read.
        faults: What it found: a step back, a mixture of histories, files that do not fit.
    """

    config: Configuration
    reads: int = 0
    faults: list[str] = field(default_factory=list)
    _shown: dict[Any, int] = field(default_factory=dict)
    _busy: threading.local = field(default_factory=threading.local)

    @contextmanager
    def reading(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
        self._shown = dict(shown_frontiers(self.config))
        transaction, exchange = sqlite_database.transaction, redis_database.exchange

        @contextmanager
        def transacted(path: str, *, write: bool) -> Iterator[Any]:
            with transaction(path, write=write) as connection:
                yield connection
            if write:
                self._look(self._read_store)

        def exchanged(*arguments: Any) -> Any:
            replies = exchange(*arguments)
            self._look(self._read_store)
            return replies

        def then_files(rename: Callable[..., None]) -> Callable[..., None]:
            def renamed(source: Any, target: Any, **options: Any) -> None:
                rename(source, target, **options)
                path = Path(os.fsdecode(target))
                if path.is_relative_to(self.config.root) and not STREAM_OUTPUT.search(str(path)):
                    self._look(self._read_files)

            return renamed

        with monkeypatch.context() as patch:
            patch.setattr(sqlite_database, "transaction", transacted)
            patch.setattr(redis_database, "exchange", exchanged)
            patch.setattr(os, "rename", then_files(os.rename))
            patch.setattr(os, "replace", then_files(os.replace))
            yield self

    def _look(self, read: Callable[[], None]) -> None:
        """Read, but not after the steps of reading."""
        if getattr(self._busy, "reads", False):
            return
        self._busy.reads = True
        try:
            read()
        finally:
            self._busy.reads = False
        self.reads += 1

    def _read_store(self) -> None:
        database = open_database(self.config.online_store)
        spaces = [KeySpace.of(PROJECT.name, view) for view in PROJECT.views]
        found = database.read([(space, []) for space in spaces])
        current = [fill for fill in database.fills(spaces) if fill.is_current]
        shown = {
            (space.view, shard): frontier
            for space, snapshot in zip(spaces, found, strict=True)
            for shard, frontier in snapshot.frontiers.by_shard.items()
        }
        for at, frontier in self._shown.items():
            if shown.get(at, -1) < frontier:
                self.faults.append(f"{at}: {shown.get(at)} after {frontier}")
        if len({fill.generation for fill in current}) > 1:
            self.faults.append(f"a mixture of {current}")
        self._shown = shown

    def _read_files(self) -> None:
        """Log, training table and offline log that the root names must be those of one build."""
        current = read_current(self.config.root)
        manifest = BuildManifest.read(current.build_folder)
        if manifest.generation != current.generation:
            self.faults.append(f"{current} names a build of {manifest.generation}")
        log = Log(current.build_folder)
        for source, record in manifest.sources.items():
            if log.lengths(source) != list(record["cut"]):
                self.faults.append(f"{current}: {source} has {log.lengths(source)}, not {record}")
        if table_digests(current.build_folder) != manifest.training_table:
            self.faults.append(f"{current} has another training table")
        for view in PROJECT.views:
            if not OfflineLog.of(current.offline_root, view).ends():
                self.faults.append(f"{current} has no offline log of {view.name}")


# A root that has streamed the sources as they were at first, and one with the corrected ones.


@pytest.fixture(scope="module", autouse=True)
def scored() -> Iterator[None]:
    """Score without a model."""
    with pytest.MonkeyPatch.context() as patch:
        score_without_models(patch)
        yield


def configured(folder: Path, place: OnlinePlace | None = None) -> Configuration:
    config = configuration(folder, folder / "run")
    return replace(
        config,
        splits=replace(config.splits, stream_until_us=END),
        online_store=place or config.online_store,
    )


def made(
    folder: Path,
    correct: Callable[[Rows], None] | None = None,
    place: OnlinePlace | None = None,
) -> Configuration:
    write(folder, correct)
    config = configured(folder, place)
    publish(config)
    run(config)
    return config


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return made(tmp_path_factory.mktemp("before") / "sources")


@pytest.fixture(scope="module")
def freshly(
    streamed: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Configuration]:
    """Makes roots that have had corrected sources from the beginning, each once."""
    return functools.cache(functools.partial(freshly_made, streamed, tmp_path_factory))


@pytest.fixture
def fresh(correction: str, freshly: Callable[[str], Configuration]) -> Configuration:
    """A root that has had the corrected sources from the beginning."""
    return freshly(correction)


def freshly_made(
    streamed: Configuration, tmp_path_factory: pytest.TempPathFactory, correction: str
) -> Configuration:
    config = made(tmp_path_factory.mktemp("fresh") / "sources", CORRECTIONS[correction])
    # The windows at the end do not reach back to the first row.
    assert (values(config) == values(streamed)) == (correction == "the first row is removed")
    return config


def copied(config: Configuration, folder: Path) -> Configuration:
    shutil.copytree(config.path.parent, folder)
    return configured(folder)


def check_files(corrected: Configuration, fresh: Configuration) -> None:
    assert log_digests(corrected) == log_digests(fresh)
    assert training_table(corrected) == training_table(fresh)
    assert offline(corrected) == offline(fresh)


def check_proof(config: Configuration) -> dict[str, Any]:
    figures = verify(config, QuietProgress(), sample=SAMPLE)
    assert figures["first_mismatches"] == []
    assert figures["mismatches"] == 0
    assert figures["store_values"] > 0
    return figures


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_backfill_that_publishes_corrects_everything_at_once_and_a_stream_goes_on(
    correction: str,
    streamed: Configuration,
    fresh: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = copied(streamed, tmp_path / "corrected")
    write(config.path.parent, CORRECTIONS[correction])
    with Reader(config).reading(monkeypatch) as reader:
        published = publish(config)
        assert published["published"]["entities"] > 0
        assert values(config) == values(fresh)
        assert publish(config)["published"]["written"] == 0
        check_proof(config)
        run(config)
    assert reader.reads > 10
    assert reader.faults == []
    assert values(config) == values(fresh)
    check_files(config, fresh)
    figures = check_proof(config)
    # The predictions of the stream before are proven against the history that they were made from.
    assert [row["mismatches"] for row in figures["earlier"]] == [0]


@pytest.mark.parametrize("correction", WITHOUT_PUBLISHING)
def test_without_publishing_readers_see_the_old_history_until_a_stream_has_caught_up(
    correction: str, streamed: Configuration, fresh: Configuration, tmp_path: Path
) -> None:
    config = copied(streamed, tmp_path / "corrected")
    before = values(config)
    write(config.path.parent, CORRECTIONS[correction])
    backfill(config, QuietProgress())
    assert values(config) == before
    check_proof(config)
    run(config, until_us=END - 3 * HOUR)
    assert values(config) == before
    assert verify(config, QuietProgress(), SAMPLE)["store_mismatches"] == 0
    run(config, resume=True)
    assert values(config) == values(fresh)
    check_files(config, fresh)
    check_proof(config)


@pytest.mark.parametrize("correction", BESIDE_A_STREAM)
def test_beside_a_running_stream_everything_is_corrected_too(
    correction: str,
    streamed: Configuration,
    fresh: Configuration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream runs on in its own generation, or ends when readers are switched away from it."""
    config = copied(streamed, tmp_path / "corrected")
    program = Paused(lambda: run(config), 12)
    with program.paused("sqlite", monkeypatch):
        before = shown_frontiers(config)
        write(config.path.parent, CORRECTIONS[correction])
        publish(config)
        assert values(config) == values(fresh)
        assert all(shown_frontiers(config)[at] >= shown for at, shown in before.items())
    assert program.steps >= 12
    # Before its fill is read, it is removed; after that, readers are switched away from it.
    assert isinstance(program.error, (SupersededWriter, type(None)))
    assert values(config) == values(fresh)
    run(config)
    assert values(config) == values(fresh)
    check_files(config, fresh)
    check_proof(config)


@pytest.mark.parametrize("published", [True, False])
def test_readers_of_redis_see_one_history_at_a_time(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every exchange with the server, and every rename of a file."""
    correct = CORRECTIONS["a row of the stream is changed"]
    with place_of("redis", tmp_path) as place, place_of("redis", tmp_path / "other") as other:
        config = made(tmp_path / "sources", place=place)
        write(config.path.parent, correct)
        with Reader(config).reading(monkeypatch) as reader:
            backfill(config, QuietProgress(), publish=published)
            run(config)
        assert reader.reads > 50
        assert reader.faults == []
        fresh = made(tmp_path / "fresh", correct, other)
        assert values(config) == values(fresh)
        check_files(config, fresh)
        check_proof(config)


@pytest.mark.parametrize("published", [True, False])
def test_a_rejected_row_is_mended_in_its_own_words(published: bool, tmp_path: Path) -> None:
    """`replay-rejected` mends a row of a table, whose file keeps the bad one."""
    config, fresh = (
        made_of_table(tmp_path / name, correct)
        for name, correct in (("bad", None), ("good", CORRECTIONS["a rejected row is mended"]))
    )
    before = values(config)
    assert before != values(fresh)
    replay_rejected(config, QuietProgress(), None)
    exported = config.root / "rejected" / "export" / "rides.jsonl"
    mended = tmp_path / "mended.jsonl"
    mended.write_text(exported.read_text().replace(",many", ",17"))
    assert replay_rejected(config, QuietProgress(), mended)["rides"]["accepted"] == 1
    assert values(config) == before
    backfill(config, QuietProgress(), publish=published)
    assert (values(config) == before) == (not published)
    run(config)
    assert values(config) == values(fresh)
    check_proof(config)


def made_of_table(folder: Path, correct: Callable[[Rows], None] | None) -> Configuration:
    """Make a root whose rides are a table: the time of a row is its place in the log."""
    write(folder, correct)
    config = configured(folder)
    rides = replace(config.sources["rides"], received=None)
    config = replace(config, sources={**config.sources, "rides": rides})
    publish(config)
    run(config)
    return config


def test_what_a_backfill_has_published_can_be_published_again(
    streamed: Configuration, tmp_path: Path
) -> None:
    """As of the instant that readers see, which is later than that of the states."""
    config = copied(streamed, tmp_path / "corrected")
    write(config.path.parent, CORRECTIONS["a row of the stream is changed"])
    publish(config)
    published = values(config)
    assert isinstance(config.online_store, SqlitePlace)
    database = open_database(config.online_store)
    fills = database.fills([KeySpace.of(PROJECT.name, view) for view in PROJECT.views])
    database.close()
    with sqlite3.connect(config.online_store.path) as sqlite:
        for fill in fills:
            sqlite.execute(f'DELETE FROM "{rows_table(fill.id)}"')
    sqlite.close()
    assert values(config) != published
    republish(config, QuietProgress())
    assert values(config) == published
    check_proof(config)
