"""Shard: a poll becomes one element for each operator, and its requests go to the joining stage."""

from __future__ import annotations

import random

import apache_beam as beam
import pytest

from tests.pipelines.io.poll_test import PLANS
from tests.support.streaming_project import (
    ENGINES,
    PARTITIONS,
    PROJECT,
    START,
    arrivals,
    collect,
    collected,
    pipeline_on,
    random_polls,
    random_rows,
)
from tidemill.features.contract import MINUTE
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.stream.featurize_options import operator_key
from tidemill.pipelines.stream.joiner_key import is_joiner_key
from tidemill.pipelines.stream.shard import Shard, is_batches, request_parts, shard_poll
from tidemill.pipelines.stream.wire_format import decode_part


def polls_of(seed: int) -> list[Poll]:
    chance = random.Random(seed)
    arrived = arrivals(PROJECT, random_rows(seed), PARTITIONS, chance)
    return random_polls(PROJECT, arrived, START + 11 * MINUTE, 5, chance)


@pytest.mark.parametrize("engine", ENGINES)
def test_elements_carry_their_operators_key(engine: str) -> None:
    polls = polls_of(1)
    pipeline, choice = pipeline_on(engine, streaming=False)
    out = pipeline | beam.Create(polls) | "Shard" >> beam.ParDo(Shard(PROJECT, 3))
    collect({"sharded": out})
    run(pipeline, choice)
    expected = [
        (operator_key(PROJECT, view, shard, 3), data)
        for poll in polls
        for view, shard, data in shard_poll(PROJECT, PLANS, 3, poll)
    ]
    sharded = collected("sharded")
    assert sorted(filter(is_batches, sharded)) == sorted(expected)
    asked = [part for poll in polls for part in request_parts(PROJECT, poll)]
    found = [decode_part(data) for key, data in sharded if is_joiner_key(key)]
    assert len(found) + len(expected) == len(sharded)
    assert sorted(part.group for part in found) == sorted(part.group for part in asked)  # type: ignore[union-attr]


def test_a_key_holds_view_definition_shard_and_shard_count() -> None:
    view = PROJECT.views[1]
    assert operator_key(PROJECT, 1, 2, 3) == f"zone/{view.hash}/2/3"
