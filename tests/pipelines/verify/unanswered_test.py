"""A stream that has published and answered nothing yet is proven, too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.memory_topics import TopicProject
from tidemill.features.contract import SECOND
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.output_folders import predictions_of, releases_of
from tidemill.pipelines.verify.verify import verify


def test_a_stream_that_has_answered_nothing_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = TopicProject.of_now(
        tmp_path / "shop", monkeypatch, partitions=4, savepoint_every_us=SECOND // 4
    )
    backfill(project.config(), QuietProgress())
    assert verify(project.config(), QuietProgress(), sample=0)["mismatches"] == 0

    def meanwhile() -> None:
        config, deadline = project.config(), time.monotonic() + 60
        project.send(time.time_ns() // 1_000, steps=8, every_us=10)
        while Savepoint.read(config.current.stream_folder) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            # Requests wait for what comes a second later.
            project.send(time.time_ns() // 1_000, steps=1, every_us=10)

    project.stream(monkeypatch, meanwhile=meanwhile)
    config = project.config()
    stream = config.current.stream_folder
    assert releases_of(stream).has_any()
    assert not predictions_of(stream).has_any()
    found = verify(config, QuietProgress(), sample=0)
    assert (found["mismatches"], found["predictions"]) == (0, 0), found["first_mismatches"]
    assert found["waiting_requests"] > 0
    assert found["releases"] > 0
    assert found["store_rows"] > 0
