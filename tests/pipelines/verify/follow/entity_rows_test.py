"""The rows of entities: those that a plain filter of all rows finds, at less cost."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.pipelines.verify.follow.entity_rows import EntityRows
from tidemill.pipelines.verify.follow.share import is_chosen

SCHEMA = pa.schema([("card", pa.string()), ("at", pa.timestamp("us", "UTC")), ("n", pa.int64())])


def some(chance: random.Random, count: int, first: int) -> pa.Table:
    return pa.table(
        {
            "card": [f"c-{chance.randrange(200)}" for _ in range(count)],
            "at": pa.array([chance.randrange(1_000) for _ in range(count)], SCHEMA.field(1).type),
            "n": list(range(first, first + count)),
        },
        schema=SCHEMA,
    )


def test_rows_of_entities_are_found_however_they_came() -> None:
    chance = random.Random(3)
    rows, everything = EntityRows("card", "at", SCHEMA), SCHEMA.empty_table()
    for number in range(60):
        more = some(chance, chance.choice([0, 1, 7, 50, 400]), len(everything))
        rows.add(more)
        everything = pa.concat_tables([everything, more])
        keys = pa.array([*(f"c-{chance.randrange(220)}" for _ in range(9)), None])
        wanted = everything.filter(pc.is_in(everything["card"], value_set=keys.drop_null()))
        assert sorted(rows.of(keys)["n"].to_pylist()) == sorted(wanted["n"].to_pylist()), number
    assert len(rows) == len(everything)
    rows.forget_before(700)
    kept = set(rows.of(pa.array([f"c-{n}" for n in range(200)]))["n"].to_pylist())
    needed = everything.filter(pc.greater_equal(everything["at"].cast(pa.int64()), 700))
    assert kept >= set(needed["n"].to_pylist())
    assert len(rows) < len(everything)
    rows.narrow(0.25)
    left = set(rows.of(pa.array([f"c-{n}" for n in range(200)]))["card"].to_pylist())
    assert left
    assert is_chosen(pa.array(sorted(left)), 0.25).all()


def test_all_entities_are_visited_in_turn() -> None:
    chance = random.Random(5)
    rows = EntityRows("card", "at", SCHEMA)
    everything = [some(chance, 90, n * 90) for n in range(12)]
    for more in everything:
        rows.add(more)
    there = set(pa.concat_tables(everything)["card"].to_pylist())
    seen: list[str] = []
    after = -1
    for _ in range(100):
        keys, after = rows.some_keys(after, 17)
        seen += keys.to_pylist()
        if after < 0:
            break
    assert sorted(seen) == sorted(there)
    assert EntityRows("card", "at", SCHEMA).some_keys(-1, 5)[1] == -1


def test_a_share_is_about_what_it_says_and_grows_by_adding() -> None:
    keys = pa.array([f"k-{n}" for n in range(20_000)])
    shares = [is_chosen(keys, share) for share in (0.1, 0.5, 1.0)]
    assert abs(shares[0].mean() - 0.1) < 0.01
    assert abs(shares[1].mean() - 0.5) < 0.02
    assert shares[2].all()
    assert not np.any(shares[0] & ~shares[1])
    numbers = pa.array([*range(1_000), None], pa.int64())
    assert is_chosen(numbers, 0.1)[-1]
