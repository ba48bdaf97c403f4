"""Streams that begin amid the rows that an earlier stream has read, at a split moved forward."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.memory_topics import MemoryTopics, TopicProject
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify


def answers(project: TopicProject) -> dict[str, dict[str, Any]]:
    folder = project.current.stream_folder / "predictions"
    rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {
        row["request_id"]: {
            name: value
            for name, value in row.items()
            if name.startswith(("by_card__", "as_of__")) or name == "request_time"
        }
        for row in rows
    }


def test_a_stream_that_begins_amid_a_backlog_answers_as_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    now = time.time_ns() // 1_000 // MINUTE * MINUTE
    project = TopicProject(tmp_path / "shop", topics, begin_us=now - 2 * HOUR, poll_rows=4)
    backfill(project.config(), QuietProgress())
    # An hour that nobody has read when the stream begins: it is received within a second.
    project.send(project.until_us, steps=120, every_us=30 * SECOND)
    first = project.stream(monkeypatch)
    assert first["late"] == first["late_requests"] == 0
    before = answers(project)
    assert len(before) > 50
    received = project.live.cuts().received_us
    project.until_us = int(received[len(received) // 3])
    summary = backfill(project.config(), QuietProgress())
    assert 0 < summary["handoff"]["events"] < summary["sources"]["payments"]["logged"]
    again = project.stream(monkeypatch)
    assert again["late"] == again["late_requests"] == 0
    after = answers(project)
    assert 20 < len(after) < len(before)
    for request, values in after.items():
        assert values == before[request]
    found = verify(project.config(), QuietProgress())
    assert found["mismatches"] == 0, found["first_mismatches"]
    assert len(found["earlier"]) == 1
    assert found["late_values"] == 0
