"""Streams that begin amid the rows that an earlier stream has read, at a split moved forward."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.memory_topics import NAMES, MemoryTopics, TopicProject
from tests.support.said import Said
from tests.support.stream_outputs import rows_in
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import InputError, StateMismatch
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.verify import verify


def answers(project: TopicProject) -> dict[str, dict[str, Any]]:
    folder = project.current.stream_folder / "predictions"
    rows = rows_in(folder)
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
    project = TopicProject.of_now(
        tmp_path / "shop", monkeypatch, ago_us=HOUR, poll_rows=4,
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
    assert 5 < len(after) < len(before)
    for request, values in after.items():
        assert values == before[request]
    found = verify(project.config(), QuietProgress())
    assert found["mismatches"] == 0, found["first_mismatches"]
    assert len(found["earlier"]) == 1
    live = sum(len(rows) for name in NAMES for rows in project.rows[name][1:])
    assert (found["archive_rows"], found["archive_behind"]) == (live, 0)
    assert found["late_values"] == 0


def test_the_split_moves_while_a_stream_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    now = time.time_ns() // 1_000
    project = TopicProject(
        tmp_path / "shop", topics, begin_us=now - HOUR - SECOND, savepoint_every_us=SECOND // 4
    )
    config = project.config()
    backfill(config, QuietProgress())
    project.send(now, steps=30, every_us=SECOND // 10)

    def move() -> None:
        """Build beside the stream, as of an instant amid what it has read."""
        # Behind all that was sent, however fast the stream has begun.
        time.sleep(max(0.0, (now + 4 * SECOND - time.time_ns() // 1_000) / SECOND))
        split_us = time.time_ns() // 1_000
        with pytest.raises(InputError, match="the topics are read up to"):
            backfill(moved(config, split_us), QuietProgress())
        project.send(split_us, steps=30, every_us=SECOND // 10)
        deadline = time.monotonic() + 180
        while (project.live.read_until_us() or 0) <= split_us:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        project.until_us = split_us
        backfill(project.config(), QuietProgress())
        project.send(split_us + 20 * SECOND, steps=20, every_us=SECOND // 10)

    def moved(config: Configuration, until_us: int) -> Configuration:
        return replace(config, splits=replace(config.splits, evaluate_until_us=until_us))

    project.stream(monkeypatch, meanwhile=move)
    before = answers(project)
    build = project.current.build_folder
    logged = sum(map(len, project.rows["checks"]))
    assert 0 < sum(Log(build).lengths("checks")) < logged
    with pytest.raises(StateMismatch, match="began at another instant"):
        project.stream(monkeypatch, resume=True)
    # Of a time to come, so that the watermarks pass all that was there.
    project.send(time.time_ns() // 1_000 + MINUTE, steps=20, every_us=SECOND // 10)
    project.stream(monkeypatch)
    after = answers(project)
    assert 0 < len(after.keys() & before.keys()) < len(before)
    for request in after.keys() & before.keys():
        assert after[request] == before[request]
    found = verify(project.config(), QuietProgress())
    assert found["mismatches"] == 0, found["first_mismatches"]
    explained = explain(project.config(), next(iter(after.keys() & before.keys())))
    assert {value.verdict for value in explained.values} == {"equal"}
