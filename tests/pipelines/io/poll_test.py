"""Polls: all partitions of all sources together, one element for each (view, shard)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    Arrived,
    arrivals,
    poll_part,
    random_rows,
)
from tidemill.features.contract import TIME_MIN
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.io.log import POSITION, RECEIVED, SENT
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream.answer_parts import group_of
from tidemill.pipelines.stream.sequence import (
    SequencedBatch,
    decode_batches,
    sequenced_events_schema,
)
from tidemill.pipelines.stream.shard import request_parts, shard_poll

PLANS = {view.name: make_plan(view) for view in PROJECT.views}


@pytest.fixture
def arrived() -> list[Arrived]:
    return arrivals(PROJECT, random_rows(1), PARTITIONS, random.Random(1))


def poll_of(arrived: list[Arrived], start: int = 2, stop: int = 12) -> Poll:
    return Poll(3, 99, tuple(poll_part(PROJECT, part, start, stop, 1_000) for part in arrived))


def batches_of(poll: Poll, shards: int) -> dict[tuple[int, int], list[SequencedBatch]]:
    return {
        (view, shard): list(
            decode_batches(data, sequenced_events_schema(PLANS[PROJECT.views[view].name]))
        )
        for view, shard, data in shard_poll(PROJECT, PLANS, shards, poll)
    }


def test_a_poll_comes_back_as_it_was(arrived: list[Arrived]) -> None:
    empty = PollPart("rain", 0, 3, 3, TIME_MIN, None)
    poll = Poll(3, 7, (*poll_of(arrived).parts, empty))
    again = Poll.decode(poll.encode())
    assert again.sent_us == 7
    for part, found in zip(poll.parts, again.parts, strict=True):
        assert (found.source, found.partition, found.start) == (
            part.source, part.partition, part.start)  # fmt: skip
        assert (found.stop, found.watermark_us) == (part.stop, part.watermark_us)
        if part.rows is None:
            assert found.rows is None
        else:
            assert found.rows is not None
            assert found.rows.equals(part.rows)


def test_every_operator_gets_every_partition_that_it_depends_on(arrived: list[Arrived]) -> None:
    """Also partitions without rows: their positions and watermarks are needed."""
    found = batches_of(poll_of(arrived), shards=3)
    assert sorted(found) == [(view, shard) for view in range(3) for shard in range(3)]
    hails = [(True, 0), (True, 1)]
    for (view, _), batches in found.items():
        streams = [(False, 0), (False, 1)] if view < 2 else [(False, 0)]
        assert [(b.is_request, b.partition) for b in batches] == [*streams, *hails]
        assert {(b.start, b.stop, b.watermark_us, b.sent_us) for b in batches} == {
            (2, 12, 1_000, 99)
        }


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_every_row_goes_to_one_shard_of_every_view(arrived: list[Arrived], shards: int) -> None:
    found = batches_of(poll_of(arrived), shards)
    for view in range(3):
        positions: dict[tuple[bool, int], list[int]] = {}
        for shard in range(shards):
            for batch in found[view, shard]:
                if batch.rows is not None:
                    mine = positions.setdefault((batch.is_request, batch.partition), [])
                    mine += batch.rows.column("ordinal").to_pylist()
        assert all(sorted(mine) == list(range(2, 12)) for mine in positions.values())
        assert len(positions) == (4 if view < 2 else 3)


def test_a_request_names_its_poll(arrived: list[Arrived]) -> None:
    found = batches_of(poll_of(arrived), shards=1)
    groups = {
        (batch.partition, group)
        for batch in found[0, 0]
        if batch.is_request and batch.rows is not None
        for group in batch.rows.column("group").to_pylist()
    }
    assert groups == {(0, group_of(0, 2)), (1, group_of(1, 2))}


def test_requests_go_to_the_joining_stage_as_they_came(arrived: list[Arrived]) -> None:
    parts = list(request_parts(PROJECT, poll_of(arrived)))
    assert [part.group for part in parts] == [group_of(0, 2), group_of(1, 2)]
    hails = [part for part in arrived if part.source == "hails"]
    for part, mine in zip(parts, hails, strict=True):
        assert part.rows.schema.names == [*PROJECT.request.schema, POSITION, RECEIVED, SENT]
        assert part.rows.column("hail").to_pylist() == [row["hail"] for row in mine.rows[2:12]]
        assert part.rows.column(SENT).to_pylist() == [99] * 10


def test_a_partition_without_rows_gives_no_requests(arrived: list[Arrived]) -> None:
    assert list(request_parts(PROJECT, poll_of(arrived, 4, 4))) == []


def test_a_stream_without_a_view_goes_to_no_operator(arrived: list[Arrived]) -> None:
    """A label's stream is replayed too, but no view waits for it."""
    project = replace(PROJECT, views=PROJECT.views[2:])
    assert {stream.name for stream in project.streams} == {"rain", "trips"}
    ((_, _, data),) = shard_poll(project, PLANS, 1, poll_of(arrived))
    batches = list(decode_batches(data, sequenced_events_schema(PLANS["weather"])))
    assert [(b.is_request, b.partition) for b in batches] == [(False, 0), (True, 0), (True, 1)]
