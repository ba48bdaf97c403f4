"""Rows are removed from the live log by age, once all builds have them; and all goes on."""

from __future__ import annotations

import copy
import os
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest

from tests.support.killed_fork import killed_at, steps_of
from tests.support.memory_topics import NAMES, PROJECT, MemoryTopics, TopicProject
from tidemill.features.contract import HOUR, MINUTE
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.live_retention import remove_beside_streams, remove_old_rows
from tidemill.pipelines.io import log, log_digests, log_files, log_pieces
from tidemill.pipelines.io.live import seal
from tidemill.pipelines.io.live.removed import RemovedRows
from tidemill.pipelines.io.log_files import first_position
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.files.locks import lock

BLOCK: Final = 8
"""Rows of a block here, so that few rows have several files."""


def use_small_blocks(patch: pytest.MonkeyPatch) -> None:
    for module in (log, log_digests, log_files, seal):
        patch.setattr(module, "BLOCK_ROWS", BLOCK)
    patch.setattr(log_pieces, "PIECE_ROWS", 3 * BLOCK)
    patch.setattr(os, "fsync", lambda _: None)  # nothing here loses its power


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TopicProject:
    """A project whose stream has read for six hours, and whose builds have all but the last."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        topics = MemoryTopics()
        topics.install(patch)
        project = TopicProject(tmp_path_factory.mktemp("template") / "shop", topics)
        backfill(project.config(), QuietProgress())
        lives(project, 5)
        project.until_us = int(project.live.cuts().received_us[-1])
        backfill(project.config(), QuietProgress())
        lives(project, 1)
        return project


@pytest.fixture
def project(
    template: TopicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TopicProject:
    """A copy of it."""
    use_small_blocks(monkeypatch)
    project = copy.deepcopy(template)
    project.folder = tmp_path / "shop"
    shutil.copytree(template.folder, project.folder)
    project.topics.install(monkeypatch)
    return project


def lives(project: TopicProject, hours: int) -> None:
    for _ in range(hours):
        for _ in range(4):
            project.send(project.now_us, steps=6)
            project.read(steps=1, seconds=120)
        project.now_us += HOUR - 8 * MINUTE


def keeping(project: TopicProject, keep_us: int) -> Configuration:
    config = project.config()
    return replace(config, stream=replace(config.stream, keep_live_us=keep_us))


def rows_of(project: TopicProject) -> dict[tuple[str, int], pa.Table]:
    found = stream_log(project.current, PROJECT)
    return {
        (name, partition): found.read(name, partition)
        for name in NAMES
        for partition in range(found.partitions(name))
    }


def firsts(project: TopicProject) -> list[int]:
    folder = project.live.folder / "rows" / "payments"
    return [first_position(path) for path in sorted(folder.glob("00001-*.arrow"))]


def names_of(project: TopicProject) -> dict[str, int]:
    """Return how many names each file of log and training table of the current build has."""
    build = project.current.build_folder
    paths = [*(build / "log").rglob("*.arrow"), *(build / "features").glob("*.parquet")]
    return {str(path.relative_to(build)): path.stat().st_nlink for path in paths}


def removed(project: TopicProject, keep_us: int) -> int:
    return remove_old_rows(keeping(project, keep_us), project.current, QuietProgress())


def removed_apart(project: TopicProject) -> int:
    """Remove all old rows in a process of its own, in which blocks are small, too."""
    use_small_blocks(pytest.MonkeyPatch())
    return removed(project, 0)


def proven(project: TopicProject) -> dict[str, Any]:
    found = verify(project.config(), QuietProgress(), sample=10)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def test_old_rows_go_from_the_live_log_and_stay_readable(project: TopicProject) -> None:
    # The build before the current one has none of these rows yet: it may be in use.
    assert removed(project, 0) == 0
    backfill(project.config(), QuietProgress())
    before, sealed, files = rows_of(project), project.live.sealed(), firsts(project)
    assert len(files) > 4
    assert removed(project, 1000 * HOUR) == 0
    count = removed(project, 3 * HOUR)
    some = firsts(project)
    assert 0 < len(some) < len(files)
    assert some == files[-len(some) :]
    assert removed(project, 3 * HOUR) == 0
    record = RemovedRows.read(project.live.folder)
    assert record.rows == count
    assert record.first["payments"][0] <= some[0] + BLOCK
    assert removed(project, 0) > 0
    assert rows_of(project) == before
    assert project.live.sealed() == sealed
    found = proven(project)
    assert found["live_rows_removed"] == RemovedRows.read(project.live.folder).rows > count
    # The reader seals more, another build takes it in, and that can go as well.
    lives(project, 2)
    more = rows_of(project)
    assert all(more[at].slice(0, len(rows)) == rows for at, rows in before.items())
    for _ in range(2):
        backfill(keeping(project, HOUR), QuietProgress())
    assert RemovedRows.read(project.live.folder).rows > record.rows
    assert rows_of(project) == more
    # Nothing came between the two, so they are of the same files.
    assert [path for path, count in names_of(project).items() if count == 1] == []
    proven(project)


def test_a_corrected_history_takes_the_record_over(project: TopicProject) -> None:
    backfill(project.config(), QuietProgress())
    count = removed(project, HOUR)
    rows, generation = rows_of(project)["payments", 1], project.current.generation
    project.rows["payments"][0][3]["amount"] = 7.5
    project.write_file(project.folder / "payments.csv", "payments", project.rows["payments"][0])
    backfill(project.config(), QuietProgress())
    assert project.current.generation != generation
    assert RemovedRows.read(project.live.folder).rows == count
    assert rows_of(project)["payments", 1] == rows
    proven(project)


def test_what_stands_in_for_removed_rows_is_proven(project: TopicProject) -> None:
    backfill(project.config(), QuietProgress())
    removed(project, HOUR)
    record = RemovedRows.read(project.live.folder)
    digests = {name: ["0" * 64, *of[1:]] for name, of in record.digests.items()}
    replace(record, digests=digests).write(project.live.folder)
    found = verify(project.config(), QuietProgress(), sample=1)
    assert found["mismatches"] == len(NAMES)
    assert "are not those that were removed" in found["first_mismatches"][0]["id"]
    (project.live.folder / "removed.json").unlink()
    found = verify(project.config(), QuietProgress(), sample=1)
    assert found["mismatches"] > 0
    assert "removed.json" in found["first_mismatches"][0]["id"]


def test_rows_are_forgotten_in_what_stands_in_for_removed_ones(project: TopicProject) -> None:
    backfill(project.config(), QuietProgress())
    removed(project, HOUR)
    before = names_of(project)
    assert {*before.values()} == {1, 2}
    figures = forget(project.config(), "card", "c-1", QuietProgress())
    assert figures["removed"]["rows of logs"] > 10
    assert names_of(project) == before  # what builds have shared they share still
    assert proven(project)["forgotten_rows"] == figures["removed"]["rows of logs"]


def test_a_stream_that_runs_keeps_them(project: TopicProject) -> None:
    backfill(project.config(), QuietProgress())
    config = keeping(project, 0)
    with lock(project.current.stream_lock, "run this generation's stream"):
        assert remove_beside_streams(config, QuietProgress()) == 0
    assert remove_beside_streams(project.config(), QuietProgress()) == 0  # nothing was asked for
    assert remove_beside_streams(config, QuietProgress()) > 0


def test_a_kill_leaves_what_is_removed_later(project: TopicProject, tmp_path: Path) -> None:
    backfill(project.config(), QuietProgress())
    before = rows_of(project)
    shutil.copytree(project.folder, tmp_path / "copy")
    steps = steps_of(partial(removed_apart, project))
    for step in random.Random(1).sample(range(1, len(steps) + 1), 4):
        shutil.rmtree(project.folder)
        shutil.copytree(tmp_path / "copy", project.folder)
        killed_at(step, partial(removed_apart, project))
        assert rows_of(project) == before
        project.send(project.now_us, steps=6)
        project.read(steps=1)
        more = rows_of(project)
        assert all(more[at].slice(0, len(rows)) == rows for at, rows in before.items())
        removed(project, 0)
        assert rows_of(project) == more
