"""The stream's laws: it equals batch and the oracle, whatever the engine does to batches.

Definitions and rows are random. The log is divided into partitions, cut into random polls and
sharded; elements are delivered shuffled, twice or not at all. No engine runs here, so that many
cases are tried; `tests/pipelines/stream/featurize_test.py` has the same deliveries on engines.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from tests.support import strategies
from tests.support.streaming_project import (
    Arrived,
    Element,
    PlainStream,
    Row,
    Vector,
    arrivals,
    elements_of,
    expected_vectors,
    random_polls,
    vectors_of,
)
from tidemill import FeatureView, Project, Request
from tidemill.features.contract import format_duration
from tidemill.features.errors import PartitionGap
from tidemill.features.kernel.encoding import canonical_bytes
from tidemill.features.oracle.values import Oracle
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.shard import request_parts

DELIVERY = "delivery"
LAW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Case:
    """A project over one random view, its rows, and their order of arrival.

    Attributes:
        project: The project.
        rows: The rows by source.
        arrived: The rows by partition, in order of arrival.
        polls: The log, cut into polls.
        partitions: The partitions by source.
        shards: The number of shards of the view.
        chance: Decides how elements are delivered.
    """

    project: Project
    rows: dict[str, list[Row]]
    arrived: list[Arrived]
    polls: list[Poll]
    partitions: dict[str, int]
    shards: int
    chance: random.Random

    @property
    def view(self) -> FeatureView:
        return self.project.views[0]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    drawn = draw(strategies.views(max_features=4))
    out_of_orderness = draw(st.sampled_from((0, drawn.hop_us, 5 * drawn.hop_us)))
    stream = replace(
        drawn.stream,
        schema={**drawn.stream.schema, DELIVERY: "int64"},
        transport=[DELIVERY],
        out_of_orderness=format_duration(out_of_orderness),
    )
    view = replace(drawn, stream=stream)
    request = Request(
        "asked",
        schema={"at": "timestamp", "id": "int64", "key": view.entity.dtype},
        request_time="at",
        request_id="id",
        keys={view.entity.name: "key"},
        out_of_orderness=format_duration(draw(st.sampled_from((0, drawn.hop_us)))),
    )
    project = Project("drawn", request=request, views=[view])
    events = draw(strategies.events(drawn, max_size=20))
    asked = draw(strategies.requests(drawn, events))
    # Some are delivered again, and some have no key.
    again = draw(st.lists(st.sampled_from(events), max_size=6)) if events else []
    keyless = draw(st.lists(st.sampled_from(events), max_size=3)) if events else []
    events = [*events, *again, *({**row, view.key: None} for row in keyless)]
    events = [{**row, DELIVERY: number} for number, row in enumerate(events)]
    rows = {
        "events": events,
        "asked": [{"at": at, "id": i, "key": key} for i, (key, at) in enumerate(asked)],
    }
    partitions = {"events": draw(st.integers(1, 3)), "asked": draw(st.integers(1, 3))}
    chance = draw(st.randoms(use_true_random=False))
    arrived = arrivals(project, rows, partitions, chance)
    end = max(row["at"] for mine in rows.values() for row in mine) + 1
    polls = random_polls(project, arrived, end, draw(st.integers(1, 6)), chance)
    return Case(project, rows, arrived, polls, partitions, draw(st.integers(1, 3)), chance)


def start(case: Case, mode: Mode = Mode.EXACT, gap_batches: int = 1_000) -> PlainStream:
    return PlainStream(
        case.project, case.shards, case.partitions, mode=mode, gap_batches=gap_batches
    )


def deliver(case: Case, stream: PlainStream, elements: list[Element]) -> dict[int, Vector]:
    """Deliver the elements in bundles of any size; the requests come at any time."""
    waiting = [part for poll in case.polls for part in request_parts(case.project, poll)]
    case.chance.shuffle(waiting)
    at = 0
    while at < len(elements):
        size = case.chance.randint(1, 5)
        parts = stream.operate(elements[at : at + size])
        at += size
        asked = [waiting.pop() for _ in range(min(len(waiting), case.chance.randint(0, 2)))]
        stream.join([*parts, *asked])
    stream.join(waiting)
    return vectors_of(case.project, stream.answered)


def of_oracle(case: Case) -> dict[int, tuple[int | None, ...]]:
    """Return the oracle's values as 64-bit patterns, by request."""
    oracle = Oracle(case.view, case.rows["events"])
    out = {}
    for row in case.rows["asked"]:
        words: list[int | None] = []
        for value in oracle.values(row["key"], row["at"]).values():
            as_bits = np.array([value]).view(np.int64)[0] if isinstance(value, float) else value
            words.append(None if as_bits is None else int(as_bits))
        out[row["id"]] = tuple(words)
    return out


@LAW
@given(cases())
def test_stream_equals_batch_equals_oracle_however_the_log_is_cut(case: Case) -> None:
    stream = start(case)
    stream.run(case.polls)
    found = vectors_of(case.project, stream.answered)
    assert found == expected_vectors(case.project, case.rows)
    assert {name: words for name, (words, _) in found.items()} == of_oracle(case)
    assert not stream.joiner.pending


@LAW
@given(cases())
def test_elements_that_come_shuffled_and_doubled_give_the_same_answers_and_state(
    case: Case,
) -> None:
    orderly = start(case)
    orderly.run(case.polls)
    elements = elements_of(case.project, case.shards, case.polls)
    doubled = elements + case.chance.sample(elements, case.chance.randint(0, len(elements)))
    case.chance.shuffle(doubled)
    stream = start(case)
    assert deliver(case, stream, doubled) == expected_vectors(case.project, case.rows)
    assert not stream.joiner.pending
    for key, operator in orderly.operators.items():
        assert canonical_bytes(stream.operators[key].state) == canonical_bytes(operator.state)
        assert stream.operators[key].state.frontier_us == operator.state.frontier_us
        assert stream.operators[key].expected == operator.expected
        assert not any(stream.operators[key].held)


@LAW
@given(cases())
def test_an_element_that_never_comes_is_noticed_and_nothing_is_wrong(case: Case) -> None:
    """Every answer is right; what was lost is given up, and the operator names it."""
    elements = elements_of(case.project, case.shards, case.polls)
    # Lose elements of one operator only, so that the lost rows are known.
    lost = case.chance.randrange(len(elements))
    _, shard, _ = elements[lost]
    stream = start(case)
    found = deliver(case, stream, elements[:lost] + elements[lost + 1 :])
    expected = expected_vectors(case.project, case.rows)
    assert found == {name: expected[name] for name in found}
    poll = case.polls[lost // case.shards]
    final = poll is case.polls[-1]
    event(f"final: {final}")
    unanswered = {
        name
        for part in stream.joiner.drain()
        for name in part.rows.column("id").to_pylist()
        if part.views == ("view",)
    }
    assert sorted([*found, *unanswered]) == [row["id"] for row in case.rows["asked"]]
    operator = stream.operators.get((0, shard))
    if operator is not None and not final:
        assert operator.held, "an element was lost, and nothing waits behind the gap"


@LAW
@given(cases())
def test_a_gap_fails_within_gap_batches(case: Case) -> None:
    elements = [e for e in elements_of(case.project, case.shards, case.polls) if e[1] == 0]
    assume(len(elements) > 1)
    lost = case.chance.randrange(len(elements) - 1)
    stream = start(case, gap_batches=0)
    stream.operate(elements[:lost])
    with pytest.raises(PartitionGap, match=r"poll \d never came for event partition 0 "):
        stream.operate(elements[lost + 1 :])


@LAW
@given(cases())
def test_an_eager_answer_is_the_batch_value_of_what_was_seen(case: Case) -> None:
    """The answer is as of the instant that it states, from the events that had arrived by then."""
    stream = start(case, mode=Mode.EAGER)
    stream.run(case.polls)
    answered = vectors_of(case.project, stream.answered)
    assert sorted(answered) == [row["id"] for row in case.rows["asked"]]
    for poll in case.polls:
        read = list(zip(case.arrived, poll.parts, strict=True))
        before, now, asked = [], [], []
        for mine, part in read:
            for at, (row, received) in enumerate(
                zip(mine.rows[: part.stop], mine.received_us, strict=False)
            ):
                arrival = max(received, row["at"] + 1)
                if part.source == "events":
                    before += [row] if at < part.start else []
                    now += [(row, arrival)] if at >= part.start else []
                elif part.source == "asked" and at >= part.start:
                    asked.append((row, arrival))
        for row, arrival in asked:
            seen = before + [event for event, came in now if came < arrival]
            as_of = {row["id"]: answered[row["id"]][1]}
            assert as_of[row["id"]][0] >= row["at"]
            expected = expected_vectors(case.project, {"events": seen, "asked": [row]}, as_of)
            assert answered[row["id"]] == expected[row["id"]]
