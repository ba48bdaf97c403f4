"""The oracle's sketches: distinct counts and quantiles, in plain Python, from their definition.

These functions are the definition of what a sketched value is, down to the last bit: which hash,
which registers, which buckets, and which float operations in which order. The kernel does the
same over tiles.

Sources: Yann Collet, "xxHash fast digest algorithm" (XXH64, specification 0.1.1); Steele, Lea and
Flood, "Fast Splittable Pseudorandom Number Generators" (2014), with the finaliser known as
splitmix64; Flajolet, Fusy, Gandouet and Meunier, "HyperLogLog" (2007); Otmar Ertl, "New
cardinality estimation algorithms for HyperLogLog sketches" (2017), algorithm 6; Masson, Rim and
Lee, "DDSketch" (2019).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Final

WORD: Final = 2**64
EXACT_DISTINCT_VALUES: Final = 256
REGISTER_BITS: Final = 11
MANTISSA_BITS: Final = 7
ALPHA_INFINITY: Final = 0.7213475204444817
"""1 / (2 ln 2)."""

_REST_BITS: Final = 64 - REGISTER_BITS
MAX_RANK: Final = _REST_BITS + 1
"""The rank of a value whose other bits are all 0."""
_BUCKET_SHIFT: Final = 52 - MANTISSA_BITS
_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5


def bits(value: int | float) -> int:
    """Return a number's 64 bits, unsigned: IEEE 754 of a float, two's complement of an int.

    >>> hex(bits(1.0)), hex(bits(-1))
    ('0x3ff0000000000000', '0xffffffffffffffff')
    """
    if isinstance(value, float):
        return int.from_bytes(struct.pack(">d", value), "big")
    return value % WORD


def _float_of(word: int) -> float:
    value: float = struct.unpack(">d", word.to_bytes(8, "big"))[0]
    return value


def hash64(value: float | str) -> int:
    """Hash a value to 64 bits: XXH64 of a text's UTF-8 bytes, splitmix64 of a number's bits.

    Args:
        value: A str; a float; or an int, which is also what a bool (0, 1) and a time (us) are.

    Returns:
        An unsigned 64-bit int. It is one-to-one on the numbers of one dtype.
    """
    if isinstance(value, str):
        return xxh64(value.encode("utf-8"))
    z = bits(value)
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 % WORD
    z ^= z >> 27
    z = z * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def _rotate(word: int, count: int) -> int:
    return (word << count | word >> 64 - count) % WORD


def _round(accumulator: int, lane: int) -> int:
    return _rotate((accumulator + lane * _P2) % WORD, 31) * _P1 % WORD


def xxh64(data: bytes) -> int:
    """Return XXH64 with seed 0 of some bytes.

    >>> hex(xxh64(b""))
    '0xef46db3751d8e999'
    """
    at = 0
    if len(data) >= 32:
        lanes = [(_P1 + _P2) % WORD, _P2, 0, -_P1 % WORD]
        while at + 32 <= len(data):
            words = struct.unpack_from("<4Q", data, at)
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
            at += 32
        rotated = zip(lanes, (1, 7, 12, 18), strict=True)
        h = sum(_rotate(lane, count) for lane, count in rotated) % WORD
        for lane in lanes:
            h = ((h ^ _round(0, lane)) * _P1 + _P4) % WORD
    else:
        h = _P5
    h = (h + len(data)) % WORD
    while at + 8 <= len(data):
        (word,) = struct.unpack_from("<Q", data, at)
        h = (_rotate(h ^ _round(0, word), 27) * _P1 + _P4) % WORD
        at += 8
    if at + 4 <= len(data):
        (half,) = struct.unpack_from("<I", data, at)
        h = (_rotate(h ^ half * _P1 % WORD, 23) * _P2 + _P3) % WORD
        at += 4
    for byte in data[at:]:
        h = _rotate(h ^ byte * _P5 % WORD, 11) * _P1 % WORD
    h = (h ^ h >> 33) * _P2 % WORD
    h = (h ^ h >> 29) * _P3 % WORD
    return h ^ h >> 32


def distinct_count(values: Iterable[float | str]) -> int:
    """Count distinct values of one dtype: exactly up to 256 of them, past that by HyperLogLog.

    The sketch has 2**11 registers. A value's register is the top 11 bits of its hash; its rank is
    the number of leading zeros of the other 53 bits (as a 53-bit number) plus one, so 1 to 54. A
    register holds its greatest rank, or 0. The estimate is rounded to the nearest int, half to
    even; its standard error is 1.04 / sqrt(2048) = 2.3 %.
    """
    distinct = set(values)
    if len(distinct) <= EXACT_DISTINCT_VALUES:
        return len(distinct)
    registers = [0] * 2**REGISTER_BITS
    for value in distinct:
        index, rank = register_and_rank(value)
        registers[index] = max(registers[index], rank)
    return round(estimate_cardinality(registers))


def register_and_rank(value: float | str) -> tuple[int, int]:
    """Return the register of a value and its rank there."""
    hashed = hash64(value)
    rest = hashed % 2**_REST_BITS
    return hashed >> _REST_BITS, _REST_BITS - rest.bit_length() + 1


def estimate_cardinality(registers: Sequence[int]) -> float:
    """Return Ertl's improved raw estimate of a HyperLogLog sketch.

    The float64 operations, in this order and each rounded once (no fused multiply-add), with
    ``m`` = 2048 and ``c[k]`` the number of registers of value ``k`` = 0..54, as floats::

        z = m * tau(1.0 - c[54] / m)
        for k in 53, 52, ..., 1:  z = 0.5 * (z + c[k])
        z = z + m * sigma(c[0] / m)
        estimate = 0.7213475204444817 * m * m / z

    The products with ``m`` and 0.5 are exact, so their order is free.

    Args:
        registers: 2048 ints, 0 to 54, not all 0.

    Returns:
        The estimate, unrounded.
    """
    return estimate_of_histogram([registers.count(k) for k in range(MAX_RANK + 1)])


def estimate_of_histogram(histogram: Sequence[int]) -> float:
    """Return the estimate of `estimate_cardinality` from the number of registers of each value."""
    m = float(sum(histogram))
    c = [float(count) for count in histogram]
    z = m * _tau(1.0 - c[_REST_BITS + 1] / m)
    for k in range(_REST_BITS, 0, -1):
        z = 0.5 * (z + c[k])
    z = z + m * _sigma(c[0] / m)
    return ALPHA_INFINITY * m * m / z


def _sigma(x: float) -> float:
    """Return ``x + sum(x**(2**k) * 2**(k - 1) for k = 1, 2, ...)``, for 0 <= x < 1.

    Step: ``x = x * x; z = z + x * y; y = y + y`` from ``z = x, y = 1.0``, until z is constant.
    """
    y, z = 1.0, x
    while True:
        x = x * x
        before, z = z, z + x * y
        y = y + y
        if z == before:
            return z


def _tau(x: float) -> float:
    """Return ``(1 - x - sum((1 - x**(2**-k))**2 * 2**-k for k = 1, 2, ...)) / 3``.

    It is 0.0 for 0 and 1; else 0 < x < 1. Step: ``x = sqrt(x); y = 0.5 * y; d = 1.0 - x;
    z = z - d * d * y`` from ``z = 1.0 - x, y = 1.0``, until z is constant; then ``z / 3.0``.
    """
    if x in (0.0, 1.0):
        return 0.0
    y, z = 1.0, 1.0 - x
    while True:
        x = math.sqrt(x)
        y = 0.5 * y
        d = 1.0 - x
        before, z = z, z - d * d * y
        if z == before:
            return z / 3.0


def bucket(x: float) -> int:
    """Return the bucket of a finite float: its bits without the last 45, signed.

    For x > 0 that is ``bits(x) >> 45``: the biased exponent and the top 7 bits of the mantissa,
    so 128 buckets an octave. Zero is in bucket 0, and so is any x below 2**-1029 (the least 2**45
    subnormals). For x < 0 it is the bucket of -x, negated.
    So buckets ascend as values do.
    """
    magnitude = bits(abs(x)) >> _BUCKET_SHIFT
    return -magnitude if x < 0 else magnitude


def representative(k: int) -> float:
    """Return the representative of a bucket: 0.0 for bucket 0, else its midpoint.

    A bucket k > 0 holds the floats from ``lo`` (bits ``k << 45``) up to and without ``hi`` (bits
    ``(k + 1) << 45``); the midpoint is ``lo + (hi - lo) / 2`` in float64, which is exact. The last
    bucket, whose ``hi`` is infinite, is represented by its ``lo``. Negative buckets are mirrored.

    For a normal x the relative error ``|representative - x| / x`` is at most 1/256 = 0.39 %; it is
    1/256 at a power of two, the least value of the widest bucket. Below 2**-1022 floats are
    equidistant and the error is at most 2**-1030 (below 2**-1029: less than 2**-1029) in itself.
    """
    if k < 0:
        return -representative(-k)
    if k == 0:
        return 0.0
    lo, hi = _float_of(k << _BUCKET_SHIFT), _float_of((k + 1) << _BUCKET_SHIFT)
    return lo if math.isinf(hi) else lo + (hi - lo) / 2


def quantile(values: Iterable[float], q: float) -> float | None:
    """Return the representative of the bucket of the value of rank ``floor(q * (n - 1))``.

    Args:
        values: Numbers; an int is first converted to the nearest float64.
        q: 0 to 1; the product is computed in float64, ranks count from 0 in ascending order.

    Returns:
        The estimate, or None when there are no values.
    """
    ascending = sorted(float(value) for value in values)
    if not ascending:
        return None
    return representative(bucket(ascending[math.floor(q * (len(ascending) - 1))]))
