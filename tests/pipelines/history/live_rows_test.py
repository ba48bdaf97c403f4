"""Builds over live rows: what came through a topic counts like what came in files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.memory_topics import (
    BEGIN,
    NAMES,
    PROJECT,
    MemoryTopics,
    TopicProject,
)
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import InputError, StateMismatch
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import table_digests
from tidemill.pipelines.history.builds import divergences
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import read_record
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TopicProject:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    return TopicProject(tmp_path / "shop", topics)


def built(project: TopicProject, **changes: Any) -> dict[str, Any]:
    return backfill(project.config(**changes), QuietProgress())


def proven(project: TopicProject, **changes: Any) -> dict[str, Any]:
    found = verify(project.config(**changes), QuietProgress())
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def lived(project: TopicProject, minutes: int = 30) -> int:
    """Build, and let a stream read so many minutes; return the instant of its last poll."""
    built(project)
    last = 0
    for _ in range(minutes):
        project.send(project.now_us, steps=2)
        last = project.read(steps=3, seconds=20)
    return last


def files_only(project: TopicProject, folder: Path) -> TopicProject:
    """Return a project whose files hold what the other has read of files and topics."""
    other = TopicProject(folder, MemoryTopics(), until_us=project.until_us)
    for name in NAMES:
        (folder / f"{name}.csv").unlink()
        for number, rows in enumerate(project.rows[name]):
            other.write_file(folder / f"{name}-{number}.csv", name, rows)
    return other


def without_topics(other: TopicProject) -> dict[str, Source]:
    return {
        name: Source(name, (str(other.folder / f"{name}-*.csv"),), received="sent_at")
        for name in NAMES
    }


@pytest.mark.parametrize("files", [True, False])
def test_training_on_rows_of_topics_equals_training_on_the_same_rows_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    project = TopicProject(tmp_path / "shop", topics, files=files)
    last = lived(project)
    project.until_us = last - 5 * MINUTE
    summary = built(project)
    assert summary["sources"]["checks"]["live"] > 20
    assert summary["training"]["labelled"] > 20
    other = files_only(project, tmp_path / "files")
    built(other, sources=without_topics(other))
    digests = [table_digests(one.current.build_folder) for one in (project, other)]
    assert digests[0] == digests[1]
    assert len(digests[0]) >= 2
    proven(project)


def test_a_build_over_live_rows_extends_the_build_before(project: TopicProject) -> None:
    last = lived(project)
    first = project.current
    project.until_us = last - 5 * MINUTE
    built(project)
    second = project.current
    assert second.generation == first.generation
    assert not divergences(Log(first.build_folder), Log(second.build_folder))
    states = read_record(second.build_folder / paths.STATES)
    log = Log(second.build_folder)
    for name in NAMES:
        received = [log.read(name, n).column("_received").to_pylist() for n in range(3)]
        assert [sum(at < project.until_us for at in one) for one in received] == list(
            states.positions[name]
        )
        assert log.lengths(name) == [len(rows) for rows in project.rows[name]]
    # And back before all live rows: they are in the log still, and not in the states.
    project.until_us = BEGIN + HOUR
    built(project)
    assert project.current.generation == first.generation
    assert read_record(project.current.build_folder / paths.STATES).positions["checks"][1:] == [
        0,
        0,
    ]
    proven(project)


def test_rows_received_at_the_split_are_not_in_the_states(project: TopicProject) -> None:
    lived(project, minutes=3)
    instants = project.live.cuts().received_us.tolist()
    ends = project.live.cuts().positions["payments"].tolist()
    for place in range(len(instants) // 2, len(instants), 3):
        project.until_us = instants[place]
        built(project)
        states = read_record(project.current.build_folder / paths.STATES)
        assert states.positions["payments"][1:] == ends[place - 1]


def test_states_are_not_made_as_of_an_instant_that_nobody_has_read_up_to(
    project: TopicProject,
) -> None:
    last = lived(project, minutes=3)
    before = project.current
    project.until_us = last + 1
    built(project)
    project.until_us = last + 2
    with pytest.raises(InputError, match=r"the topics are read up to 2023-.*resume.*read on"):
        built(project)
    assert project.current.build == before.build + 1
    project.now_us += 5 * SECOND
    project.read()
    built(project)


def test_another_topic_or_schema_is_refused_before_anything_is_built(project: TopicProject) -> None:
    lived(project, minutes=2)
    config = project.config()
    topic = config.sources["payments"].kafka
    assert topic is not None
    import dataclasses

    project.topics.topics["others"] = [[], []]
    renamed = dataclasses.replace(
        config.sources["payments"], kafka=dataclasses.replace(topic, topic="others")
    )
    with pytest.raises(StateMismatch, match="have read topic 'payments' of 2 partitions"):
        built(project, sources={**config.sources, "payments": renamed})
    project.topics.topics["payments"].pop()
    with pytest.raises(StateMismatch, match="now there is topic 'payments' of 1 partitions"):
        built(project)


def test_a_live_log_that_is_lost_is_no_growth(project: TopicProject) -> None:
    last = lived(project, minutes=3)
    project.until_us = last
    built(project)
    before = project.current
    shutil.rmtree(project.live.folder)
    proven(project)  # the build's own rows are the witness then
    summary = built(project)
    assert summary["generation"] != before.generation
    assert PROJECT.name == "shop"
