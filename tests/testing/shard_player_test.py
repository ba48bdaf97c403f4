"""`ShardPlayer`: batches in any order, repeats, restarts, and the named columns of a release."""

from __future__ import annotations

import datetime
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.feature_values_test import BASKETS, SHOP, basket, clock, order, us
from tidemill import Entity, EventStream, FeatureView, count
from tidemill.features.contract import MINUTE
from tidemill.features.errors import BatchConflict, InputError, PartitionGap, SequenceError
from tidemill.pipelines.stream.sequence import SequencedBatch
from tidemill.testing import Released, ShardPlayer, features_at
from tidemill.testing.shard_player import event_batch

FEATURES = ["shop__orders", "shop__spent", "shop__newest", "shop__since"]


def player(**options: Any) -> ShardPlayer:
    return ShardPlayer(SHOP, BASKETS, **options)


def answers(found: Released) -> dict[str, tuple[Any, ...]]:
    """Request id to (number of orders, their sum)."""
    return {
        row["request_id"]: (row["shop__orders"], row["shop__spent"])
        for row in found.answers.to_pylist()
    }


def test_rows_are_released_when_the_frontier_has_passed_them() -> None:
    shop = player()
    rows = shop.events([order(clock(10)), order(clock(10, 4), "o2")], watermark=clock(10, 5))
    asked = shop.requests([basket(clock(10, 4), 1, shop="a")], watermark=clock(10, 5))
    assert shop.receive(rows) == []
    (found,) = shop.receive(asked)
    assert (found.number, found.frontier_us, found.positions) == (1, us(clock(10, 5)), (2, 1))
    assert found.events == 2
    assert found.answers.column_names == ["partition", "position", "request_id", "as_of", *FEATURES]
    assert found.answers.to_pylist() == [
        {
            "partition": 0,
            "position": 0,
            "request_id": "1",
            "as_of": clock(10, 4),
            "shop__orders": 1,
            "shop__spent": 1.0,
            "shop__newest": 1.0,
            "shop__since": 4 * MINUTE,
        }
    ]
    assert found.publications.to_pylist() == [
        {
            "shop": "a",
            "event_timestamp": clock(10, 4) + datetime.timedelta(microseconds=1),
            "valid_until": clock(10, 35),
            "revision": 2,
            "shop__orders": 2,
            "shop__spent": 2.0,
            "shop__newest": 1.0,
            "shop__since": us(clock(10, 4)),
        }
    ]


def test_every_change_is_published_where_that_is_asked_for() -> None:
    shop = player(every_change=True)
    (found,) = shop.receive(
        shop.events([order(clock(10)), order(clock(10, 4), "o2")], watermark=clock(11)),
        shop.requests(watermark=clock(11)),
    )
    values = (
        "shop__orders=1, shop__spent=1.0, shop__newest=1.0, shop__since=1769853600000000",
        "shop__orders=2, shop__spent=2.0, shop__newest=1.0, shop__since=1769853840000000",
        "shop__orders=0, shop__spent=0.0, shop__newest=None, shop__since=None",
    )
    day, end = "2026-01-31T", "until 2026-01-31T10:35:00Z"
    assert found.lines() == [
        f"frontier {day}11:00:00Z",
        f"publication 'a' from {day}10:00:00.000001Z {end}, revision 1: {values[0]}",
        f"publication 'a' from {day}10:04:00.000001Z {end}, revision 2: {values[1]}",
        f"publication 'a' from {day}10:35:00Z for ever, revision 2: {values[2]}",
    ]


def test_a_transcript_has_answers_too_and_entities_in_their_order() -> None:
    shop = player()
    rows = [order(clock(10), "o1", "b"), order(clock(10), "o2", "a", price=None)]
    (found,) = shop.receive(
        shop.events(rows, watermark=clock(10, 5)),
        shop.requests([basket(clock(10, 1), 7, shop="b")], watermark=clock(10, 5)),
    )
    heads = [line.split(":00Z: ")[0].split(", revision")[0] for line in found.lines()]
    assert heads == [
        "frontier 2026-01-31T10:05:00Z",
        "answer 7 as of 2026-01-31T10:01",
        "publication 'a' from 2026-01-31T10:00:00.000001Z until 2026-01-31T10:35:00Z",
        "publication 'b' from 2026-01-31T10:00:00.000001Z until 2026-01-31T10:35:00Z",
    ]


def test_batches_that_come_early_or_twice_change_nothing() -> None:
    shop = player()
    first = shop.events([order(clock(10))], watermark=clock(10))
    second = shop.events([order(clock(10, 1), "o2")], watermark=clock(10, 5))
    asked = shop.requests([basket(clock(10, 2), 1, shop="a")], watermark=clock(10, 5))
    assert (first.start, first.stop, second.start, second.stop) == (0, 1, 1, 2)
    last = shop.requests(watermark=clock(10, 5))
    assert shop.receive(second, asked) == []
    one, two = shop.receive(first, second, last)
    assert (one.number, two.number) == (1, 2)
    assert answers(one) == {}
    assert answers(two) == {"1": (2, 2.0)}
    assert shop.receive(first) == []
    assert (shop.operator.counters.early, shop.operator.counters.repeats) == (1, 2)


def test_equal_rows_count_once() -> None:
    shop = player()
    rows = [order(clock(10)), order(clock(10)), order(clock(10), price=3.0)]
    (found,) = shop.receive(
        shop.events(rows, watermark=clock(10, 5)),
        shop.requests([basket(clock(10, 2), 1, shop="a")], watermark=clock(10, 5)),
    )
    assert answers(found) == {"1": (2, 4.0)}
    assert shop.operator.counters.duplicates == 1


def test_a_late_request_is_answered_as_of_the_frontier() -> None:
    shop = player()
    shop.receive(shop.events(watermark=clock(11)), shop.requests(watermark=clock(11)))
    (found,) = shop.receive(
        shop.events(watermark=clock(12)),
        shop.requests([basket(clock(10), 1, shop="a")], watermark=clock(12)),
    )
    assert found.answers["as_of"].to_pylist() == [clock(11)]


def test_an_eager_player_does_not_wait() -> None:
    shop = player(mode="eager")
    (found,) = shop.receive(
        shop.events(watermark=clock(1)),
        shop.requests([basket(clock(10), 1, shop="a")], watermark=clock(1)),
    )
    assert answers(found) == {"1": (0, 0.0)}
    with pytest.raises(ValueError, match="'hasty' is not a valid Mode"):
        player(mode="hasty")


def test_a_restart_from_an_older_checkpoint_repeats_what_came_after_it() -> None:
    shop = player()
    shop.receive(
        shop.events([order(clock(10))], watermark=clock(10, 5)),
        shop.requests(watermark=clock(10, 5)),
    )
    kept = shop.checkpoint()
    more = (
        shop.events([order(clock(10, 6), "o2")], watermark=clock(10, 10)),
        shop.requests([basket(clock(10, 7), 1, shop="a")], watermark=clock(10, 10)),
    )
    (lost,) = shop.receive(*more)
    shop.restart(kept)
    assert shop.operator.expected == [1, 0]
    (again,) = shop.receive(*more)
    assert again.lines() == lost.lines()
    assert answers(again) == {"1": (2, 2.0)}


@pytest.mark.parametrize("snapshot", [True, False])
def test_what_waits_survives_a_restart(snapshot: bool) -> None:
    shop = player()
    shop.receive(
        shop.events([order(clock(10)), order(clock(10, 9), "o2")], watermark=clock(10, 5)),
        shop.requests([basket(clock(10, 10), 1, shop="a")], watermark=clock(10, 5)),
    )
    before = shop.operator
    kept = shop.checkpoint(snapshot=snapshot)
    assert (kept.snapshot is not None) == snapshot
    assert len(kept.entries) == (0 if snapshot else 1)
    shop.restart(kept)
    assert shop.operator is not before
    (found,) = shop.receive(shop.events(watermark=clock(11)), shop.requests(watermark=clock(11)))
    assert answers(found) == {"1": (2, 2.0)}


def test_a_restart_without_a_checkpoint_goes_on_from_now() -> None:
    shop = player()
    rows = shop.events([order(clock(10))], watermark=clock(10, 5))
    shop.receive(rows, shop.requests(watermark=clock(10, 5)))
    before = shop.operator
    shop.restart()
    assert shop.operator is not before
    assert shop.receive(rows) == []
    (found,) = shop.receive(
        shop.events(watermark=clock(11)),
        shop.requests([basket(clock(10, 7), 1, shop="a")], watermark=clock(11)),
    )
    assert answers(found) == {"1": (1, 1.0)}


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_any_delivery_with_repeats_and_restarts_answers_as_features_at_does(
    chance: random.Random, partitions: int
) -> None:
    start = us(clock(10))
    rows = [
        order(start + chance.randrange(40 * MINUTE), f"o{n}", chance.choice("ab"), n / 4)
        for n in range(30)
    ]
    asked = [
        basket(start + chance.randrange(60 * MINUTE), n, shop=chance.choice(["a", "b", "c", None]))
        for n in range(15)
    ]
    shop = player(event_partitions=partitions)
    batches: list[SequencedBatch] = []
    polls = 9
    for partition in range(partitions):
        mine = sorted(rows[partition::partitions], key=lambda row: row["at"])
        for poll in range(polls - 1):
            some = mine[4 * poll : 4 * poll + 4]
            watermark = some[-1]["at"] if some else start
            batches.append(shop.events(some, watermark=watermark, partition=partition))
        batches.append(shop.events(watermark=clock(12), partition=partition))
    asked.sort(key=lambda row: row["at"])
    for poll in range(polls):
        watermark = asked[2 * poll]["at"] if 2 * poll < len(asked) else clock(12)
        batches.append(shop.requests(asked[2 * poll : 2 * poll + 2], watermark=watermark))
    batches += chance.sample(batches, 4)
    chance.shuffle(batches)
    served: dict[str, tuple[Any, ...]] = {}
    for batch in batches:
        if chance.random() < 0.4:
            shop.restart(shop.checkpoint(snapshot=chance.random() < 0.3))
        for found in shop.receive(batch):
            served |= answers(found)
    for row in asked:
        (right,) = features_at(SHOP, {"orders": rows}, at=row["at"], keys=[row["shop"]]).to_pylist()
        assert served[str(row["id"])] == (right["shop__orders"], right["shop__spent"])


def test_an_int64_key_and_a_state_that_nothing_leaves_are_published() -> None:
    taps = EventStream(
        "taps", schema={"at": "timestamp", "id": "int64", "card": "int64"},
        event_time="at", event_id="id",
    )  # fmt: skip
    view = FeatureView(
        "card", entity=Entity("card", dtype="int64"), stream=taps, hop="1h",
        features={"taps": count(over="1h")},
    )  # fmt: skip
    cards = ShardPlayer(view)
    rows = cards.events([{"at": clock(10), "id": 1, "card": -7}], watermark=clock(11))
    assert cards.receive(rows) == []
    cards = ShardPlayer(view, request_partitions=0)
    (found,) = cards.receive(
        cards.events([{"at": clock(10), "id": 1, "card": -7}], watermark=clock(9))
    )
    assert found.publications.num_rows == 0
    (found,) = cards.receive(cards.events(watermark=clock(13)))
    assert found.publications.schema.field("card").type == pa.int64()
    assert found.publications.to_pylist() == [
        {
            "card": -7,
            "event_timestamp": clock(12),
            "valid_until": None,
            "revision": 1,
            "card__taps": 0,
        }
    ]


def test_wrong_input_is_refused() -> None:
    shop = player()
    with pytest.raises(InputError, match="1 of 1 rows are rejected"):
        shop.events([order("10:00")], watermark=clock(10))
    with pytest.raises(InputError, match="row 0 has 'prise'"):
        shop.events([{"prise": 1}], watermark=clock(10))
    with pytest.raises(InputError, match="1 of 1 rows are rejected"):
        shop.requests([basket("10:00", 1)], watermark=clock(10))
    with pytest.raises(InputError, match="no offset from UTC"):
        shop.events(watermark="2026-01-31T10:00:00")
    with pytest.raises(InputError, match="has no request: give it request="):
        ShardPlayer(SHOP).requests(watermark=clock(10))
    with pytest.raises(InputError, match="1 rows do not fit the positions 3 to 3"):
        event_batch(SHOP, [order(clock(10))], watermark=clock(10), start=3, stop=3)
    # The refused rows took no position.
    assert shop.events([order(clock(10))], watermark=clock(10)).start == 0
    with pytest.raises(SequenceError, match="a batch of event partition 1 came"):
        shop.receive(shop.events(watermark=clock(10), partition=1))


def test_a_batch_that_never_comes_and_one_that_changed_are_found() -> None:
    shop = player(gap_batches=1)
    shop.events([order(clock(10))], watermark=clock(10))  # and it is lost
    second = shop.events([order(clock(10, 1), "o2")], watermark=clock(10, 1))
    shop.receive(second)
    other = event_batch(
        SHOP, [order(clock(10, 1), "o2", price=9.0)], watermark=clock(10, 1), start=1, poll=2
    )
    with pytest.raises(BatchConflict, match=r"claim event partition 0 of poll 2: .* other rows"):
        shop.receive(other)
    with pytest.raises(PartitionGap, match="poll 1 never came for event partition 0 from positi"):
        shop.receive(shop.events([order(clock(10, 2), "o3")], watermark=clock(10, 2)))


def test_a_hole_takes_a_position_and_no_row() -> None:
    batch = event_batch(SHOP, [order(clock(10))], watermark=clock(10), start=4, stop=9)
    assert (batch.start, batch.stop) == (4, 9)
    assert batch.rows is not None
    assert batch.rows.column("ordinal").to_pylist() == [8]
