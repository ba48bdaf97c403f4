"""The sketches: their hashes against the published ones, and their errors as stated."""

from __future__ import annotations

import math
import random
import statistics
import struct
from collections.abc import Callable, Iterator

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.features.definitions import aggregations
from tidemill.features.oracle import sketches
from tidemill.features.oracle.sketches import (
    bits,
    bucket,
    distinct_count,
    hash64,
    quantile,
    representative,
    xxh64,
)

LEAST_NORMAL = 2.0**-1022
GREATEST = 1.7976931348623157e308
finite = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)


def test_the_oracle_restates_the_declared_sizes() -> None:
    assert sketches.EXACT_DISTINCT_VALUES == aggregations.DISTINCT_EXACT_BOUND
    assert sketches.REGISTER_BITS == aggregations.DISTINCT_REGISTER_BITS
    assert sketches.MANTISSA_BITS == aggregations.QUANTILE_MANTISSA_BITS
    assert 1 / (2 * math.log(2)) == sketches.ALPHA_INFINITY


@pytest.mark.parametrize("size", [*range(100), 1000])
def test_xxh64_is_that_of_the_reference_library_at_every_length(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert xxh64(data) == xxhash.xxh64_intdigest(data, seed=0)


@given(st.text(st.characters(codec="utf-8")))
def test_a_text_is_hashed_by_its_utf8_bytes(text: str) -> None:
    assert hash64(text) == xxhash.xxh64_intdigest(text.encode("utf-8"), seed=0)


def test_numbers_are_hashed_by_the_splitmix64_finaliser() -> None:
    # The published generator adds this constant to its state and finalises: seeded with 0, its
    # first two outputs are these.
    gamma = 0x9E3779B97F4A7C15
    assert hash64(gamma) == 0xE220A8397B1DCDAF
    assert hash64(2 * gamma) == 0x6E789E6AA1B965F4
    assert hash64(-1) == hash64(2**64 - 1)
    assert hash64(1.0) == hash64(0x3FF0000000000000)
    assert hash64(True) == hash64(1)


def numbers(n: int, seed: int) -> Iterator[int]:
    return iter(range(seed * 10_000_000, seed * 10_000_000 + n))


def floats(n: int, seed: int) -> Iterator[float]:
    chance = random.Random(seed)
    return iter({chance.uniform(-1e3, 1e3) for _ in range(n)})


def texts(n: int, seed: int) -> Iterator[str]:
    return (f"N{seed}-{i}" for i in range(n))


@pytest.mark.parametrize("make", [numbers, floats, texts])
@pytest.mark.parametrize("n", [257, 1000, 10_000, 50_000])
def test_past_256_values_the_standard_error_is_as_stated(
    make: Callable[[int, int], Iterator[float | str]], n: int
) -> None:
    errors = [distinct_count(make(n, seed)) / n - 1 for seed in range(8)]
    standard_error = 1.04 / math.sqrt(2048)  # 2.3 %
    # Eight runs scatter: their root mean square may be half as large again, and one run thrice.
    assert math.sqrt(statistics.fmean(e * e for e in errors)) < 1.5 * standard_error
    assert max(map(abs, errors)) < 3 * standard_error


def test_256_values_are_exact_and_257_an_estimate() -> None:
    for seed in range(5):
        assert distinct_count(numbers(256, seed)) == 256
    assert {distinct_count(numbers(257, seed)) for seed in range(5)} != {257}


def test_the_estimate_is_pinned() -> None:
    # Any change of hash, register, rank or order of operations shows here.
    assert distinct_count(range(257)) == 256
    assert distinct_count(range(10_000)) == 9792
    assert distinct_count(n / 8 for n in range(1000)) == 972
    assert distinct_count(f"text {n}" for n in range(1000)) == 990
    registers = [n % 7 for n in range(2048)]
    assert sketches.estimate_cardinality(registers).hex() == "0x1.2e947fd0c54dep+12"
    assert sketches.estimate_cardinality([0, 54] * 1024).hex() == "0x1.9ea120c55e422p+10"


def test_the_estimate_of_few_values_agrees_with_linear_counting() -> None:
    # n values in n registers of 2048: Ertl's estimate agrees with -m ln(1 - n/m) closely.
    registers = [0] * 2048
    for n in range(1, 300):
        registers[n * 7 % 2048] = 1 + (n & -n).bit_length() - 1
        estimate = sketches.estimate_cardinality(registers)
        assert estimate == pytest.approx(-2048 * math.log(1 - n / 2048), rel=0.02)


def test_registers_of_the_greatest_rank_count_by_tau() -> None:
    # Half of the registers at 54, half at 53: z = 2**-53 * (2048 * tau(1/2) + 1024), and nothing
    # else is left. tau(1/2) here is its series, summed from the small end.
    terms = [(1 - 0.5**2.0**-k) ** 2 * 2.0**-k for k in range(1, 60)]
    tau = (0.5 - math.fsum(terms)) / 3
    z = (2048 * tau + 1024) * 2.0**-53
    expected = 2048**2 / (2 * math.log(2) * z)
    assert sketches.estimate_cardinality([53, 54] * 1024) == pytest.approx(expected, rel=1e-12)
    # One such register among empty ones is like any other.
    assert sketches.estimate_cardinality([54] + [0] * 2047) == pytest.approx(1, rel=0.02)


@given(finite, finite)
@example(0.0, 5e-324)
@example(-5e-324, 0.0)
@example(1.0, math.nextafter(1.0, 2.0))
def test_buckets_ascend_with_their_values(x: float, y: float) -> None:
    low, high = sorted((x, y))
    assert bucket(low) <= bucket(high)
    assert bucket(-x) == -bucket(x)


@given(finite)
@example(1.0)
@example(LEAST_NORMAL)
@example(GREATEST)
@example(-GREATEST)
@example(math.nextafter(2.0, 0.0))
def test_a_normal_value_is_off_by_at_most_one_part_in_256(x: float) -> None:
    estimate = representative(bucket(x))
    if abs(x) >= LEAST_NORMAL:
        assert abs(estimate - x) <= abs(x) / 256
    else:
        assert abs(estimate - x) < 2.0**-1029
        assert bucket(x) != 0 or estimate == 0.0
        assert bucket(x) == 0 or abs(estimate - x) <= 2.0**-1030


def test_the_bound_is_reached_at_powers_of_two() -> None:
    for exponent in (-1022, -1, 0, 10, 1023):
        x = 2.0**exponent
        assert abs(representative(bucket(x)) - x) == x / 256


def test_representatives_by_hand() -> None:
    assert bucket(1.0) == 1023 * 128
    assert representative(bucket(1.0)) == 1 + 1 / 256
    assert representative(bucket(-3.0)) == -(3 + 1 / 128)
    assert bucket(0.0) == bucket(2.0**-1030) == bucket(-5e-324) == 0
    assert representative(0) == 0.0
    assert bucket(2.0**-1029) == 1
    # The last bucket ends at infinity and so is represented by its least value.
    assert representative(bucket(GREATEST)) == struct.unpack(">d", b"\x7f\xef\xe0\0\0\0\0\0")[0]


def test_every_representative_lies_in_its_own_bucket() -> None:
    last = bucket(GREATEST)
    assert last == 2047 * 128 - 1
    for k in [*range(300), *range(last // 2, last // 2 + 300), *range(last - 300, last + 1)]:
        assert bucket(representative(k)) == k
        assert bucket(representative(-k)) == -k


def test_quantile_has_the_rank_below() -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    for q, expected in [(0.0, 10.0), (0.33, 10.0), (0.34, 20.0), (0.99, 30.0), (1.0, 40.0)]:
        assert quantile(values, q) == representative(bucket(expected))
    assert quantile([], 0.5) is None


def test_quantile_of_ints_is_that_of_their_floats() -> None:
    assert quantile([2**53 + 1], 0.5) == representative(bucket(2.0**53))


@given(st.lists(finite, min_size=1, max_size=20), st.floats(0, 1))
def test_quantile_is_within_one_part_in_256_of_the_value_of_its_rank(
    values: list[float], q: float
) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    estimate = quantile(values, q)
    assert estimate is not None
    assert abs(estimate - exact) <= max(abs(exact) / 256, 2.0**-1029)


def test_bits_are_unsigned() -> None:
    assert (bits(0), bits(-1), bits(-(2**63))) == (0, 2**64 - 1, 2**63)
    assert (bits(0.0), bits(-2.0)) == (0, 0xC000000000000000)
