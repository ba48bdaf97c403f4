"""Featurize on real engines: the answers equal batch bit for bit, however the engine behaves."""

from __future__ import annotations

import json
import pickle
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.runners.runner import PipelineResult
from apache_beam.runners.worker import statecache
from apache_beam.testing import test_stream
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from tests.support.streaming_project import (
    ENGINES,
    PARTITIONS,
    PROJECT,
    START,
    PlainStream,
    Row,
    Vector,
    arrivals,
    collect,
    collected,
    elements_of,
    end_of,
    expected_vectors,
    pipeline_on,
    random_polls,
    random_rows,
    vectors_of,
    write_log,
)
from tidemill.features.contract import MINUTE
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.io import replay
from tidemill.pipelines.io.coders import PollCoder
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import Replay, ReplayOptions
from tidemill.pipelines.stream import featurize, snapshot_policy, waiting_rows
from tidemill.pipelines.stream.featurize import (
    ANSWERS,
    PUBLICATIONS,
    RELEASES,
    UNANSWERED,
    Featurize,
)
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.shard import Shard
from tidemill.pipelines.stream.state_files import read_handoff, state_path, write_handoff
from tidemill.pipelines.stream.token_cache import TokenCache
from tidemill.pipelines.stream.windowed import windowed
from tidemill.pipelines.stream.wire_format import pack_publications, unpack_publications
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.metrics import EARLY, REPEATS
from tidemill.pipelines.telemetry.stage_figures import FiguresPlace, counted_by_beam

SHARDS = 2


def options(**other: Any) -> FeaturizeOptions:
    return FeaturizeOptions(run=uuid.uuid4().hex, shards=SHARDS, partitions=PARTITIONS, **other)


def a_run(seed: int, polls: int = 12) -> tuple[dict[str, list[Row]], list[Poll]]:
    chance = random.Random(seed)
    rows = random_rows(seed)
    arrived = arrivals(PROJECT, rows, PARTITIONS, chance)
    return rows, random_polls(PROJECT, arrived, end_of(rows), polls, chance)


def outputs(out: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
    return {name: out[name] for name in (ANSWERS, PUBLICATIONS, RELEASES, UNANSWERED)}


def answers() -> dict[Any, Vector]:
    return vectors_of(PROJECT, collected(ANSWERS))


def of_polls(
    engine: str, polls: list[Poll], made: FeaturizeOptions, between: Any = None
) -> PipelineResult:
    """Run polls through a bounded pipeline; ``between`` disturbs the operators' input."""
    pipeline, choice = pipeline_on(engine, streaming=False)
    sharded = pipeline | beam.Create(polls) | "Shard" >> beam.ParDo(Shard(PROJECT, SHARDS))
    if between is not None:
        disturbed = beam.ParDo(between()).with_output_types(tuple[str, bytes])
        sharded = sharded | "Disturb" >> disturbed
    collect(outputs(sharded | Featurize(PROJECT, made)))
    return run(pipeline, choice)


@pytest.mark.parametrize("engine", ENGINES)
def test_bounded_polls_give_the_answers_of_batch(engine: str) -> None:
    rows, polls = a_run(1)
    of_polls(engine, polls, options())
    assert answers() == expected_vectors(PROJECT, rows)
    assert collected(UNANSWERED) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unbounded_replay_gives_the_answers_of_batch(engine: str, tmp_path: Path) -> None:
    rows = random_rows(2, trips=300, hails=150)
    write_log(tmp_path, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(2)))
    source = ReplayOptions(tmp_path, START - MINUTE, START + 11 * MINUTE, poll_rows=20, speed=None)
    pipeline, choice = pipeline_on(engine, streaming=True)
    sharded = pipeline | Replay(PROJECT, source) | "Shard" >> beam.ParDo(Shard(PROJECT, SHARDS))
    collect(outputs(sharded | Featurize(PROJECT, options())))
    run(pipeline, choice)
    assert answers() == expected_vectors(PROJECT, rows)
    assert collected(UNANSWERED) == []
    seen = newest_counters()
    assert sum(entry["late"] + entry["late_requests"] for entry in seen.values()) == 0
    assert sum(entry["requests"] for entry in seen.values()) == 150 * len(PROJECT.views)


def evidence() -> list[dict[str, Any]]:
    return sorted((json.loads(text) for _, text in collected(RELEASES)), key=_number)


def newest_counters() -> dict[tuple[str, int], dict[str, int]]:
    return {(entry["view"], entry["shard"]): entry["seen"] for entry in evidence()}


def _number(entry: dict[str, Any]) -> int:
    return int(entry["number"])


class DoubleAndReorder(beam.DoFn):
    """Emits every element of a bundle twice, in another order."""

    def __init__(self) -> None:
        self._elements: list[Any] = []

    def start_bundle(self) -> None:
        self._elements = []

    def process(self, element: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
        self._elements.append(element)
        yield from ()

    def finish_bundle(self) -> Iterator[Any]:
        doubled = self._elements * 2
        random.Random(len(doubled)).shuffle(doubled)
        for element in doubled:
            yield windowed(element, START)


class DropOne(beam.DoFn):
    """Loses one element of one operator, chosen by the test."""

    LOST: tuple[str, bytes] | None = None

    def process(self, element: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
        if element != DropOne.LOST:
            yield element


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_doubles_and_reorders_changes_no_answer(engine: str) -> None:
    rows, polls = a_run(3)
    place, figures = FiguresPlace("doubled"), Figures("doubled")
    with place.leads_to(figures):
        result = of_polls(engine, polls, options(figures=place), DoubleAndReorder)
    assert answers() == expected_vectors(PROJECT, rows)
    assert collected(UNANSWERED) == []
    # Of each element one of the two is a repeat, whatever the process counts it.
    batches = sum(PARTITIONS[view.stream.name] + PARTITIONS["hails"] for view in PROJECT.views)
    assert counted_by_beam(result, REPEATS) == batches * SHARDS * len(polls)
    assert counted_by_beam(result, REPEATS) == figures.total(REPEATS)
    assert counted_by_beam(result, EARLY) == figures.total(EARLY)


def lose_one(polls: list[Poll]) -> None:
    """Have `DropOne` lose the zone's shard 1 of the third poll."""
    plain = elements_of(PROJECT, SHARDS, [polls[2]])
    (data,) = [data for view, shard, data in plain if (view, shard) == (1, 1)]
    DropOne.LOST = (operator_key(PROJECT, 1, 1, SHARDS), data)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_loses_an_element_fails_the_job(engine: str) -> None:
    _, polls = a_run(4)
    lose_one(polls)
    with pytest.raises(Exception, match=r"zone shard 1 of 2: poll 3 never came for .*"):
        of_polls(engine, polls, options(gap_batches=3), DropOne)


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_behind_a_lost_element_get_no_wrong_answer(engine: str) -> None:
    """With a large gap allowed, the job ends and the requests get no answer."""
    rows, polls = a_run(4)
    lose_one(polls)
    made = options(gap_batches=1_000)
    of_polls(engine, polls, made, DropOne)
    found, expected = answers(), expected_vectors(PROJECT, rows)
    assert len(found) < len(expected)
    assert found == {name: expected[name] for name in found}
    assert [e["number"] for e in evidence() if (e["view"], e["shard"]) == ("zone", 1)] == [1, 2]


def test_test_stream_wires_polls_to_answers() -> None:
    """On the only engine with TestStream: answers come after each poll, not at the end."""
    rows, polls = a_run(5, polls=6)
    source = test_stream.TestStream(coder=PollCoder())
    for poll in polls:
        source.add_elements([poll])
    source.advance_watermark_to_infinity()
    pipeline, choice = pipeline_on("bundle", streaming=True)
    sharded = pipeline | source | "Shard" >> beam.ParDo(Shard(PROJECT, SHARDS))
    collect(outputs(sharded | Featurize(PROJECT, options())))
    run(pipeline, choice)
    assert answers() == expected_vectors(PROJECT, rows)
    assert {entry["number"] for entry in evidence()} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("engine", ENGINES)
def test_eager_answers_state_the_instant_they_are_for(engine: str) -> None:
    """One poll holds all rows; the answers are those of plain operators, as of their instants."""
    rows, polls = a_run(6, polls=1)
    of_polls(engine, polls, options(mode=Mode.EAGER))
    found = answers()
    plain = PlainStream(PROJECT, SHARDS, PARTITIONS, mode=Mode.EAGER)
    plain.run(polls)
    assert found == vectors_of(PROJECT, plain.answered)
    # Each shard has its own instant: not before the request.
    assert len(found) == len(rows["hails"])
    assert all(min(found[row["hail"]][1]) >= row["at"] for row in rows["hails"])


@pytest.mark.parametrize("engine", ENGINES)
def test_publications_are_what_plain_operators_publish(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release by release, because bundles decide nothing."""
    monkeypatch.setattr(featurize._Operate, "_next_attempt", staticmethod(lambda before: before))
    _, polls = a_run(7)
    of_polls(engine, polls, options())
    plain = PlainStream(PROJECT, SHARDS, PARTITIONS)
    plain.run(polls)
    expected = sorted(
        pack_publications(plain.operator(view, shard), release)
        for view, shard, release in plain.releases
    )
    assert sorted(collected(PUBLICATIONS)) == expected
    assert len(expected) == len(polls) * SHARDS * len(PROJECT.views)


class FinishBundleWrites(beam.DoFn):
    """Counts a key's bundles in state that is only written in finish_bundle."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    BAG = BagStateSpec("bag", VarIntCoder())
    NEWEST = BagStateSpec("newest", VarIntCoder())

    def start_bundle(self) -> None:
        self._cells: dict[str, Any] = {}

    def process(
        self,
        element: tuple[str, int],
        count: Any = beam.DoFn.StateParam(COUNT),
        bag: Any = beam.DoFn.StateParam(BAG),
        newest: Any = beam.DoFn.StateParam(NEWEST),
    ) -> None:
        self._cells[element[0]] = (count, bag, newest)

    def finish_bundle(self) -> Iterator[Any]:
        for key, (count, bag, newest) in self._cells.items():
            before = count.read() or 0
            count.write(before + 1)
            bag.add(before)
            # What is added after it was cleared in the same bundle is alone.
            assert list(newest.read()) == ([before - 1] if before else [])
            newest.clear()
            newest.add(before)
            yield windowed((key, before, sorted(bag.read())), START)


@pytest.mark.parametrize("engine", ENGINES)
def test_state_written_in_finish_bundle_is_committed(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators need this detail of Beam 2.77: a bundle sees the state of the one before."""
    rows = random_rows(8, trips=300, hails=150)
    write_log(tmp_path, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(2)))
    weighed: list[Any] = []
    monkeypatch.setattr(statecache, "get_deep_size", lambda *values: weighed.append(values) or 1)
    # The source defers after every poll, which ends the bundle.
    monkeypatch.setattr(replay._Read, "moment_s", -1.0)
    source = ReplayOptions(tmp_path, START - MINUTE, START + 11 * MINUTE, poll_rows=60)
    pipeline, choice = pipeline_on(engine, streaming=True)
    counted = (
        pipeline
        | Replay(PROJECT, source)
        | beam.Map(_keyed).with_output_types(tuple[str, int])
        | beam.ParDo(FinishBundleWrites())
    )
    collect({"counted": counted})
    run(pipeline, choice)
    found = sorted(collected("counted"))
    assert not weighed, (
        "Beam's state cache is on: see tidemill.pipelines.engines.choosing.STATE_CACHE_MB"
    )
    assert [before for _, before, _ in found] == list(range(len(found)))
    assert [bag for _, _, bag in found] == [list(range(n + 1)) for n in range(len(found))]
    assert len(found) > 1, "there was one bundle only: nothing is shown"


def _keyed(poll: Poll) -> tuple[str, int]:
    return "key", poll.number


# The cache of decoded operators.


class Poisoned(TokenCache):
    """A cache with the entries of an older bundle, as after a failed bundle."""

    def __init__(self) -> None:
        super().__init__(most=100)
        self.older: dict[Any, tuple[bytes, bytes]] = {}
        self.offered = 0

    def put(self, key: tuple[str, str], token: bytes, value: Any) -> None:
        before = self.older.get(key)
        self.older[key] = (token, pickle.dumps(value))
        if before is not None:
            self.offered += 1
            super().put(key, before[0], pickle.loads(before[1]))


class NeverThere(TokenCache):
    """An empty cache, as on another worker."""

    def __init__(self) -> None:
        super().__init__(most=1)

    def put(self, key: tuple[str, str], token: bytes, value: Any) -> None:
        """Keep nothing."""


def streamed(tmp_path: Path, seed: int, made: FeaturizeOptions) -> dict[str, list[Row]]:
    """Run polls as a stream of many bundles."""
    rows, polls = a_run(seed)
    source = test_stream.TestStream(coder=PollCoder())
    for poll in polls:
        source.add_elements([poll])
    source.advance_watermark_to_infinity()
    pipeline, choice = pipeline_on("bundle", streaming=True)
    collect(
        outputs(
            pipeline
            | source
            | "Shard" >> beam.ParDo(Shard(PROJECT, SHARDS))
            | Featurize(PROJECT, made)
        )
    )
    run(pipeline, choice)
    return rows


def test_a_stale_operator_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operators, joiners = Poisoned(), Poisoned()
    monkeypatch.setattr(featurize, "_OPERATORS", operators)
    monkeypatch.setattr(featurize, "_JOINERS", joiners)
    rows = streamed(tmp_path, 9, options())
    assert operators.offered > 0
    assert joiners.offered > 0
    assert answers() == expected_vectors(PROJECT, rows)


@pytest.mark.parametrize(
    ("snapshot_events", "joiner_log_bytes"), [(1, 0), (10_000, 10_000), (10_000, 10_000_000)]
)
def test_operators_and_joiner_are_rebuilt_from_snapshot_and_log(
    snapshot_events: int, joiner_log_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bundle starts from state: from a snapshot, the log, or both."""
    monkeypatch.setattr(featurize, "_OPERATORS", NeverThere())
    monkeypatch.setattr(featurize, "_JOINERS", NeverThere())
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_EVENTS", snapshot_events)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_TILES", 0)
    monkeypatch.setattr(snapshot_policy, "JOINER_LOG_BYTES", joiner_log_bytes)
    monkeypatch.setattr(waiting_rows, "MOST_IN_HEAD", 2)
    began = int(time.time())
    rows = streamed(tmp_path, 10, options())
    assert answers() == expected_vectors(PROJECT, rows)
    # An operator that is decoded later has a higher number, so that a store can refuse the older.
    assert attempts()["cab", 0] == sorted(attempts()["cab", 0])
    assert began <= attempts()["cab", 0][-1] <= time.time()


def attempts() -> dict[tuple[str, int], list[int]]:
    """Return the attempt numbers in the publications of each shard, without repeats, in order."""
    found: dict[tuple[str, int], dict[int, None]] = {}
    for data in collected(PUBLICATIONS):
        one = unpack_publications(data)
        found.setdefault((one.view, one.shard), {})[one.attempt] = None
    return {shard: list(numbers) for shard, numbers in found.items()}


def test_an_operator_that_stays_in_its_process_keeps_its_attempt_number(tmp_path: Path) -> None:
    began = int(time.time())
    streamed(tmp_path, 10, options())
    for (number,) in attempts().values():
        assert began <= number <= time.time()


def test_a_handed_over_state_is_the_same_whatever_the_engine_did(tmp_path: Path) -> None:
    operator = make_operator(PROJECT, operator_key(PROJECT, 0, 1, SHARDS), options())
    write_handoff(tmp_path / "calm", operator)
    operator.attempt, operator.counters.repeats, operator.counters.early = 3, 5, 7
    write_handoff(tmp_path / "busy", operator)
    calm, busy = (state_path(tmp_path / name, operator.key) for name in ("calm", "busy"))
    assert calm.read_bytes() == busy.read_bytes()


# Handing over.


def test_a_handed_over_state_is_found_by_its_key(tmp_path: Path) -> None:
    key = operator_key(PROJECT, 0, 1, SHARDS)
    operator = make_operator(PROJECT, key, options())
    write_handoff(tmp_path, operator)
    assert state_path(tmp_path, operator.key).name == "cab-00001-of-00002.state"
    again = make_operator(PROJECT, key, options())
    read_handoff(tmp_path, again)
    assert again.key == operator.key
    other = make_operator(PROJECT, operator_key(PROJECT, 0, 0, SHARDS), options())
    with pytest.raises(FileNotFoundError, match="cab shard 0 of 2: no handed-over state at"):
        read_handoff(tmp_path, other)


def test_operators_know_their_partitions_and_lateness() -> None:
    operator = make_operator(PROJECT, operator_key(PROJECT, 2, 1, 4), options(publish=False))
    assert (operator.inputs.event_partitions, operator.inputs.request_partitions) == (1, 2)
    assert operator.inputs.lateness_us == 0
    assert (operator.key.view, operator.key.shard, operator.key.shards) == ("weather", 1, 4)
    trips = make_operator(PROJECT, operator_key(PROJECT, 0, 0, 1), options())
    assert trips.inputs.lateness_us == 30_000_000
