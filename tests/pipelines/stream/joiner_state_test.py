"""The joining stage's state as bytes: decoding restores it, and only for its project."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.frames import of_version
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    WEATHER,
    PlainStream,
    arrivals,
    elements_of,
    end_of,
    random_polls,
    random_rows,
)
from tidemill import Project
from tidemill.features.errors import StateMismatch, StateVersionError
from tidemill.features.kernel.prepare import matrix_of, nulls_of
from tidemill.pipelines.stream.answer_join import AS_OF, RELEASE, SHARD, AnswerJoiner
from tidemill.pipelines.stream.answer_parts import Part, SavepointPart
from tidemill.pipelines.stream.shard import request_parts

SHARDS = 2


def joiner(project: Project = PROJECT, shards: int = SHARDS) -> AnswerJoiner:
    return AnswerJoiner(project, shards, answer_within_us=60_000_000, gap_releases=3)


def some_parts(seed: int, chance: random.Random) -> list[Part]:
    """Parts of a stream in any order, some missing, some twice, some about a savepoint."""
    rows = random_rows(seed, trips=12, hails=10)
    polls = random_polls(
        PROJECT, arrivals(PROJECT, rows, PARTITIONS, chance), end_of(rows), 6, chance
    )
    plain = PlainStream(PROJECT, SHARDS, PARTITIONS)
    parts: list[Part] = []
    for poll in polls:
        parts += request_parts(PROJECT, poll)
        parts += plain.operate(elements_of(PROJECT, SHARDS, [poll]))
    parts += [
        SavepointPart(operator.key.view, shard, operator.number, operator.waiting_groups())
        for (_, shard), operator in plain.operators.items()
    ]
    chance.shuffle(parts)
    return parts[: chance.randint(0, len(parts))]


def same(one: AnswerJoiner, two: AnswerJoiner) -> bool:
    """Compare the states of joiners, with the order of their groups."""
    plain = ("early", "closed")
    arrays = ("values", "nulls", "as_of", "release", "shard")
    return (
        all(list(getattr(one, n).items()) == list(getattr(two, n).items()) for n in plain)
        and {at: w for at, w in one.waiting.items() if w} == two.waiting
        and one.savepoints == two.savepoints
        and np.array_equal(one.frontiers, two.frontiers)
        and np.array_equal(one.numbers, two.numbers)
        and list(one.pending) == list(two.pending)
        and all(
            mine.rows.equals(theirs.rows)
            and mine.missing == theirs.missing
            and all(np.array_equal(getattr(mine, a), getattr(theirs, a)) for a in arrays)
            for mine, theirs in zip(one.pending.values(), two.pending.values(), strict=True)
        )
    )


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_law_a_joiners_state_comes_back_as_it_was(seed: int, chance: random.Random) -> None:
    """And equal states have equal bytes; later parts are answered the same."""
    whole = joiner()
    parts = some_parts(seed, chance)
    rest = parts[len(parts) // 2 :]
    whole.receive(parts[: len(parts) // 2])
    data = whole.state()
    again = joiner()
    again.restore(data)
    assert same(whole, again)
    assert again.state() == data
    for part in rest:
        answered, lost = whole.receive([part])
        found, found_lost = again.receive([part])
        assert found == answered
        assert found_lost == lost
    assert again.state() == whole.state()


def test_a_state_of_other_views_or_shards_is_refused() -> None:
    state = joiner().state()
    with pytest.raises(StateMismatch, match=r"of the views cab \(.*\) in 2 shards, .* in 3; start"):
        joiner(shards=3).restore(state)
    other = Project("cabs", request=PROJECT.request, views=[WEATHER], label=None)
    with pytest.raises(
        StateMismatch, match=r"the project has weather .*: the project lacks cab, zone; star"
    ):
        joiner(other).restore(state)
    other = Project("buses", request=PROJECT.request, views=PROJECT.views, label=PROJECT.label)
    with pytest.raises(StateMismatch, match="belongs to 'cabs', expected was 'buses'"):
        joiner(other).restore(state)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_project_whose_views_have_another_order_reads_the_state_right(
    seed: int, chance: random.Random
) -> None:
    """Also answers that have come already, and early ones: each goes to its own view."""
    views = list(PROJECT.views)
    chance.shuffle(views)
    other = replace(PROJECT, views=views)
    whole, again = joiner(), joiner(other)
    parts = some_parts(seed, chance)
    whole.receive(parts[: len(parts) // 2])
    again.restore(whole.state())
    for part in parts[len(parts) // 2 :]:
        answered, lost = whole.receive([part])
        found, found_lost = again.receive([part])
        assert list(map(set, (one.views for one in found_lost))) == [set(o.views) for o in lost]
        for one, two in zip(answered, found, strict=True):
            assert by_view(other, two) == by_view(PROJECT, one)
    back = joiner()
    back.restore(again.state())
    assert back.state() == whole.state()


def by_view(project: Project, answered: pa.RecordBatch) -> dict[str, Any]:
    """Return values, nulls, instant, release and shard of an answered batch by their names."""
    named: dict[str, Any] = {}
    for column, rows in (("values", matrix_of), ("nulls", nulls_of)):
        matrix = rows(answered.column(column))
        for place, feature in enumerate(project.columns):
            named[f"{column} {feature.name}"] = matrix[:, place].tolist()
    for column in (AS_OF, RELEASE, SHARD):
        matrix = matrix_of(answered.column(column))
        for place, view in enumerate(project.views):
            named[f"{column} {view.name}"] = matrix[:, place].tolist()
    return named


def test_a_view_more_or_less_is_refused_by_name() -> None:
    fewer = replace(PROJECT, views=PROJECT.views[:2])
    with pytest.raises(StateMismatch, match=": the project lacks weather; start it from"):
        joiner(fewer).restore(joiner().state())
    with pytest.raises(StateMismatch, match=": the state lacks weather; start it from"):
        joiner().restore(joiner(fewer).state())
    changed = replace(PROJECT, views=[replace(PROJECT.views[0], hop="1m"), *PROJECT.views[1:]])
    with pytest.raises(StateMismatch, match=": other definitions have cab; start it from"):
        joiner(changed).restore(joiner().state())


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(StateVersionError, match="the joining stage: has version 3, this code"):
        joiner().restore(of_version(joiner().state(), 3))
