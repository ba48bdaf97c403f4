"""Joiners: however many there are, a stream gives the same; each has a state of its own."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipelines.recovery.handoff_test import (
    BEGIN,
    kill,
    late_arrivals,
    predictions,
    rejected,
    store,
)
from tests.pipelines.recovery.handoff_test import made as made_root
from tests.pipelines.recovery.handoff_test import run as run_stream
from tests.support.folders import stream_of
from tests.support.memory_topics import TopicProject
from tests.support.proof_run import score_without_models
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    PlainStream,
    arrivals,
    elements_of,
    end_of,
    random_polls,
    random_rows,
)
from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.recovery.handoff import StreamRun, last_states
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import Cause
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    RequestPart,
    SavepointPart,
    divided,
    group_of,
    joiner_of,
)
from tidemill.pipelines.stream.joiner_key import ONLY_JOINER, JoinerKey, is_joiner_key
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.shard import request_parts
from tidemill.pipelines.stream.wire_format import addressed
from tidemill.pipelines.verify.follow import follow as follow_module
from tidemill.pipelines.verify.follow.follow import FollowOptions, follow
from tidemill.serving.generations.current import read_current

SHARDS = 2
JOINERS = (1, 2, 3, 5)
MANY = {**PARTITIONS, "hails": 6}
Part = RequestPart | AnswerPart


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model, which these tests do not need."""
    score_without_models(monkeypatch)


def parts_of(seed: int, lost: float, chance: random.Random) -> list[Part]:
    """All parts of a small run; some releases come without their answers."""
    rows = random_rows(seed, trips=40, hails=24)
    arrived = arrivals(PROJECT, rows, MANY, chance)
    stream = PlainStream(PROJECT, SHARDS, MANY)
    parts: list[Part] = []
    for poll in random_polls(PROJECT, arrived, end_of(rows) + MINUTE, 6, chance):
        parts += request_parts(PROJECT, poll)
        for part in stream.operate(elements_of(PROJECT, SHARDS, [poll])):
            is_lost = chance.random() < lost
            parts.append(replace(part, answers=None) if is_lost else part)
    return parts


Joined = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def joined(joiners: int, parts: Sequence[Part], bundle: int, *, restarts: bool) -> Joined:
    """Let joiners take parts; return what was answered and what was given up, sorted."""
    stage = Joiners.empty(PROJECT, SHARDS, 0, joiners)
    answered: list[tuple[Any, ...]] = []
    given_up: list[tuple[Any, ...]] = []
    for first in range(0, len(parts), bundle):
        if restarts:
            again = Joiners.empty(PROJECT, SHARDS, 0, joiners)
            for one, other in zip(stage.all, again.all, strict=True):
                other.restore(one.state())
            stage = again
        batches, lost = stage.receive(parts[first : first + bundle])
        for batch in batches:
            assert len(set(batch.column(PARTITION).to_pylist())) == 1
            answered += [tuple(row.values()) for row in batch.to_pylist()]
        for one in lost:
            ats = one.rows.column(POSITION).to_pylist()
            given_up += [(one.partition, at, one.views) for at in ats]
    assert stage.requests_pending == 0
    stage.frontiers()
    return sorted(answered, key=repr), sorted(given_up)


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([0.0, 0.2]),
    st.randoms(use_true_random=False),
)
def test_any_number_of_joiners_gives_the_same_answers_and_gives_up_the_same_requests(
    seed: int, bundle: int, restarts: bool, lost: float, chance: random.Random
) -> None:
    parts = parts_of(seed, lost, chance)
    if lost == 0.0:
        chance.shuffle(parts)
    expected = joined(1, parts, bundle, restarts=restarts)
    assert len(expected[0]) + len(expected[1]) > 5
    assert bool(expected[1]) <= (lost > 0)
    for joiners in JOINERS[1:]:
        assert joined(joiners, parts, bundle, restarts=restarts) == expected


def test_every_joiner_gets_a_part_of_each_release_and_no_answer_comes_twice() -> None:
    parts = parts_of(3, 0.0, random.Random(3))
    releases = [part for part in parts if isinstance(part, AnswerPart)]
    for part in releases:
        mine = divided(part, 4)
        assert len(mine) == 4
        rows = [one.answers for one in mine if isinstance(one, AnswerPart) and one.answers]
        answers = 0 if part.answers is None else part.answers.num_rows
        assert sum(one.num_rows for one in rows) == answers
        for number, one in enumerate(mine):
            assert isinstance(one, AnswerPart)
            assert replace(one, answers=None) == replace(part, answers=None)
            groups = [] if one.answers is None else one.answers.column("group").to_pylist()
            assert {joiner_of(group, 4) for group in groups} <= {JoinerKey(number, 4)}
    # One joiner gets the part as it is, and what is the same for many is encoded once.
    assert divided(releases[0], 1) == [releases[0]]
    nothing = replace(releases[0], answers=None)
    encoded = [data for _, data in addressed(nothing, "", 3)]
    assert all(data is encoded[0] for data in encoded)


def test_a_savepoint_part_names_the_requests_of_its_joiner() -> None:
    groups = tuple(group_of(partition, 7) for partition in (0, 1, 3, 4))
    part = SavepointPart("cab", 1, 9, groups, 2)
    found = [one.groups for one in divided(part, 3) if isinstance(one, SavepointPart)]
    assert found == [
        (group_of(0, 7), group_of(3, 7)),
        (group_of(1, 7), group_of(4, 7)),
        (),
    ]


def test_keys_of_joiners_and_of_their_files() -> None:
    for joiners in (1, 2, 11):
        for key in JoinerKey.all(joiners):
            assert JoinerKey.parse(key.text) == key
            assert is_joiner_key(key.text)
    assert (ONLY_JOINER.text, ONLY_JOINER.state_name) == ("requests", "answers.state")
    assert JoinerKey(2, 11).state_name == "answers-00002-of-00011.state"
    assert JoinerKey.of_partition(8, 3) == JoinerKey(2, 3)


def test_a_state_is_of_one_joiner() -> None:
    stage = Joiners.empty(PROJECT, SHARDS, 0, 2)
    stage.receive(parts_of(1, 0.0, random.Random(1))[:9])
    first, second = stage.all
    with pytest.raises(StateMismatch, match="is of joiner 0 of 2, and joiner 1 of 2 begins"):
        second.restore(first.state())
    alone = Joiners.empty(PROJECT, SHARDS, 0, 1).all[0]
    with pytest.raises(StateMismatch, match="is of joiner 0 of 2, and joiner 0 of 1 begins"):
        alone.restore(first.state())


def with_joiners(config: Configuration, joiners: int) -> Configuration:
    return replace(config, stream=replace(config.stream, joiners=joiners))


def outputs(config: Configuration) -> tuple[Any, ...]:
    found = predictions(config), rejected(config), store(config)
    return *found, read_releases(stream_of(config.root))


def test_a_killed_stream_resumes_with_its_number_of_joiners_and_gives_what_one_gives(
    tmp_path: Path,
) -> None:
    arrived = late_arrivals(3)
    alone = made_root(tmp_path / "alone", arrived)
    several = with_joiners(made_root(tmp_path / "several", arrived), 3)
    run_stream(alone)
    run_stream(several, until_us=BEGIN + 3 * MINUTE)
    folder, _ = last_states(read_current(several.root))
    assert sorted(path.name for path in folder.glob("answers*")) == [
        f"answers-0000{number}-of-00003.state" for number in range(3)
    ]
    for joiners in (1, 2, 4):
        with pytest.raises(
            StateMismatch, match=r"with 3 joiners.*says .: set stream\.joiners to 3"
        ):
            run_stream(with_joiners(several, joiners), resume=True)
    shutil.copytree(folder, tmp_path / "kept")
    run_stream(several, until_us=BEGIN + 6 * MINUTE, resume=True)
    kill(several, tmp_path / "kept")
    figures = run_stream(several, resume=True)
    assert figures["predictions"] == figures["requests"] > 10
    assert outputs(several) == outputs(alone)


@pytest.mark.parametrize("apart", [True, False])
def test_a_live_stream_with_joiners_is_resumed_and_proven_while_it_runs(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not apart:  # a version that answered the requests of a poll together has begun it
        begin = StreamRun.beginning
        monkeypatch.setattr(
            StreamRun, "beginning", lambda *given: replace(begin(*given), apart=False)
        )
    monkeypatch.setattr(follow_module, "_IDLE_S", 0.0)
    project = TopicProject.of_now(
        tmp_path / "shop", monkeypatch, partitions=4, joiners=3, savepoint_every_us=SECOND // 4
    )
    backfill(project.config(), QuietProgress())
    rounds: list[Any] = []

    def send(answered: int) -> None:
        config = project.config()
        deadline = time.monotonic() + 60
        while kept(config) < answered:
            assert time.monotonic() < deadline
            project.send(time.time_ns() // 1_000, steps=10, every_us=10)
            time.sleep(0.1)

    def meanwhile() -> None:
        send(2)
        rounds.append(prove(project.config()))

    project.stream(monkeypatch, meanwhile=meanwhile)
    project.send(time.time_ns() // 1_000, steps=20, every_us=10)
    project.stream(monkeypatch, meanwhile=lambda: send(kept(project.config()) + 2), resume=True)
    rounds.append(prove(project.config()))
    config = project.config()
    run = StreamRun.read(config.current.stream_folder)
    assert run is not None
    assert (run.joiners, run.apart) == (3, apart)
    for record in rounds:
        assert not [one for one in record.differences if Cause(one.cause).is_mismatch]
        assert record.values == record.served > 0


def kept(config: Configuration) -> int:
    found = Savepoint.read(config.current.stream_folder)
    return 0 if found is None else found.segment


def prove(config: Configuration) -> Any:
    return list(follow(config, FollowOptions(once=True), threading.Event()))[-1].record
