"""Sums, means and variances are the exact value, rounded once, whatever the order.

The oracle is ``fractions.Fraction``: ``float`` of a fraction is correctly rounded. Each case runs
as in the kernel (compact until a value does not fit, then wide) and with wide accumulators only.
"""

# numba is Any to mypy, and so is what a compiled function returns.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.entries import through_an_entry
from tidemill.features.kernel.exact import accumulators, rounding
from tidemill.features.kernel.exact.accumulators import (
    SQUARE_LIMBS,
    SUM_LIMBS,
    WIDE_SQUARE,
    WIDE_SUM,
)
from tidemill.features.kernel.exact.wide_ints import Words

add_float = through_an_entry(accumulators.add_float)
add_int = through_an_entry(accumulators.add_int)
add_int_square = through_an_entry(accumulators.add_int_square)
add_square = through_an_entry(accumulators.add_square)
merge_compact = through_an_entry(accumulators.merge_compact)
normalise = through_an_entry(accumulators.normalise)
wide_add_compact = through_an_entry(accumulators.wide_add_compact)
wide_add_float = through_an_entry(accumulators.wide_add_float)
wide_add_int = through_an_entry(accumulators.wide_add_int)
wide_add_int_square = through_an_entry(accumulators.wide_add_int_square)
wide_add_square = through_an_entry(accumulators.wide_add_square)
wide_add_wide = through_an_entry(accumulators.wide_add_wide)
wide_to_compact = through_an_entry(accumulators.wide_to_compact)
mean_to_float = through_an_entry(rounding.mean_to_float)
sum_to_int = through_an_entry(rounding.sum_to_int)
variance_to_float = through_an_entry(rounding.variance_to_float)
wide_mean_to_float = through_an_entry(rounding.wide_mean_to_float)
wide_sum_to_int = through_an_entry(rounding.wide_sum_to_int)
wide_variance_to_float = through_an_entry(rounding.wide_variance_to_float)

SQUARES = 1 + SUM_LIMBS
ROW = SQUARES + 1 + SQUARE_LIMBS
LEAST, GREATEST = -(2**63), 2**63 - 1
Rounded = tuple[float, bool]


def _row() -> Words:
    return np.zeros((1, ROW), np.int64)


@dataclass
class Moments:
    """A sum and a sum of squares as a query has them: compact, and wide once they do not fit."""

    words: Words = field(default_factory=_row)
    sums: Words | None = None
    squares: Words | None = None

    def promote(self) -> None:
        """Move both into wide accumulators."""
        self.promote_sum()
        self.promote_squares()

    def promote_sum(self) -> Words:
        if self.sums is None:
            self.sums = np.zeros(WIDE_SUM, np.int64)
            wide_add_compact(self.sums, 0, self.words, 0, 0, SUM_LIMBS)
        return self.sums

    def promote_squares(self) -> Words:
        if self.squares is None:
            self.squares = np.zeros(WIDE_SQUARE, np.int64)
            wide_add_compact(self.squares, 0, self.words, 0, SQUARES, SQUARE_LIMBS)
        return self.squares

    def add(self, x: float) -> None:
        if self.sums is not None or not add_float(self.words, 0, 0, x):
            wide_add_float(self.promote_sum(), 0, x)
        if self.squares is not None or not add_square(self.words, 0, SQUARES, x):
            wide_add_square(self.promote_squares(), 0, x)

    def add_int(self, i: int) -> None:
        if self.sums is not None or not add_int(self.words, 0, 0, i):
            wide_add_int(self.promote_sum(), 0, i)
        if self.squares is not None or not add_int_square(self.words, 0, SQUARES, i):
            wide_add_int_square(self.promote_squares(), 0, i)

    def merge(self, other: "Moments") -> None:
        if other.sums is not None:
            wide_add_wide(self.promote_sum(), 0, other.sums, 0, WIDE_SUM)
        elif self.sums is not None or not merge_compact(
            self.words, 0, 0, other.words, 0, 0, SUM_LIMBS
        ):
            wide_add_compact(self.promote_sum(), 0, other.words, 0, 0, SUM_LIMBS)
        if other.squares is not None:
            wide_add_wide(self.promote_squares(), 0, other.squares, 0, WIDE_SQUARE)
        elif self.squares is not None or not merge_compact(
            self.words, 0, SQUARES, other.words, 0, SQUARES, SQUARE_LIMBS
        ):
            wide_add_compact(self.promote_squares(), 0, other.words, 0, SQUARES, SQUARE_LIMBS)

    def normalise(self) -> None:
        if self.sums is None:
            normalise(self.words, 0, 0, SUM_LIMBS)
        elif wide_to_compact(self.sums, 0, self.words, 0, 0, SUM_LIMBS):
            self.sums = None
        if self.squares is None:
            normalise(self.words, 0, SQUARES, SQUARE_LIMBS)
        elif wide_to_compact(self.squares, 0, self.words, 0, SQUARES, SQUARE_LIMBS):
            self.squares = None

    def canonical(self) -> tuple[bytes, bytes]:
        self.normalise()
        sums = self.words[0, :SQUARES] if self.sums is None else self.sums
        squares = self.words[0, SQUARES:] if self.squares is None else self.squares
        return sums.tobytes(), squares.tobytes()

    def sum(self) -> Rounded:
        if self.sums is None:
            return mean_to_float(self.words, 0, 0, 1)
        return wide_mean_to_float(self.sums, 0, 1)

    def int_sum(self) -> tuple[int, bool]:
        if self.sums is None:
            return sum_to_int(self.words, 0, 0)
        return wide_sum_to_int(self.sums, 0)

    def mean(self, n: int) -> Rounded:
        if self.sums is None:
            return mean_to_float(self.words, 0, 0, n)
        return wide_mean_to_float(self.sums, 0, n)

    def variance(self, n: int, ddof: int) -> Rounded:
        if self.sums is None and self.squares is None:
            return variance_to_float(self.words, 0, 0, self.words, 0, SQUARES, n, ddof)
        return wide_variance_to_float(self.promote_sum(), 0, self.promote_squares(), 0, n, ddof)


def moments_of(values: Sequence[float]) -> Moments:
    moments = Moments()
    for x in values:
        moments.add(x)
    return moments


def rounded(exact: Fraction) -> Rounded:
    try:
        # Add 0.0, because a result of -0.0 becomes 0.0.
        return float(exact) + 0.0, False
    except OverflowError:
        return (math.inf if exact > 0 else -math.inf), True


def bits(result: Rounded) -> tuple[str, bool]:
    """Return the bits of the float, which differ for 0.0 and -0.0."""
    return float(result[0]).hex(), bool(result[1])


def exact_sum(values: Sequence[float]) -> Fraction:
    return sum((Fraction(x) for x in values), Fraction(0))


def exact_squares(values: Sequence[float]) -> Fraction:
    return sum((Fraction(x) ** 2 for x in values), Fraction(0))


def exact_variance(values: Sequence[float], n: int, ddof: int) -> Fraction:
    return (exact_squares(values) - exact_sum(values) ** 2 / n) / (n - ddof)


def fits(exact: Fraction, limbs: int) -> bool:
    """Return whether the odd integer of an exact binary value has a compact form."""
    numerator = abs(exact.numerator)
    if numerator == 0:
        return True
    odd = numerator >> ((numerator & -numerator).bit_length() - 1)
    return odd.bit_length() <= 64 * limbs - 1


def compact_value(words: Words, base: int, limbs: int) -> Fraction:
    integer = int.from_bytes(words[0, base + 1 : base + 1 + limbs].tobytes(), "little", signed=True)
    return Fraction(integer) * Fraction(2) ** int(words[0, base])


def check(values: Sequence[float], moments: Moments, n: int) -> None:
    assert bits(moments.sum()) == bits(rounded(exact_sum(values)))
    assert bits(moments.mean(n)) == bits(rounded(exact_sum(values) / n))
    for ddof in (0, 1):
        if n > ddof:
            expected = rounded(exact_variance(values, n, ddof))
            assert bits(moments.variance(n, ddof)) == bits(expected)


finite = st.floats(allow_nan=False, allow_infinity=False)
floats = st.one_of(
    finite,
    st.floats(min_value=-1e6, max_value=1e6),
    st.integers(-(2**53), 2**53).map(float),
    st.integers(-1000, 1000).map(float),
    st.integers(-1074, 1023).map(lambda exponent: math.ldexp(1.0, exponent)),
    st.integers(-1074, 1023).map(lambda exponent: -math.ldexp(1.0, exponent)),
    st.floats(min_value=-2.3e-308, max_value=2.3e-308),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, -1.7976931348623157e308]),
)


@st.composite
def _rows(draw: st.DrawFn) -> list[float]:
    """Values of all sizes; some of them cancel, or nearly cancel."""
    values = draw(st.lists(floats, min_size=1, max_size=12))
    for x in draw(st.lists(st.sampled_from(values), max_size=8)):
        near = draw(st.sampled_from([-x, math.nextafter(-x, math.inf), math.nextafter(-x, 0.0)]))
        values.append(near if math.isfinite(near) else -x)
    return draw(st.permutations(values))


rows = _rows()
int64s = st.one_of(
    st.integers(LEAST, GREATEST),
    st.sampled_from([LEAST, LEAST + 1, -1, 0, 1, GREATEST]),
    st.integers(-1000, 1000),
)


@given(rows)
@settings(max_examples=400, deadline=None)
def test_results_are_the_rounded_exact_values(values: list[float]) -> None:
    moments = moments_of(values)
    check(values, moments, len(values))
    moments.normalise()
    check(values, moments, len(values))
    moments.promote()
    check(values, moments, len(values))


@given(rows, st.data())
@settings(max_examples=300, deadline=None)
def test_any_order_and_grouping_gives_the_same_canonical_words(
    values: list[float], data: st.DataObject
) -> None:
    expected = moments_of(values).canonical()
    shuffled = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    edges = [0, *cuts, len(values)]
    groups = [moments_of(shuffled[a:b]) for a, b in pairwise(edges)]
    while len(groups) > 1:
        into = groups[data.draw(st.integers(0, len(groups) - 1))]
        kind = data.draw(st.sampled_from(["as is", "normalised", "wide"]))
        other = next(group for group in groups if group is not into)
        if kind == "normalised":
            into.normalise()
            other.normalise()
        elif kind == "wide":
            other.promote()
        into.merge(other)
        groups = [group for group in groups if group is not other]
    assert groups[0].canonical() == expected


@given(rows)
@settings(max_examples=300, deadline=None)
def test_a_value_is_refused_only_where_the_exact_result_does_not_fit(values: list[float]) -> None:
    words = _row()
    total, squares = Fraction(0), Fraction(0)
    for x in values:
        before = words.copy()
        if add_float(words, 0, 0, x):
            total += Fraction(x)
        else:
            assert not fits(total + Fraction(x), SUM_LIMBS)
            assert words.tobytes() == before.tobytes()
        before = words.copy()
        if add_square(words, 0, SQUARES, x):
            squares += Fraction(x) ** 2
        else:
            assert not fits(squares + Fraction(x) ** 2, SQUARE_LIMBS)
            assert words.tobytes() == before.tobytes()
        assert compact_value(words, 0, SUM_LIMBS) == total
        assert compact_value(words, SQUARES, SQUARE_LIMBS) == squares


def _set(words: Words, base: int, limbs: int, integer: int, exponent: int) -> None:
    """Write a compact accumulator."""
    raw = integer.to_bytes(8 * limbs, "little", signed=True)
    words[0, base] = exponent if integer else 0
    words[0, base + 1 : base + 1 + limbs] = np.frombuffer(raw, np.int64)


def _integers(limbs: int) -> st.SearchStrategy[int]:
    """Integers of a compact accumulator, many of them next to a power of two."""
    most = 2 ** (64 * limbs - 1) - 1
    near = st.builds(
        lambda power, off, sign: sign * min(2**power + off, most),
        st.one_of(st.integers(0, 64 * limbs - 1), st.sampled_from([64 * limbs - 2])),
        st.integers(-4, 4),
        st.sampled_from([-1, 1]),
    )
    return st.one_of(near, near, st.integers(-most, most), st.integers(-9, 9))


def _pairs(base: int, limbs: int) -> st.SearchStrategy[tuple[int, int, int, int, int, int]]:
    exponents = st.one_of(st.integers(-3, 3), st.integers(-70 * limbs, 70 * limbs))
    integers = _integers(limbs)
    return st.tuples(st.just(base), st.just(limbs), integers, exponents, integers, exponents)


@given(st.one_of(_pairs(0, SUM_LIMBS), _pairs(SQUARES, SQUARE_LIMBS)))
@settings(max_examples=1500, deadline=None)
def test_a_merge_is_refused_only_where_the_exact_result_does_not_fit(
    pair: tuple[int, int, int, int, int, int],
) -> None:
    base, limbs = pair[:2]
    words, source = _row(), _row()
    _set(words, base, limbs, *pair[2:4])
    _set(source, base, limbs, *pair[4:])
    expected = compact_value(words, base, limbs) + compact_value(source, base, limbs)
    before, source_before = words.copy(), source.copy()
    arena = np.zeros(WIDE_SUM if limbs == SUM_LIMBS else WIDE_SQUARE, np.int64)
    wide_add_compact(arena, 0, words, 0, base, limbs)
    wide_add_compact(arena, 0, source, 0, base, limbs)
    merged = merge_compact(words, 0, base, source, 0, base, limbs)
    assert merged == fits(expected, limbs)
    assert source.tobytes() == source_before.tobytes()
    back = _row()
    assert wide_to_compact(arena, 0, back, 0, base, limbs) == merged
    if merged:
        assert compact_value(words, base, limbs) == expected
        normalise(words, 0, base, limbs)
        assert back.tobytes() == words.tobytes()
    else:
        assert words.tobytes() == before.tobytes()


@given(rows)
@settings(max_examples=200, deadline=None)
def test_the_wide_form_comes_back_compact_just_where_it_fits(values: list[float]) -> None:
    moments = moments_of(values)
    moments.promote()
    words = _row()
    sums, squares = moments.promote_sum(), moments.promote_squares()
    assert wide_to_compact(sums, 0, words, 0, 0, SUM_LIMBS) == fits(exact_sum(values), SUM_LIMBS)
    assert wide_to_compact(squares, 0, words, 0, SQUARES, SQUARE_LIMBS) == fits(
        exact_squares(values), SQUARE_LIMBS
    )
    if fits(exact_sum(values), SUM_LIMBS):
        assert compact_value(words, 0, SUM_LIMBS) == exact_sum(values)
        assert words[0, 1] & 1 == (exact_sum(values) != 0)
    if fits(exact_squares(values), SQUARE_LIMBS):
        assert compact_value(words, SQUARES, SQUARE_LIMBS) == exact_squares(values)


@given(st.lists(int64s, min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_int64_values_are_summed_exactly(values: list[int]) -> None:
    compact, wide = Moments(), Moments()
    wide.promote()
    for i in values:
        compact.add_int(i)
        wide.add_int(i)
    total, n = sum(values), len(values)
    squares = sum(i * i for i in values)
    expected = (total, False) if LEAST <= total <= GREATEST else (0, True)
    for moments in (compact, wide):
        for _ in range(2):
            assert moments.int_sum() == expected
            assert bits(moments.sum()) == bits(rounded(Fraction(total)))
            assert bits(moments.mean(n)) == bits(rounded(Fraction(total, n)))
            if n > 1:
                variance = (squares - Fraction(total * total, n)) / (n - 1)
                assert bits(moments.variance(n, 1)) == bits(rounded(variance))
            moments.normalise()
    assert compact.canonical() == wide.canonical()


@given(st.lists(int64s, max_size=6), rows)
@settings(max_examples=100, deadline=None)
def test_int64_and_float64_values_meet_in_one_accumulator(
    ints: list[int], values: list[float]
) -> None:
    moments = moments_of(values)
    other = Moments()
    for i in ints:
        moments.add_int(i)
        other.add_int(i)
    exact = exact_sum(values) + sum(ints)
    assert bits(moments.sum()) == bits(rounded(exact))
    other.merge(moments_of(values))
    assert other.canonical() == moments.canonical()


@given(rows, st.one_of(st.integers(1, 2**32 + 2), st.integers(1, GREATEST)))
@settings(max_examples=400, deadline=None)
def test_any_number_of_zero_rows_counts_in_mean_and_variance(
    values: list[float], zeros: int
) -> None:
    n = min(zeros + len(values), GREATEST)
    moments = moments_of(values)
    check(values, moments, n)
    moments.promote()
    check(values, moments, n)


@given(finite, st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_variance_of_a_constant_is_exactly_zero(x: float, n: int) -> None:
    moments = moments_of([x] * n)
    for ddof in range(min(n, 2)):
        assert bits(moments.variance(n, ddof)) == bits((0.0, False))
    assert bits(moments.mean(n)) == bits((x + 0.0, False))


def test_an_empty_sum_is_zero() -> None:
    assert bits(Moments().sum()) == bits((0.0, False))
    assert Moments().int_sum() == (0, False)
    assert Moments().canonical() == (bytes(8 * SQUARES), bytes(8 * (1 + SQUARE_LIMBS)))


def test_overflow_is_judged_on_the_total_alone() -> None:
    huge = 1.7976931348623157e308
    assert bits(moments_of([huge, huge]).sum()) == bits((math.inf, True))
    assert bits(moments_of([-huge, -huge]).sum()) == bits((-math.inf, True))
    assert bits(moments_of([huge, huge, -huge]).sum()) == bits((huge, False))
    assert bits(moments_of([huge, huge]).mean(2)) == bits((huge, False))
    assert bits(moments_of([huge, -huge]).variance(2, 0)) == bits((math.inf, True))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0**-53], 1.0),
        ([1.0, 2.0**-53, 5e-324], 1.0 + 2.0**-52),
        ([1.0 + 2.0**-52, 2.0**-53], 1.0 + 2.0**-51),
        ([1.0, -(2.0**-54)], 1.0),
        ([1.0, -(2.0**-54), -5e-324], 1.0 - 2.0**-53),
        ([1.7976931348623157e308, 2.0**969], 1.7976931348623157e308),
        ([1.7976931348623157e308, 2.0**970], math.inf),
        ([1.7976931348623157e308, 2.0**970, -5e-324], 1.7976931348623157e308),
        ([1e300, 1.0, -1e300], 1.0),
    ],
)
def test_a_tie_goes_to_even_and_the_least_bit_breaks_it(
    values: list[float], expected: float
) -> None:
    for order in (values, values[::-1]):
        assert bits(moments_of(order).sum()) == bits((expected, math.isinf(expected)))


@pytest.mark.parametrize("n", [1, 3, 2**33 + 1])
def test_a_bit_anywhere_below_a_tie_breaks_it(n: int) -> None:
    ties = [float(n), math.ldexp(n, -53)]
    for exponent in range(-1074, -54):
        for tiny in (math.ldexp(1.0, exponent), -math.ldexp(1.0, exponent)):
            values = [*ties, tiny]
            moments = moments_of(values)
            assert bits(moments.mean(n)) == bits(rounded(exact_sum(values) / n))
            expected = 1.0 + 2.0**-52 if tiny > 0 else 1.0
            assert bits(moments.mean(n)) == bits((expected, False))


@pytest.mark.parametrize(("copies", "n", "ddof"), [(1, 8, 0), (3, 24, 0), (3, 25, 1)])
def test_a_bit_anywhere_below_a_tie_breaks_it_in_a_variance(copies: int, n: int, ddof: int) -> None:
    ties = [1.0, -1.0, 2.0**-27, -(2.0**-27), 2.0**-27, -(2.0**-27)] * copies
    for exponent in range(-1074, -28):
        tiny = math.ldexp(1.0, exponent)
        values = [*ties, tiny, -tiny]
        expected = rounded(exact_variance(values, n, ddof))
        assert expected == (0.25 + 2.0**-54, False)
        assert bits(moments_of(values).variance(n, ddof)) == bits(expected)


@given(
    st.tuples(st.integers(-(2**127) + 1, 2**127 - 1), st.integers(-300, 300)),
    st.tuples(st.integers(0, 2**191 - 1), st.integers(-600, 600)),
    st.one_of(st.integers(1, 1000), st.integers(1, GREATEST)),
    st.integers(0, 1),
)
@settings(max_examples=1000, deadline=None)
def test_a_variance_is_rounded_once_whatever_the_exponents(
    sums: tuple[int, int], squares: tuple[int, int], n: int, ddof: int
) -> None:
    words = _row()
    _set(words, 0, SUM_LIMBS, *sums)
    _set(words, SQUARES, SQUARE_LIMBS, *squares)
    total = compact_value(words, 0, SUM_LIMBS)
    exact = compact_value(words, SQUARES, SQUARE_LIMBS) - total**2 / n
    assume(n > ddof and exact >= 0)
    result = variance_to_float(words, 0, 0, words, 0, SQUARES, n, ddof)
    assert bits(result) == bits(rounded(exact / (n - ddof)))


@pytest.mark.parametrize(("x", "n"), [(5e-324, 2), (1.5e-323, 2), (5e-324, 3), (-5e-324, 2)])
def test_a_mean_below_the_least_subnormal_is_rounded_once(x: float, n: int) -> None:
    assert bits(moments_of([x]).mean(n)) == bits(rounded(Fraction(x) / n))


def test_a_sum_of_int64_past_the_range_is_flagged() -> None:
    for values, expected in (
        ([GREATEST, 1], (0, True)),
        ([GREATEST, 1, -1], (GREATEST, False)),
        ([LEAST, -1], (0, True)),
        ([LEAST, -1, 1], (LEAST, False)),
        ([LEAST] * 4, (0, True)),
    ):
        moments = Moments()
        for i in values:
            moments.add_int(i)
        assert moments.int_sum() == expected
        moments.promote()
        assert moments.int_sum() == expected


def test_an_int64_sum_with_a_fraction_is_an_error() -> None:
    moments = moments_of([0.5])
    with pytest.raises(ValueError, match="fraction"):
        moments.int_sum()
    moments.promote()
    with pytest.raises(ValueError, match="fraction"):
        moments.int_sum()


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_added(x: float) -> None:
    words = _row()
    assert not add_float(words, 0, 0, x)
    assert not add_square(words, 0, SQUARES, x)
    assert not words.any()
    with pytest.raises(ValueError, match="finite"):
        wide_add_float(np.zeros(WIDE_SUM, np.int64), 0, x)
    with pytest.raises(ValueError, match="finite"):
        wide_add_square(np.zeros(WIDE_SQUARE, np.int64), 0, x)


def test_too_few_rows_for_a_mean_or_variance_are_an_error() -> None:
    moments = moments_of([1.0])
    for wide in (False, True):
        if wide:
            moments.promote()
        with pytest.raises(ValueError, match="n > ddof"):
            moments.mean(0)
        with pytest.raises(ValueError, match="n > ddof"):
            moments.variance(1, 1)


def test_a_sum_and_squares_of_different_rows_are_an_error() -> None:
    moments = Moments()
    add_float(moments.words, 0, 0, 4.0)
    add_square(moments.words, 0, SQUARES, 1.0)
    with pytest.raises(ValueError, match="negative variance"):
        moments.variance(2, 0)
    moments.promote()
    with pytest.raises(ValueError, match="negative variance"):
        moments.variance(2, 0)


def test_neighbours_in_a_row_or_an_arena_are_not_touched() -> None:
    words = np.full((3, 12), 7, np.int64)
    words[1, 2 : 2 + SQUARES] = 0
    words[1, 6 : 6 + 1 + SQUARE_LIMBS] = 0
    arena = np.full(WIDE_SUM + WIDE_SQUARE + 3, 7, np.int64)
    arena[1 : 1 + WIDE_SUM] = 0
    arena[2 + WIDE_SUM : 2 + WIDE_SUM + WIDE_SQUARE] = 0
    for x in (1.1, -1e10, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, -2.5):
        add_float(words, 1, 2, x)
        add_square(words, 1, 6, x)
        wide_add_float(arena, 1, x)
        wide_add_square(arena, 2 + WIDE_SUM, x)
    normalise(words, 1, 2, SUM_LIMBS)
    wide_to_compact(arena, 2 + WIDE_SUM, words, 1, 6, SQUARE_LIMBS)
    outside = np.ones(words.shape, bool)
    outside[1, 2 : 2 + SQUARES] = False
    outside[1, 6 : 6 + 1 + SQUARE_LIMBS] = False
    assert (words[outside] == 7).all()
    assert (arena[[0, 1 + WIDE_SUM, -1]] == 7).all()


def test_two_to_the_sixty_two_greatest_values_fit_a_wide_sum() -> None:
    greatest = 1.7976931348623157e308
    sums, squares = np.zeros(WIDE_SUM, np.int64), np.zeros(WIDE_SQUARE, np.int64)
    wide_add_float(sums, 0, greatest)
    wide_add_square(squares, 0, greatest)
    doublings = 62
    for _ in range(doublings):
        wide_add_wide(sums, 0, sums, 0, WIDE_SUM)
        wide_add_wide(squares, 0, squares, 0, WIDE_SQUARE)
    n = 2**doublings
    assert bits(wide_mean_to_float(sums, 0, 1)) == bits((math.inf, True))
    assert bits(wide_mean_to_float(sums, 0, n)) == bits((greatest, False))
    assert bits(wide_variance_to_float(sums, 0, squares, 0, n, 1)) == bits((0.0, False))
