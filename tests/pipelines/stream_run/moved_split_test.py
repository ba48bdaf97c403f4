"""Streams that begin amid the rows that an earlier stream has read, at a split moved forward."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, instant
from tests.support.memory_topics import NAMES, PROJECT, MemoryTopics, TopicProject
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.generations.current import read_current


class Said(QuietProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


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
    project = TopicProject(
        tmp_path / "shop", topics, begin_us=now - 2 * HOUR, poll_rows=4,
        archive=Archive(tmp_path / "archive"),
    )  # fmt: skip
    backfill(project.config(), QuietProgress())
    # An hour that nobody has read when the stream begins: it is received within a second.
    project.send(project.until_us, steps=120, every_us=30 * SECOND)
    (tmp_path / "archive").write_text("in the way")
    said = Said()
    first = project.stream(monkeypatch, said)
    assert any("the archive is behind the stream, which goes on" in line for line in said.lines)
    (tmp_path / "archive").unlink()
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
    live = sum(len(rows) for name in NAMES for rows in project.rows[name][1:])
    assert (found["archive_rows"], found["archive_behind"]) == (live, 0)
    assert found["late_values"] == 0


def test_the_split_moves_while_a_stream_runs(tmp_path: Path, broker: TestBroker) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="2s")
    project.run("backfill")
    yaml = project.folder / "tidemill.yaml"
    begun = f'evaluate_until: "{instant(project.until_us)}"'
    project.produce(40, 20)
    with project.streaming() as process:
        project.wait_for(20, process)
        split_us = time.time_ns() // 1_000
        project.produce(40, 20)
        project.wait_for(40, process)
        until = f'evaluate_until: "{instant(split_us)}"'
        yaml.write_text(yaml.read_text().replace(begun, until))
        wait_until_sealed(project, split_us)
        project.run("backfill")  # beside the stream, whose rows before the split are in it
        project.produce(20, 10)
        project.wait_for(50, process)
        project.drain(process)
    before = {row["request_id"]: row for row in project.predictions()}
    folder = stream_of(project.folder / "run")
    with project.streaming() as process:
        project.produce(20, 10)
        deadline = time.monotonic() + 60
        while stream_of(project.folder / "run") == folder:
            assert time.monotonic() < deadline, project.log()
            time.sleep(0.1)
        project.wait_for(40, process)
        project.drain(process)
    after = {row["request_id"]: row for row in project.predictions()}
    assert sorted(after) == sorted(f"checks-{n}" for n in range(20, 60))
    for request in after.keys() & before.keys():
        for name, value in after[request].items():
            if name.startswith("by_card__"):
                assert value == before[request][name]
    assert project.verify() == 4 * (50 + 40)
    assert "equal" in project.run("explain", "checks-41")


def wait_until_sealed(project: LiveProject, until_us: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        current = read_current(project.folder / "run")
        live = LiveLog(current.folder / LIVE, PROJECT)  # what it seals is not asked
        if (live.read_until_us() or 0) > until_us:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)
