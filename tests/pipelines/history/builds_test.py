"""Builds: which logs extend which, what a correction begins, and that a killed one never was."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.builds import make_build
from tests.support.folders import build_of
from tests.support.killed_command import killed
from tests.support.lock_holder import lock_holder
from tests.support.proof_run import rides_yaml, write_sources
from tests.support.streaming_project import (
    CAB,
    PARTITIONS,
    PROJECT,
    START,
    TRIPS,
    Arrived,
    arrivals,
    configuration,
    random_rows,
    write_log,
)
from tidemill.features.contract import DAY, MINUTE, TIME_MIN
from tidemill.features.errors import DamagedFile, DamagedState, InputError, Locked
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.history.builds import BUILD_LOCK, Divergence, building, divergences
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.serving.generations.current import Current, read_current, write_current
from tidemill.serving.offline.log import OfflineLog, Span

BEGIN = START + 2 * MINUTE
STOP = START + 11 * MINUTE


def history(seed: int = 1) -> list[Arrived]:
    return arrivals(PROJECT, random_rows(seed), PARTITIONS, random.Random(seed))


# Which logs extend which.

Correction = Callable[[list[Arrived]], None]


def part_of(arrived: list[Arrived], source: str = "trips", partition: int = 0) -> int:
    return next(
        n for n, part in enumerate(arrived) if (part.source, part.partition) == (source, partition)
    )


def nothing(arrived: list[Arrived]) -> None:
    """The same rows."""


def append(arrived: list[Arrived]) -> None:
    """Rows that came later, in every partition."""
    for number, part in enumerate(arrived):
        last = part.received_us[-1]
        row = {**part.rows[-1], PROJECT.definition(part.source).time_column: last}
        arrived[number] = Arrived(
            part.source, part.partition, [*part.rows, row], [*part.received_us, last + 1]
        )


def remove(arrived: list[Arrived]) -> None:
    at = part_of(arrived)
    part = arrived[at]
    arrived[at] = Arrived(
        part.source,
        part.partition,
        [*part.rows[:3], *part.rows[4:]],
        [*part.received_us[:3], *part.received_us[4:]],
    )


def change(arrived: list[Arrived]) -> None:
    part = arrived[part_of(arrived, partition=1)]
    part.rows[2] = {**part.rows[2], "fare": 987.5}  # type: ignore[index]


def change_the_arrival(arrived: list[Arrived]) -> None:
    part = arrived[part_of(arrived, partition=1)]
    part.received_us[-1] += 1  # type: ignore[index]


def add_in_the_past(arrived: list[Arrived]) -> None:
    at = part_of(arrived)
    part = arrived[at]
    arrived[at] = Arrived(
        part.source,
        part.partition,
        [part.rows[0], {**part.rows[0], "trip": "was forgotten"}, *part.rows[1:]],
        [part.received_us[0], part.received_us[0], *part.received_us[1:]],
    )


def another_partition(arrived: list[Arrived]) -> None:
    part = arrived[part_of(arrived)]
    arrived.append(Arrived(part.source, 2, part.rows[:1], part.received_us[:1]))


def rename_a_key(arrived: list[Arrived]) -> None:
    for part in arrived:
        if part.source == "rain":
            part.rows[0] = {**part.rows[0], "zone": 77}  # type: ignore[index]


CORRECTIONS: dict[Correction, tuple[str, ...]] = {
    nothing: (),
    append: (),
    remove: (r"trips: partition 0 has \d+ rows, and had \d+",),
    change: (r"trips: rows 0 to \d+ of partition 1 were changed",),
    change_the_arrival: (r"trips: rows 0 to \d+ of partition 1 were changed",),
    add_in_the_past: (r"trips: rows 0 to \d+ of partition 0 were changed",),
    another_partition: ("trips: it has 3 partitions, and had 2",),
    rename_a_key: (r"rain: rows 0 to \d+ of partition 0 were changed",),
}


@pytest.mark.parametrize("correct", CORRECTIONS)
def test_a_log_extends_another_if_it_has_the_same_rows_below_its_end(
    tmp_path: Path, correct: Correction
) -> None:
    before, now = history(), history()
    correct(now)
    write_log(tmp_path / "before", PROJECT, before)
    write_log(tmp_path / "now", PROJECT, now)
    found = divergences(Log(tmp_path / "before"), Log(tmp_path / "now"))
    reasons = CORRECTIONS[correct]
    assert len(found) == len(reasons)
    for divergence, reason in zip(found, reasons, strict=True):
        assert re.fullmatch(reason, str(divergence))


def test_a_source_that_only_one_log_has_is_no_divergence(tmp_path: Path) -> None:
    write_log(tmp_path / "all", PROJECT, history())
    write_log(tmp_path / "some", PROJECT, [part for part in history() if part.source != "rain"])
    assert divergences(Log(tmp_path / "some"), Log(tmp_path / "all")) == []
    assert divergences(Log(tmp_path / "all"), Log(tmp_path / "some")) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (BLOCK_ROWS - 1, "rows 0 to 65535 of partition 0 were changed"),
        (BLOCK_ROWS, "rows 65536 to 131071 of partition 0 were changed"),
        (2 * BLOCK_ROWS + 5, "rows 131072 to 139999 of partition 0 were changed"),
        (None, ""),
    ],
)
def test_the_block_that_was_changed_is_named(tmp_path: Path, row: int | None, said: str) -> None:
    """Also where the new log is longer."""

    def write(folder: Path, rows: int, changed: int | None) -> Log:
        fares = np.arange(rows, dtype=np.float64)
        if changed is not None:
            fares[changed] += 0.5
        times = START + np.arange(rows, dtype=np.int64)
        columns: dict[str, Any] = {
            "at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "trip": pa.array(np.arange(rows)).cast(pa.string()),
            "cab": pa.repeat("a", rows),
            "zone": pa.repeat(1, rows),
            "fare": fares,
            "card": pa.repeat(True, rows),
        }
        log = Log(folder)
        log.write(TRIPS, 0, pa.table(columns), times)
        return log

    before = write(tmp_path / "before", 140_000, None)
    for rows in (140_000, 150_000):
        now = write(tmp_path / f"now {rows}", rows, row)
        found = divergences(before, now)
        assert found == ([] if row is None else [Divergence("trips", said)])


# Generations.


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    return configuration(tmp_path / "run", PROJECT, BEGIN, STOP)


def tree(*folders: Path) -> dict[str, str]:
    """Return the hash of every file below some folders."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def named(root: Path) -> dict[str, str]:
    """Return the hash of CURRENT and of every file in the folders that it names."""
    current = read_current(root)
    record = hashlib.sha256((root / "CURRENT").read_bytes()).hexdigest()
    folders = (current.build_folder, current.offline_root, current.stream_folder)
    return {"CURRENT": record, **tree(*folders)}


@pytest.mark.parametrize("correct", CORRECTIONS)
def test_a_correction_begins_a_generation_and_removes_nothing(
    config: Configuration, correct: Correction
) -> None:
    before = make_build(config, history())
    was = tree(before.folder)
    corrected = history()
    correct(corrected)
    now = make_build(config, corrected)
    assert now == read_current(config.root)
    assert {path: digest for path, digest in tree(before.folder).items() if path in was} == was
    manifest, handoff = (
        BuildManifest.read(now.build_folder),
        read_record(now.build_folder / "states"),
    )
    assert manifest.generation == handoff.generation == now.generation
    if CORRECTIONS[correct]:
        assert now.generation != before.generation
        assert (now.build, now.offline, now.stream) == (1, 1, 0)
        assert manifest.parent == before.generation
        assert len(manifest.because) == len(CORRECTIONS[correct])
        assert all(map(re.fullmatch, CORRECTIONS[correct], manifest.because))
    else:
        assert now == dataclasses.replace(before, build=2)
        assert (manifest.parent, list(manifest.because)) == (None, [])


def test_the_first_build_of_a_root_has_no_parent(config: Configuration) -> None:
    first = make_build(config, history())
    assert re.fullmatch("[0-9a-f]{16}", first.generation)
    assert BuildManifest.read(first.build_folder).parent is None
    assert (first.build, first.offline, first.stream) == (1, 1, 0)


@pytest.mark.parametrize("harm", ["cut off", "removed"])
def test_a_damaged_log_is_mended_by_a_backfill_as_its_error_says(
    config: Configuration, harm: str
) -> None:
    """Nothing says what rows it had, so a generation begins."""
    before = make_build(config, history())
    path = Log(before.build_folder).path("trips", 0)
    content = path.read_bytes()
    path.unlink() if harm == "removed" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises((DamagedFile, InputError), match="run `tidemill backfill` again"):
        Log(before.build_folder).read("trips", 0)
    now = make_build(config, history())
    assert now.generation != before.generation
    (because,) = BuildManifest.read(now.build_folder).because
    assert because.startswith("trips: its former log cannot be read (")
    assert str(path) in because
    assert Log(now.build_folder).path("trips", 0).read_bytes() == content


def test_a_flipped_bit_in_the_former_log_is_no_correction(config: Configuration) -> None:
    """Its digest still says what rows it had: the new log has them."""
    before = make_build(config, history())
    path = Log(before.build_folder).path("trips", 0)
    content = path.read_bytes()
    at = content.index(np.float64(history()[part_of(history())].rows[0]["fare"]).tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DamagedFile, match="do not have their digest"):
        Log(before.build_folder).read("trips", 0)
    now = make_build(config, history())
    assert now == dataclasses.replace(before, build=2)
    assert Log(now.build_folder).path("trips", 0).read_bytes() == content


def offline_rows(log: OfflineLog) -> list[Any]:
    files = log.files(TIME_MIN, -TIME_MIN)
    tables = [pa.parquet.read_table(file, partitioning=None) for file in files]
    return sorted(map(repr, pa.concat_tables(tables).to_pylist()))


def test_a_new_generation_writes_the_offline_log_again_and_leaves_the_old_one(
    config: Configuration,
) -> None:
    """Unasked: the old one holds values of the history that was corrected."""
    before = make_build(config, history(), publish=True)
    log = OfflineLog.of(before.offline_root, CAB)
    reached = log.reached()
    assert reached is not None
    # What a stream has added belongs to the old history.
    for shard in range(2):
        log.reach(shard, 2, since_us=reached.last_us, until_us=reached.last_us + DAY)
    (log.directory / "date=2001-01-01").mkdir()
    shutil.copy(log.files(TIME_MIN, -TIME_MIN)[0], log.directory / "date=2001-01-01" / "x.parquet")
    was = tree(before.offline_root)
    corrected = history()
    change(corrected)
    now = make_build(config, corrected)
    found = OfflineLog.of(now.offline_root, CAB)
    assert found.reached() == reached == Span(TIME_MIN, reached.last_us)
    alone = configuration(config.root / "alone", PROJECT, BEGIN, STOP)
    expected = OfflineLog.of(make_build(alone, corrected, publish=True).offline_root, CAB)
    assert offline_rows(found) == offline_rows(expected) != offline_rows(log)
    assert tree(before.offline_root) == was


def test_a_grown_history_keeps_the_offline_log_and_its_folder(config: Configuration) -> None:
    before = make_build(config, history(), publish=True)
    was = tree(before.offline_root)
    assert was
    grown = history()
    append(grown)
    now = make_build(config, grown, publish=True)
    assert now.offline_root == before.offline_root
    assert tree(now.offline_root) == was


# What is removed.


def correct_again(config: Configuration, number: int) -> Current:
    corrected = history()
    part = corrected[part_of(corrected)]
    part.rows[0] = {**part.rows[0], "fare": 1_000.5 + number}  # type: ignore[index]
    return make_build(config, corrected)


def generations(config: Configuration) -> set[str]:
    folders = (config.root / "generations").iterdir()
    return {path.name for path in folders if path.is_dir()}


def test_the_generation_before_is_kept_and_older_ones_go(config: Configuration) -> None:
    made = [correct_again(config, number).generation for number in range(4)]
    assert len(set(made)) == 4
    assert generations(config) == {*made[-2:]}


def test_the_build_before_is_kept_and_older_ones_go(config: Configuration) -> None:
    for _ in range(4):
        now = make_build(config, history())
    assert now.build == 4
    assert sorted(path.name for path in now.folder.glob("build-*")) == [
        "build-000003",
        "build-000004",
    ]


def test_a_generation_whose_stream_runs_is_kept_whole(config: Configuration) -> None:
    first = correct_again(config, 0)
    was = tree(first.folder)
    with lock_holder(first.stream_lock) as (process, _):
        made = [correct_again(config, number).generation for number in (1, 2, 3)]
        kept = tree(first.folder)
        assert generations(config) == {first.generation, *made[-2:]}
        assert {path: kept[path] for path in was} == was
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    last = correct_again(config, 4).generation
    assert generations(config) == {made[-1], last}


def begin_stream(current: Current, **fields: Any) -> Current:
    """Record a stream as the program that runs it does."""
    begun = current.with_next_stream()
    run = StreamRun.beginning(read_record(current.build_folder / "states"), "exact", 4096)
    dataclasses.replace(run, **fields).write(begun.stream_folder)
    write_current(begun)
    return begun


def test_a_stopped_stream_keeps_the_offline_logs_that_it_has_begun(config: Configuration) -> None:
    first = make_build(config, history(), publish=True)
    begun = begin_stream(first, offline=2)
    own = dataclasses.replace(begun, offline=2).offline_root
    shutil.copytree(first.offline_root, own)
    was = {**tree(own), **tree(begun.stream_folder)}
    for _ in range(3):
        now = make_build(config, history())
        assert {**tree(own), **tree(begun.stream_folder)} == was
    assert now == dataclasses.replace(begun, build=4)


def test_a_stream_that_begins_while_a_build_is_made_stays_current(config: Configuration) -> None:
    first = make_build(config, history())
    with building(config.root) as build:
        write_log(build.folder, PROJECT, history())
        build.settle()
        begun = begin_stream(first)
        now = build.finish()
    assert now == dataclasses.replace(begun, build=2) == read_current(config.root)
    assert begun.stream_folder.is_dir()


# A build that does not end.


def test_only_one_process_makes_a_build_of_a_root(config: Configuration) -> None:
    make_build(config, history())
    was = named(config.root)
    with lock_holder(config.root / "generations" / BUILD_LOCK) as (_, pid):
        with pytest.raises(Locked, match=f"may make a build, and process {pid} on "):
            make_build(config, history())
        assert named(config.root) == was
        other = configuration(config.root.with_name("other"), PROJECT, BEGIN, STOP)
        make_build(other, history())
    make_build(config, history())


def test_an_error_while_a_build_is_made_changes_nothing(
    config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_build(config, history())
    was = named(config.root)
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.builds.hand_over", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            correct_again(config, 1)
    assert named(config.root) == was
    now = correct_again(config, 2)
    assert not (config.root / "generations" / "unfinished").exists()
    assert now.build == 1


def test_a_stream_whose_record_is_damaged_ends_a_build_before_the_switch(
    config: Configuration,
) -> None:
    begun = begin_stream(make_build(config, history()))
    (begun.stream_folder / "stream.json").write_text("{")
    was = named(config.root)
    with pytest.raises(DamagedState, match=r"stream\.json is not JSON .* without --resume"):
        make_build(config, history())
    assert named(config.root) == was


STEPS = (
    "tidemill.pipelines.ingest.read_source:ReadSource.write_log",
    "tidemill.pipelines.history.stages:split_span",
    "tidemill.pipelines.history.stages:answer_part",
    "tidemill.pipelines.history.stages:write_file",
    "tidemill.pipelines.history.stages:write_state",
    "tidemill.pipelines.history.backfill:point_in_time",
    "tidemill.pipelines.history.backfill:hand_over",
    "tidemill.pipelines.history.backfill:log_history",
    "tidemill.pipelines.history.backfill:BuildManifest.write",
    "tidemill.pipelines.history.builds:Build.finish",
    "tidemill.pipelines.history.builds:write_current",
)
"""The calls at which a backfill is killed: its log is there, its training table, its states, ..."""


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_sources(folder)
    (folder / "tidemill.yaml").write_text(rides_yaml())
    backfill(load(folder / "tidemill.yaml"), QuietProgress(), publish=True)
    return folder


def correct_a_file(folder: Path) -> None:
    """Remove a ride from the source."""
    lines = (folder / "rides.csv").read_text().splitlines(keepends=True)
    (folder / "rides.csv").write_text("".join([*lines[:9], *lines[10:]]))


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_backfill_that_is_killed_at_any_step_never_happened(
    step: str, corrected: bool, backfilled: Path, tmp_path: Path
) -> None:
    """Of a corrected history, and of the same one, where it adds to the current generation."""
    folder = shutil.copytree(backfilled, tmp_path / "project")
    root = folder / "run"
    if corrected:
        correct_a_file(folder)
    elif step.endswith("log_history"):
        shutil.rmtree(read_current(root).offline_root)  # else it has nothing to write
    was, before = named(root), read_current(root)
    rejected, store = tree(root / "rejected"), (root / "online.db").read_bytes()
    command = ["backfill", "--publish", "--quiet", "--config", str(folder / "tidemill.yaml")]
    assert killed(step, *command) == -signal.SIGKILL
    assert named(root) == was
    assert tree(root / "rejected") == rejected
    assert (root / "online.db").read_bytes() == store

    # The lock is free, and what the killed one has left is removed.
    config = load(folder / "tidemill.yaml")
    summary = backfill(config, QuietProgress())
    now = read_current(root)
    assert (now.generation != before.generation) == corrected
    assert summary["generation"] == now.generation
    assert not (root / "generations" / "unfinished").exists()
    kept = {path.name for path in (root / "generations").iterdir() if path.is_dir()}
    assert kept == {before.generation, now.generation}
    builds_kept = {path for name in kept for path in (root / "generations" / name).glob("build-*")}
    assert builds_kept == {before.build_folder, now.build_folder}
    assert build_of(root) == now.build_folder
