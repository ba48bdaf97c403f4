"""Duplicates: the first row of each digest, and the set of digests of a stream."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.features.kernel.dedupe import PairSet, UInt64Array, first_occurrences
from tidemill.features.kernel.hashing import digest_rows

# Few values, with equal low bits, so that they collide in a table.
_words = st.sampled_from((0, 1, 2, 256, 512, 2**32, 2**63, 2**64 - 1))
pairs = st.lists(st.tuples(_words, _words), max_size=60)


def matrix(rows: list[tuple[int, int]]) -> UInt64Array:
    return np.array(rows, np.uint64).reshape(len(rows), 2)


def numbers(start: int, stop: int) -> UInt64Array:
    return digest_rows(pa.record_batch({"n": pa.array(range(start, stop), pa.int64())}))


@given(pairs)
def test_the_first_of_equal_digests_stays_in_order(rows: list[tuple[int, int]]) -> None:
    expected = sorted({row: index for index, row in reversed(list(enumerate(rows)))}.values())
    assert first_occurrences(matrix(rows)).tolist() == expected


def test_many_distinct_digests_all_stay() -> None:
    digests = numbers(0, 100_000)
    assert first_occurrences(digests).tolist() == list(range(100_000))
    twice = np.concatenate([digests, digests])
    assert first_occurrences(twice).tolist() == list(range(100_000))


@given(st.lists(pairs, max_size=6))
def test_a_set_says_what_is_new_across_calls(calls: list[list[tuple[int, int]]]) -> None:
    known: set[tuple[int, int]] = set()
    remembered = PairSet()
    for rows in calls:
        expected = []
        for row in rows:
            expected.append(row not in known)
            known.add(row)
        assert remembered.add(matrix(rows), np.arange(len(rows))).tolist() == expected
    assert len(remembered) == len(known)
    entries, _ = remembered.entries()
    assert {tuple(entry) for entry in entries.tolist()} == known


def test_a_set_grows() -> None:
    remembered = PairSet()
    for start in range(0, 20_000, 999):
        assert remembered.add(numbers(start, start + 999), np.zeros(999, np.int64)).all()
    assert not remembered.add(numbers(0, 20_000), np.zeros(20_000, np.int64)).any()


@pytest.mark.parametrize("time_us", [-(2**62), 0, 2**61])
def test_any_time_can_be_remembered(time_us: int) -> None:
    remembered = PairSet()
    remembered.add(numbers(0, 3), np.full(3, time_us))
    assert remembered.entries()[1].tolist() == [time_us] * 3


def test_few_rows_are_never_forgotten() -> None:
    remembered = PairSet()
    remembered.add(numbers(0, 4_000), np.arange(4_000))
    remembered.forget_before(10**9)
    assert not remembered.add(numbers(0, 4_000), np.arange(4_000)).any()


def test_old_rows_are_forgotten_once_there_are_many() -> None:
    """Digests at the instant itself are kept: their stream may still accept them again."""
    remembered = PairSet()
    remembered.add(numbers(0, 10_000), np.arange(10_000))
    remembered.forget_before(7_000)
    assert len(remembered) == 3_000
    new = remembered.add(numbers(6_990, 7_010), np.arange(6_990, 7_010))
    assert new.tolist() == [True] * 10 + [False] * 10


def test_forgetting_waits_until_it_is_worth_it_again() -> None:
    remembered = PairSet()
    remembered.add(numbers(0, 10_000), np.arange(10_000))
    remembered.forget_before(0)
    remembered.forget_before(9_999)
    assert len(remembered) == 10_000
    remembered.add(numbers(10_000, 20_000), np.arange(10_000, 20_000))
    remembered.forget_before(9_999)
    assert len(remembered) == 10_001


def test_entries_make_the_same_set_again() -> None:
    remembered, again = PairSet(), PairSet()
    remembered.add(numbers(0, 500), np.arange(500))
    again.add(*remembered.entries())
    assert len(again) == 500
    assert not again.add(numbers(0, 500), np.zeros(500, np.int64)).any()
    assert sorted(again.entries()[1].tolist()) == list(range(500))
