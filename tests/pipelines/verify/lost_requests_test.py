"""A request of a live stream that should have been answered, and was not, is found and named."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.memory_topics import PROJECT, TopicProject
from tests.support.stream_outputs import outputs_of, put_outputs
from tidemill.features.contract import SECOND, Int64Array
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.recovery.stream_beginning import repeat_stream
from tidemill.pipelines.report.page import report_of_root
from tidemill.pipelines.report.proof_page import render_proof_page
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import Cause, ProofRecord
from tidemill.pipelines.run.summary import write_summary
from tidemill.pipelines.status.ask_brokers import Answer
from tidemill.pipelines.status.collect import collect
from tidemill.pipelines.status.screen import render
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.telemetry.proof_figures import ProofFigures
from tidemill.pipelines.telemetry.stream_record import StreamRecord
from tidemill.pipelines.verify.due_requests import DueRequests
from tidemill.pipelines.verify.follow.follow import FollowOptions, follow
from tidemill.pipelines.verify.lost_requests import (
    IN_FLIGHT_US,
    Found,
    LostRequests,
    Standing,
)
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import write_current

FEATURES = len(PROJECT.columns)


def nobody(topics: Mapping[str, KafkaTopic]) -> dict[str, Answer]:
    """Answer as brokers that are away."""
    return {name: Answer(None, "away") for name in topics}


class Topics(TopicProject):
    """A project whose polls are made here, as if a stream that answers nothing had taken them."""

    def begin(self, mode: str = "exact") -> None:
        """Write the record of a stream."""
        backfill(self.config(), QuietProgress())
        current = self.config().current
        handoff = read_record(current.build_folder / paths.STATES)
        self.pinned = self.config(pinned=replace(current, stream=1))
        self.folder_of_stream.mkdir(parents=True)
        self.run = StreamRun.beginning(handoff, mode, self.poll_rows, clock="wall")
        self.run.write(self.folder_of_stream)
        write_current(self.pinned.current)

    @property
    def folder_of_stream(self) -> Path:
        return self.pinned.current.stream_folder

    def find(self, clock_us: int | None = None) -> Found:
        now_us = self.now_us if clock_us is None else clock_us
        return LostRequests(self.pinned, self.run, clock_us=lambda: now_us).find()

    def keep(self, polls: int) -> None:
        """Let a savepoint hold polls."""
        Savepoint(1, self.now_us, polls, "states").write(self.folder_of_stream)

    @contextmanager
    def running(self, began_us: int) -> Iterator[None]:
        current = self.pinned.current
        record = StreamRecord("r", "shop", 1, "here", "fnapi", "exact", 1, 1, began_us)
        record.write(current.folder)
        with lock(current.stream_lock, "run this generation's stream"):
            yield


@pytest.fixture
def topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topics:
    return Topics.of_now(tmp_path / "shop", monkeypatch, now_us=1_700_010_000 * SECOND)


def answer(topics: Topics, places: list[tuple[int, int]], segment: int = 1) -> None:
    """Write answers to requests: only where they are matters here."""
    outputs = {
        f"{partition}-{position}": pa.record_batch(
            {"partition": pa.array([partition]), "position": pa.array([position])}
        )
        for partition, position in places
    }
    writer = PartWriter(topics.folder_of_stream / paths.PREDICTIONS)
    writer.append(segment, [Output(name, rows) for name, rows in outputs.items()])
    writer.close()


def made_due_by_operators(config: Configuration, run: StreamRun) -> dict[int, int]:
    """Return the poll with which the operators answer each request, by its place."""
    repeat, _ = repeat_stream(config, run)
    found: dict[int, int] = {}
    for part in repeat.polls(repeat.last_poll, range(repeat.last_poll + 1)):
        for batch in part.answered:
            found |= dict.fromkeys(places_of(batch, PARTITION, POSITION).tolist(), part.last_poll)
    return found


@pytest.mark.parametrize("mode", ["exact", "eager"])
@pytest.mark.parametrize("at_once", [True, False])
def test_requests_are_due_when_the_operators_answer_them(
    topics: Topics, mode: str, at_once: bool
) -> None:
    topics.begin(mode)
    topics.read(steps=1, seals=at_once)
    due = DueRequests(topics.pinned, topics.run)
    for number in range(12):
        topics.send(topics.now_us, steps=6, every_us=SECOND // 7)
        # Some requests come behind the frontier.
        topics.send(topics.now_us - (number % 4) * 4 * SECOND, steps=2, every_us=10)
        topics.read(steps=2, seconds=0.7, seals=at_once or number % 3 == 0)
        if not at_once:
            due.read_on()
    due.read_on()
    topics.read(steps=1)
    right = made_due_by_operators(topics.pinned, topics.run)
    asked = due.asked
    found = {
        place: poll - due.before
        for place, poll, is_due in zip(
            asked.places.tolist(), asked.due.max(axis=1).tolist(), asked.is_due, strict=True
        )
        if is_due
    }
    assert len(found) > 20
    # The last poll was not read on.
    last = max(due.last - due.before, 0)
    assert found == {place: poll for place, poll in right.items() if poll <= last}
    if mode == "exact":
        assert len(asked.poll) > len(found)  # some wait
        polls: Int64Array = asked.poll[asked.is_due] - due.before
        assert (np.array(list(found.values())) >= polls).all()


def test_what_is_not_due_waits_and_says_for_what(topics: Topics) -> None:
    topics.begin()
    topics.send(topics.now_us, steps=10, every_us=1)
    topics.read(steps=1)
    found = topics.find()
    assert set(found.counts) == {Standing.WAITING}
    assert found.lost == []
    first = found.first[0]
    assert first.due_poll is None
    assert first.why.startswith("view by_card waits for ")
    assert "its answer needs what is before " in first.why
    assert (first.source, first.poll, first.remedy) == ("checks", 1, "")


def test_a_stream_that_was_killed_is_unfinished_and_its_savepoint_is_not(topics: Topics) -> None:
    topics.begin()
    topics.send(topics.now_us, steps=10, every_us=1)
    topics.read(steps=30, seals=False)
    found = topics.find()
    assert set(found.counts) == {Standing.UNFINISHED}
    assert "--resume" in found.first[0].remedy
    due_poll = found.first[0].due_poll
    assert due_poll is not None
    assert 1 < due_poll < 30
    # A savepoint behind that poll: a resumed stream does not answer these requests.
    topics.keep(due_poll)
    found = topics.find()
    assert set(found.counts) == {Standing.LOST}
    first = found.lost[0]
    assert first.due_poll == due_poll
    assert first.why.startswith(f"due since poll {due_poll}, received at ")
    assert "without --resume" in first.remedy
    assert {one.id for one in found.lost} == {
        row["check"] for rows in topics.rows["checks"][1:] for row in rows
    }
    # One before it: what comes behind would be answered, if the states were there.
    topics.keep(due_poll - 1)
    found = topics.find()
    assert set(found.counts) == {Standing.LOST}
    assert "cannot be resumed" in found.lost[0].why


def test_what_is_answered_or_rejected_is_not_lost(topics: Topics) -> None:
    topics.begin()
    topics.send(topics.now_us, steps=10, every_us=1)
    topics.read(steps=30)
    topics.keep(30)
    lost = topics.find().lost
    assert len(lost) > 3
    answer(topics, [(one.partition, one.position) for one in lost[1:]])
    assert [one.id for one in topics.find().lost] == [lost[0].id]


def test_a_running_stream_has_a_while_for_its_last_polls(topics: Topics) -> None:
    topics.begin()
    began_us = topics.now_us
    topics.send(topics.now_us, steps=10, every_us=1)
    with topics.running(began_us):
        topics.read(steps=12, seals=False)
        found = topics.find()
        assert set(found.counts) == {Standing.WAITING}
        due = found.first[0].due_poll
        assert due is not None
        assert found.first[0].why.endswith("; the stream is at it")
        # It takes no polls: so it has none of these to answer.
        late_us = topics.now_us + 2 * IN_FLIGHT_US
        assert set(topics.find(late_us).counts) == {Standing.WAITING}
        topics.read(steps=10, seals=False)
        found = topics.find(late_us)
        assert set(found.counts) == {Standing.LOST}
        assert found.lost[0].due_poll == due
        assert found.lost[0].why.endswith("the stream runs, and holds the answer back")
        assert "comes out as it stops" in found.lost[0].remedy
    # Nothing runs any more: a resumed stream answers them.
    assert set(topics.find(late_us).counts) == {Standing.UNFINISHED}
    # It does: until it has read a poll of its own it repeats those of the run before.
    with topics.running(topics.now_us + 1):
        assert set(topics.find(late_us).counts) == {Standing.WAITING}
        topics.read(steps=1, seals=False)
        assert set(topics.find(topics.now_us + IN_FLIGHT_US - 1).counts) == {Standing.WAITING}
        assert set(topics.find(topics.now_us + IN_FLIGHT_US).counts) == {Standing.LOST}


def test_a_proof_that_follows_finds_what_is_held_back_before_any_savepoint(
    topics: Topics,
) -> None:
    topics.begin()
    topics.send(topics.now_us, steps=10, every_us=1)
    config = topics.config()
    with topics.running(topics.now_us):
        topics.read(steps=22, seals=False)
        late_us = topics.now_us + 2 * IN_FLIGHT_US
        options, stop = FollowOptions(once=True), threading.Event()
        (step,) = follow(config, options, stop, lambda: topics.now_us)
        assert (step.round, step.said) == (None, "it waits for the first savepoint of the stream")
        # Once: also a second proof does not count again what the first one has found.
        (found, *_) = follow(config, options, stop, lambda: late_us)
        (again, *_) = follow(config, options, stop, lambda: late_us)
    asked = sorted(row["check"] for rows in topics.rows["checks"][1:] for row in rows)
    assert found.record is not None
    assert sorted(found.record.lost_requests) == asked
    assert found.record.causes == {Cause.LOST: len(asked) * FEATURES}
    assert found.record.mismatches == len(asked) * FEATURES
    first = found.found[0]
    assert (first.what, first.cause) == ("lost", Cause.LOST)
    assert "holds the answer back" in first.why
    assert found.said.startswith(f"{len(asked)} requests are lost: stop the stream")
    assert again.round is None
    written = ProofRecord.read(config.root)
    assert written is not None
    assert list(written.lost_requests) == list(found.record.lost_requests)
    page = render_proof_page("shop", found.record)
    assert f"{len(asked)} requests were due" in page
    assert ProofFigures(config.root)()["tidemill_proof_held_back_requests", ()] == len(asked)
    standing = collect(config, ask=nobody)
    assert standing.proof is not None
    assert standing.proof.lost_requests == len(asked)
    assert f"{len(asked)} requests held back" in str(render(standing))


def test_an_answer_that_is_removed_is_lost_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = TopicProject.of_now(tmp_path / "shop", monkeypatch, savepoint_every_us=SECOND)
    backfill(project.config(), QuietProgress())
    project.send(project.now_us, steps=30, every_us=SECOND)
    project.stream(monkeypatch)
    config = project.config()
    found = verify(config, QuietProgress(), sample=0)
    assert (found["mismatches"], found["lost_requests"]) == (0, 0), found["first_mismatches"]
    predictions = config.current.stream_folder / paths.PREDICTIONS
    answered = predictions_of(config.current.stream_folder).read()
    assert answered is not None
    assert len(answered) > 5
    gone: dict[str, Any] = {}
    for segment in range(1, 20):
        outputs = outputs_of(predictions, segment)
        if outputs:
            name = min(outputs)
            gone = outputs[name].slice(0, 1).to_pylist()[0]
            outputs[name] = outputs[name].slice(1)
            put_outputs(predictions, segment, outputs)
            break
    found = verify(config, QuietProgress(), sample=0)
    assert found["lost_requests"] == 1
    assert found["mismatches"] == FEATURES
    assert [one["what"] for one in found["first_mismatches"]] == ["lost"]
    (named,) = found["first_lost"]
    assert (named["request"], named["source"], named["partition"], named["position"]) == (
        gone["request_id"], "checks", gone["partition"], gone["position"],
    )  # fmt: skip
    # It was due with the release that had answered it.
    assert named["due_poll"] == gone["release__by_card"]
    assert named["why"] in found["first_mismatches"][0]["cause"]
    write_summary(config.root, "verify", found)
    assert ProofFigures(config.root)()["tidemill_proof_lost_requests", ()] == 1
    assert collect(config, ask=nobody).lost_requests == 1
    page = report_of_root(config).read_text()
    assert "The first requests without an answer: lost" in page
    assert gone["request_id"] in page
