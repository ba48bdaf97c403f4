"""Hashes must never change, because persisted shards, sketches and digests depend on them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.support.entries import through_an_entry
from tidemill.features.kernel import hashing
from tidemill.features.kernel.hashing import (
    bits,
    digest_rows,
    hash_column,
    key_bytes,
    shard_of,
    text_buffers,
    validity,
)

splitmix64 = through_an_entry(hashing.splitmix64)
xxh64 = through_an_entry(hashing.xxh64)

KEYS = pa.array(["", "a", "b", "N12345", None, "é"])
ROWS = pa.record_batch(
    {
        "t": pa.array([0, 1], pa.timestamp("us", "UTC")),
        "s": pa.array(["a", None]),
        "n": pa.array([1, None], pa.int64()),
        "f": pa.array([1.5, None]),
        "b": pa.array([True, None]),
    }
)


def hexes(values: object) -> list[str]:
    return [f"{int(value):016x}" for value in np.asarray(values).ravel()]


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1))
def test_texts_are_hashed_by_the_xxhash_specification(data: bytes, seed: int) -> None:
    words = np.frombuffer(b"before" + data + b"after", np.uint8)
    found = xxh64(words, 6, len(data), np.uint64(seed))
    assert int(found) == xxhash.xxh64_intdigest(data, seed)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 31, 32, 33, 63, 64, 65, 1_000])
def test_every_length_goes_its_own_way_through_xxhash(length: int) -> None:
    data = bytes(n * 7 % 256 for n in range(length))
    found = hash_column(pa.array([data], pa.binary()), seed=3)
    assert int(found[0]) == xxhash.xxh64_intdigest(data, 3)


def test_golden_hashes_of_texts() -> None:
    assert hexes(hash_column(pa.array(["", "a", "é" * 40, "N12345"]))) == [
        "ef46db3751d8e999", "d24ec4f1a98c6e5b", "b1ec6d9d41a61799", "9c8c6d8391b01a2f"
    ]  # fmt: skip


def test_golden_hashes_of_numbers() -> None:
    """The hash is splitmix64 of the 64 bits, so equal bits of any dtype have one hash."""
    assert hexes(hash_column(pa.array([0, 1, -1]))) == [
        "0000000000000000", "5692161d100b05e5", "b4d055fcf2cbbd7b"
    ]  # fmt: skip
    assert hexes(hash_column(pa.array([0.0, 1.5]))) == ["0000000000000000", "e72b41d4576e3468"]
    assert hexes(hash_column(pa.array([True, False]))) == ["5692161d100b05e5", "0" * 16]
    assert int(splitmix64(np.uint64(1))) == 0x5692161D100B05E5


def test_golden_digests_of_rows() -> None:
    assert hexes(digest_rows(ROWS)) == [
        "4e58df8abd0a71ff", "64e71b5e888daf39", "40b367b9b9613e7e", "991b23d30c5f0d7a"
    ]  # fmt: skip


def test_golden_shards() -> None:
    """A key has the same shard as long as the shard count is the same; a null has shard 0."""
    assert shard_of(KEYS, 7).tolist() == [3, 2, 1, 0, 0, 0]
    assert shard_of(KEYS, 2).tolist() == [1, 0, 0, 0, 0, 0]
    assert shard_of(KEYS, 1).tolist() == [0] * 6


def test_shards_are_even() -> None:
    keys = pa.array([f"key {n}" for n in range(10_000)])
    counts = np.bincount(shard_of(keys, 8), minlength=8)
    # Six standard deviations of a uniform distribution.
    assert np.abs(counts - 1_250).max() < 6 * np.sqrt(1_250)


def test_a_digest_is_of_every_column_and_of_its_nulls() -> None:
    rows = [
        {"a": "x", "b": "y"},
        {"a": "y", "b": "x"},
        {"a": "xy", "b": ""},
        {"a": "xy", "b": None},
        {"a": None, "b": "xy"},
        {"a": None, "b": None},
        {"a": "", "b": ""},
    ]
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    digests = digest_rows(pa.RecordBatch.from_pylist(rows, schema))
    assert len({tuple(digest) for digest in digests.tolist()}) == len(rows)


def test_a_digest_does_not_depend_on_what_stands_beside_the_row() -> None:
    whole = digest_rows(ROWS)
    for n in range(2):
        assert digest_rows(ROWS.slice(n, 1)).tolist() == whole[n : n + 1].tolist()
    # The bytes of a null may have any value.
    masked = pa.array([7, 7], pa.int64(), mask=np.array([False, True]))
    plain = pa.array([7, None], pa.int64())
    of = [digest_rows(pa.record_batch({"n": array})).tolist() for array in (masked, plain)]
    assert of[0] == of[1]


def test_a_slice_hashes_as_its_values() -> None:
    texts = pa.array(["zero", "one", None, "two"])
    numbers = pa.array([1, None, 3, 4], pa.int64())
    for array in (texts, numbers):
        assert hash_column(array.slice(1, 3)).tolist() == hash_column(array)[1:].tolist()
        assert validity(array.slice(1, 3)).tolist() == validity(array)[1:].tolist()


def test_text_buffers_keep_their_place() -> None:
    offsets, data = text_buffers(pa.array(["ab", "c", "def"]).slice(1, 2))
    assert [bytes(data[offsets[i] : offsets[i + 1]]) for i in range(2)] == [b"c", b"def"]
    offsets, data = text_buffers(pa.array([], pa.string()))
    assert (offsets.tolist(), len(data)) == ([0], 0)
    offsets, _ = text_buffers(pa.array([None, None], pa.string()))
    assert np.diff(offsets).tolist() == [0, 0]


def test_bits_are_the_64_bits_and_0_for_null() -> None:
    assert bits(pa.array([1.0, None])).tolist() == [0x3FF0000000000000, 0]
    assert bits(pa.array([-1, None, 5], pa.int64()).slice(1)).tolist() == [0, 5]
    assert bits(pa.array([True, None, False])).tolist() == [1, 0, 0]
    assert bits(pa.array([7], pa.timestamp("us", "UTC"))).tolist() == [7]
    assert bits(pa.array([], pa.int64())).tolist() == []
    assert bits(pa.array([None], pa.int64())).tolist() == [0]


def test_an_int64_key_is_hashed_as_its_decimal_digits() -> None:
    assert key_bytes(pa.array([-(2**63), 7, None])).to_pylist() == [str(-(2**63)), "7", None]
    texts = pa.array(["a"])
    assert key_bytes(texts) is texts
