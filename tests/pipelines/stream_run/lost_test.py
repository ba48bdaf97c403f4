"""A stream that goes on without what its topics have lost: refused, accepted, proven."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.memory_topics import PROJECT, MemoryTopics, TopicProject
from tests.support.said import Said
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import InputError, PositionOutOfRange, RecreatedTopic
from tidemill.pipelines.commands.follow_proof import content, line
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.committed_offsets import group_of
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.io.live.lost import INCARNATION, Why, offset_of
from tidemill.pipelines.io.live.poll_files import LOST, read_table
from tidemill.pipelines.io.live.set_aside import rejected_records
from tidemill.pipelines.report.page import render_report
from tidemill.pipelines.report.proof_page import render_proof_page
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.summary import read_summary, write_summary
from tidemill.pipelines.status.collect import collect
from tidemill.pipelines.status.screen import render
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.compare_lost import compare_lost
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.follow.follow import FollowOptions, follow
from tidemill.pipelines.verify.verify import verify


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TopicProject:
    """A project whose sources go on in topics, with its history."""
    topics = MemoryTopics()
    topics.install(monkeypatch)
    now = time.time_ns() // 1_000 // MINUTE * MINUTE
    project = TopicProject(tmp_path / "shop", topics, begin_us=now - HOUR - 2 * MINUTE)
    backfill(project.config(), QuietProgress())
    return project


def send(project: TopicProject, steps: int = 20) -> None:
    project.send(time.time_ns() // 1_000 - SECOND, steps=steps, every_us=1000)


def lose(project: TopicProject, source: str, partition: int, messages: int) -> str:
    """Send messages, and delete some that were not read; return the option that accepts that."""
    last = project.live.polls.last()
    assert last is not None
    at = offset_of(last.offsets[source][partition])
    while len(project.topics.topics[source][partition]) < at + messages:
        send(project, 1)
    project.topics.delete_before(source, partition, at + messages)
    return f"{source}/{partition}@{at}-{at + messages - 1}"


def proven(project: TopicProject) -> dict[str, Any]:
    found = verify(project.config(), QuietProgress(), sample=20)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def test_what_is_lost_stops_the_stream_until_exactly_that_is_accepted(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(project)
    options: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(project, "wait_until_read", _reads_once(project))
        meanwhile = lambda: options.append(_at_once(project, "payments", 1))  # noqa: E731
        with pytest.raises(PositionOutOfRange) as caught:
            project.stream(patch, meanwhile=meanwhile, mode="eager")
    project.topics.install(monkeypatch)
    assert f"tidemill stream --resume --accept-lost {options[0]}" in str(caught.value)
    before = project.live.polls.last()
    assert before is not None
    options.append(lose(project, "checks", 1, 3))
    # Nothing goes on by itself, nor with a part of it; a person is told of all.
    for some in ([], options[:1]):
        said = Said()
        with pytest.raises(PositionOutOfRange, match="--accept-lost all-"):
            project.stream(monkeypatch, said, resume=True, accept_lost=some)
        assert [one for one in options if any(one in text for text in said.lines)] == options
    last = project.live.polls.last()
    assert last is not None
    assert last.encode() == before.encode()

    send(project)
    project.stream(monkeypatch, resume=True, accept_lost=options)
    found = proven(project)
    assert found["values"] > 0
    assert [(one["source"], one["messages"]) for one in found["lost"]] == [
        ("checks", 3), ("payments", 4)
    ]  # fmt: skip
    assert found["lost_messages"] == 7
    assert len({one["poll"] for one in found["lost"]}) == 1
    assert "(offsets " in found["lost"][1]["said"]
    write_summary(project.config().root, "verify", found)
    page = render_report(project.config(), read_summary(project.config().root))
    assert "Named difference: up to 4 messages of &#39;payments&#39; partition 1" in page

    # The proof beside the stream, and `tidemill status`, say the same.
    record = list(follow(project.config(), FollowOptions(once=True), threading.Event()))[-1].record
    assert record is not None
    assert (record.mismatches, list(record.lost)) == (0, found["lost"])
    assert "7 lost messages accepted" in line(record, 0)
    assert content(record)["lost"] == found["lost"]
    assert "up to 4 messages of &#39;payments&#39; partition 1" in render_proof_page("p", record)
    standing = collect(project.config(), lambda _: {})
    assert list(standing.lost) == found["lost"]
    assert "LOST      payments: up to 4 messages · accepted" in render(standing).plain

    # What is lost later is refused again, whatever was accepted before.
    lose(project, "payments", 0, 2)
    said = Said()
    with pytest.raises(PositionOutOfRange):
        project.stream(monkeypatch, said, resume=True, accept_lost=options)
    with pytest.raises(InputError, match="no source has a topic"):
        stream(replace(project.config(), sources={}), said, accept_lost=options)

    # A record that was changed is found.
    (path,) = (project.live.folder / LOST).glob("*.arrow")
    table = read_table(path)
    place = table.schema.get_field_index("start")
    changed = table.set_column(place, "start", pa.array([0, 0], pa.int64()))
    project.live.files(LOST).write(int(path.stem), changed)
    tampered = Findings()
    assert compare_lost(project.config(), QuietProgress(), tampered)["lost_mismatches"] == 2
    assert {one.what for one in tampered.listed} == {"log"}


def _at_once(project: TopicProject, source: str, partition: int) -> str:
    """Let messages come that are deleted before anybody reads them."""
    messages = project.topics.topics[source][partition]
    end = len(messages)
    project.topics.delete_before(source, partition, end + 4)
    messages.extend([(0, b"never read")] * 4)
    return f"{source}/{partition}@{end}-{end + 3}"


def _reads_once(project: TopicProject) -> Any:
    """Wait until all is read for the first time; then until the stream has ended."""
    waited: list[bool] = []
    until_read = project.wait_until_read

    def wait(ended: Any) -> None:
        if waited:
            ended.wait(60)
        waited.append(True)
        until_read(ended)

    return wait


def test_a_topic_that_was_made_again_goes_on_with_positions_that_only_rise(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(project)
    for topic in ("payments", "checks"):
        project.topics.topics[topic][0].append((time.time_ns() // 1_000, b"no JSON"))
    project.stream(monkeypatch, mode="eager")
    before = proven(project)
    project.topics.make_again("payments")
    # The new topic comes to hold more messages than the position, and others at each offset.
    project.topics.topics["payments"][0].append((time.time_ns() // 1_000, b"no JSON"))
    while min(map(len, project.topics.topics["payments"])) < 40:
        send(project, 5)
    with pytest.raises(RecreatedTopic, match="--accept-lost payments@id-paymentsx"):
        project.stream(monkeypatch, resume=True)
    project.stream(monkeypatch, resume=True, accept_lost=["payments@id-paymentsx"])
    found = proven(project)
    assert found["values"] > before["values"]
    assert [one["why"] for one in found["lost"]] == [str(Why.RECREATED)] * 2
    assert found["lost_messages"] == 0  # nobody knows how many
    assert project.live.sealed().offsets["payments"] == [
        INCARNATION + len(one) for one in project.topics.topics["payments"]
    ]
    # A build that takes these rows in says what they lack.
    live = find_live_rows(project.current, PROJECT)
    assert live is not None
    record = live.record("payments")
    assert record is not None
    assert record["lost"] == [one["said"] for one in found["lost"]]
    assert (live.record("checks") or {}).get("lost") is None
    # Others see the offsets that the broker has.
    committed = project.topics.committed[group_of(project.config())]
    assert committed[Partition("payments", 0)] == len(project.topics.topics["payments"][0])
    # Two messages that could not be used, of one offset or not, are two.
    tables = rejected_records(project.live)
    origins = [origin for table in tables for origin in table.column("origin").to_pylist()]
    assert len(origins) == len(set(origins)) == 3
    assert f"payments/0@{INCARNATION}" in origins

    # A partition that ends before the position: others are written in the place of its messages.
    messages = project.topics.topics["checks"][1]
    at = len(messages)
    del messages[-2:]
    with pytest.raises(PositionOutOfRange, match=f"--accept-lost checks/1@{at - 2}-{at - 1}"):
        project.stream(monkeypatch, resume=True)
    project.stream(
        monkeypatch,
        meanwhile=lambda: send(project),
        resume=True,
        accept_lost=[f"checks/1@{at - 2}-{at - 1}"],
    )
    again = proven(project)
    assert again["values"] > found["values"]
    assert [one["why"] for one in again["lost"]][-1] == str(Why.SHORTER)
    assert project.live.sealed().offsets["checks"][1] == INCARNATION + len(messages)
