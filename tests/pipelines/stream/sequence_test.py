"""Sequenced batches: they are encoded, and split by shard without losing their order."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.strategies import to_batch
from tests.support.streaming_project import PROJECT, START, random_rows
from tests.support.transcript import PLAN as TINY_PLAN
from tests.support.transcript import STREAM, VIEW, parse
from tidemill.features.kernel.hashing import shard_of
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.stream.sequence import (
    REQUEST_ROWS,
    SequencedBatch,
    decode_batches,
    encode_batches,
    event_rows,
    request_rows,
    sequenced_events_schema,
    split_by_shard,
)

EVENTS = sequenced_events_schema(TINY_PLAN)


def test_batches_come_back_as_they_were() -> None:
    batches = [
        parse("1 events 3 [5,7) <10: a@3=1 b@5=-2"),
        parse("1 events 0 [0,0) <-4"),
        parse("1 requests 1 [4,5) <12: a@8"),
        SequencedBatch(2**40, False, 2, 0, 9, -(2**62), 77, None),
    ]
    again = list(decode_batches(encode_batches(batches), EVENTS))
    assert [
        (b.poll, b.is_request, b.partition, b.start, b.stop, b.watermark_us, b.sent_us)
        for b in again
    ] == [
        (1, False, 3, 5, 7, 10, 0),
        (1, False, 0, 0, 0, -4, 0),
        (1, True, 1, 4, 5, 12, 0),
        (2**40, False, 2, 0, 9, -(2**62), 77),
    ]
    for batch, found in zip(batches, again, strict=True):
        if batch.rows is None:
            assert found.rows is None
        else:
            assert found.rows is not None
            assert found.rows.equals(batch.rows)


def test_a_slice_travels_alone() -> None:
    """Only the rows of the slice are encoded, not the rows beside it."""
    whole = parse("1 events 0 [0,300) <10: " + " ".join(f"k{n}@{n}={n}" for n in range(300)))
    assert whole.rows is not None
    small = SequencedBatch(1, False, 0, 7, 9, 10, 0, whole.rows.slice(7, 2))
    data = encode_batches([small])
    (again,) = decode_batches(data, EVENTS)
    assert again.rows is not None
    assert again.rows.column("key").to_pylist() == ["k7", "k8"]
    assert len(data) < len(encode_batches([whole])) / 10


def test_nothing_is_no_batches() -> None:
    assert encode_batches([]) == b""
    assert list(decode_batches(b"", EVENTS)) == []


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_rows_go_to_the_shard_of_their_key_in_their_order(shards: int) -> None:
    keys = [f"k{n % 17}" for n in range(200)]
    batch = parse("1 events 0 [0,200) <10: " + " ".join(f"{k}@{n}=1" for n, k in enumerate(keys)))
    assert batch.rows is not None
    split = split_by_shard(batch.rows, shards, np.zeros(200, np.int64))[0]
    assert len(split) == shards
    found: list[int] = []
    for shard, rows in enumerate(split):
        if rows is None:
            continue
        assert rows.num_rows > 0
        assert set(shard_of(rows.column("key"), shards).tolist()) == {shard}
        positions = rows.column("ordinal").to_pylist()
        assert positions == sorted(positions)
        found += positions
    assert sorted(found) == list(range(200))


def test_no_rows_are_nothing_for_every_shard() -> None:
    rows = parse("1 requests 0 [0,1) <10: a@1").rows
    assert rows is not None
    assert split_by_shard(rows.slice(0, 0), 3, np.zeros(0, np.int64)) == {}


def test_rows_of_each_part_are_split_as_if_they_were_alone() -> None:
    keys = [f"k{n % 17}" for n in range(90)]
    batch = parse("1 events 0 [0,90) <10: " + " ".join(f"{k}@{n}=1" for n, k in enumerate(keys)))
    assert batch.rows is not None
    part = np.repeat([0, 2, 3], [1, 60, 29])
    for shards in (1, 4):
        split = split_by_shard(batch.rows, shards, part)
        assert split[1] == [None] * shards
        for number in (0, 2, 3):
            (start, *_, last) = [*np.flatnonzero(part == number).tolist() * 2]
            mine = batch.rows.slice(start, last - start + 1)
            alone = split_by_shard(mine, shards, np.zeros(mine.num_rows, np.int64))[0]
            for one, other in zip(split[number], alone, strict=True):
                assert one is other is None or (one is not None and one.equals(other))


def test_a_request_without_a_key_goes_to_shard_0() -> None:
    request, view = PROJECT.request, PROJECT.view("cab")
    asked = [{"at": START, "hail": "h", "cab": None, "zone": None, "riders": 1}]
    positions, groups = np.array([7]), np.array([3])
    received = np.array([START + 5])
    asked_rows = to_batch(request.schema, asked)
    rows = request_rows(PROJECT, view, asked_rows, positions, groups, received)
    assert rows.schema.equals(REQUEST_ROWS)
    assert rows.to_pylist() == [
        {"key": None, "time": START, "ordinal": 7, "group": 3, "arrival": START + 5}
    ]
    split = split_by_shard(rows, 4, np.array([0]))[0]
    assert split[0] is not None
    assert split[1:] == [None, None, None]


def test_event_rows_carry_their_positions_and_their_digests() -> None:
    made = [{"at": n, "id": f"i{n}", "key": "a", "n": n} for n in (4, 9)]
    batch = to_batch(STREAM.schema, made)
    positions = np.array([5, 6])
    # Nothing arrives before the instant after it.
    received = np.array([4, 12])
    rows = event_rows(TINY_PLAN, VIEW, batch, positions, received)
    assert rows.schema.equals(EVENTS)
    assert rows.column("ordinal").to_pylist() == [5, 6]
    assert rows.column("arrival").to_pylist() == [5, 12]
    given = np.array([[1, 2], [3, 4]], np.uint64)
    digests = event_rows(TINY_PLAN, VIEW, batch, positions, received, given).column("digest")
    assert digests[1].as_py() == (3).to_bytes(8, "little") + (4).to_bytes(8, "little")


def test_an_int64_key_is_its_decimal_digits() -> None:
    view = PROJECT.view("zone")
    rows = random_rows(1, trips=3)["trips"][:1]
    rows[0]["zone"] = -3
    batch = to_batch(view.stream.schema, rows)
    prepared = event_rows(make_plan(view), view, batch, np.array([0]), np.array([0]))
    assert prepared.column("key").to_pylist() == ["-3"]
