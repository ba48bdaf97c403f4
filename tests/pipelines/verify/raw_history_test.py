"""The history of a live stream: the rows that are sealed, and no others."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.pipelines.io.live.live_log_test import Killed, goes_on, killed_at, lived
from tests.support.scripted_topics import PROJECT, Rig
from tidemill.features.contract import TIME_MAX
from tidemill.pipelines.ingest.build_topics import BuildTopic, write_topics
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.verify.raw_history import logged_history, with_live_rows
from tidemill.pipelines.verify.source_history import History


def history_of(rig: Rig, *, is_live: bool = True) -> History:
    """Return the history of the build with the live rows."""
    current = SimpleNamespace(build_folder=rig.build, folder=rig.folder)
    config = SimpleNamespace(project=PROJECT, is_live=is_live, current=current)
    return with_live_rows(cast(Any, config), logged_history(rig.build, PROJECT))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = lived(tmp_path, polls=6)
    write_topics(
        rig.build, {"paid": BuildTopic("paid", (7, 7, 7)), "asked": BuildTopic("asked", (0,))}
    )
    return rig


def places(history: History, source: str) -> list[tuple[int, int]]:
    rows = history.sources[source].rows
    columns = (rows.column(name).to_pylist() for name in (PARTITION, POSITION))
    return list(zip(*columns, strict=True))


def test_sealed_rows_are_added_to_those_of_the_files(rig: Rig) -> None:
    sealed = rig.live.seal(rig.build, TIME_MAX)
    history = history_of(rig)
    for source in ("paid", "asked"):
        counts = [5, *sealed.positions[source]]
        expected = [(n, at) for n, count in enumerate(counts) for at in range(count)]
        assert places(history, source) == expected
        assert history.sources[source].counts.kept == len(expected)
    assert len(places(history_of(rig, is_live=False), "paid")) == 5


def test_a_stream_that_has_not_begun_has_no_live_rows(rig: Rig) -> None:
    shutil.rmtree(rig.folder / "live")
    assert places(history_of(rig), "paid") == [(0, n) for n in range(5)]


def test_rows_of_a_seal_that_was_killed_are_left_out(rig: Rig) -> None:
    rig.live.seal(rig.build, TIME_MAX)
    before = places(history_of(rig), "paid")
    rig.restarted()
    goes_on(rig, 3, random.Random(9))
    with killed_at(3, after=True), pytest.raises(Killed):
        rig.live.seal(rig.build, TIME_MAX)
    assert sum(rig.log.lengths("paid")) > len(before)
    assert places(history_of(rig), "paid") == before
    rig.live.seal(rig.build, TIME_MAX)
    assert len(places(history_of(rig), "paid")) == sum(rig.log.lengths("paid"))
