"""Sums, means and variances from exact accumulators, rounded once.

Promise: every result is the float64 nearest to the exact value of the statistic, ties to even,
subnormals included: the same as ``float(Fraction(...))`` of the exact value, on every CPU. Where
that is not finite, the value is the infinity of its sign and the overflow flag is True. A result
that rounds to zero is 0.0, never -0.0.

A magnitude is reduced to its 192 leading bits and a *sticky* flag, which says that a non-zero bit
was cut off below them. Division by an integer keeps the flag exact, because
``floor(floor(a) / n) == floor(a / n)`` and a remainder only sets it. Rounding half to even needs no
more than the leading bits and the flag. The variance is one fraction,
``(n * S2 - S1**2) / (n * (n - ddof))``, whose numerator is exact.

S1 is a sum, S2 a sum of squares of the same ``n`` rows. A function that returns (value, overflow)
raises ValueError where ``n`` is too small or the variance is negative.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

import numpy as np

from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.exact.accumulators import SQUARE_LSB, SUM_LSB, WIDE_SQUARE, WIDE_SUM
from tidemill.features.kernel.exact.wide_ints import (
    Words,
    add_carry,
    add_shifted,
    below_unsigned,
    bits_to_float,
    clear,
    divide_unsigned,
    leading_zeros,
    load,
    multiply_add,
    row_address,
    shift_left_128,
    shift_left_256,
    shift_right_unsigned,
    signed_bits_192,
    stack_words,
    store,
    subtract_256,
    word_address,
)

_HALF_WORD = 1 << 32
_LOW_HALF = _HALF_WORD - 1
_LEAST_EXPONENT = -1074
_GREATEST_EXPONENT = 971
_INFINITY_BITS = 2047 << 52
# n * S2 (up to 67 words and 63 bits), and a word so that its sign bit stays clear.
_NUMERATOR_WORDS = WIDE_SQUARE + 2


@inner
def _round_half_even(negative: bool, word: int, sticky: bool, exponent: int) -> tuple[float, bool]:
    """Round (word + something below 1, if sticky) * 2**exponent to float64.

    Args:
        negative: Whether the result is negated.
        word: The leading 64 bits, unsigned; the top bit is set.
        sticky: Whether there are non-zero bits below the word.
        exponent: Exponent of the word's least significant bit.

    Returns:
        The value, and whether it overflowed.
    """
    # Keep 53 bits, or fewer where they would be smaller than the least subnormal.
    lsb = max(exponent + 11, _LEAST_EXPONENT)
    dropped = lsb - exponent
    if dropped > 64:
        return 0.0, False
    if dropped == 64:
        kept = 0
        rest = word
    else:
        kept = shift_right_unsigned(word, dropped)
        rest = word << (64 - dropped)
    # The rest is shifted to the top of its word: the sign bit is the half, other bits are more.
    if rest < 0 and ((rest << 1) != 0 or sticky or (kept & 1) != 0):
        kept += 1
    if lsb > _GREATEST_EXPONENT:
        return (-np.inf if negative else np.inf), True
    # The hidden bit adds one to the biased exponent, and so does a carry out of the mantissa.
    bits = ((lsb - _LEAST_EXPONENT) << 52) + kept
    value = bits_to_float(bits)
    overflow = bits >= _INFINITY_BITS
    if negative and kept != 0:
        return -value, overflow
    return value, overflow


@inner
def _divide_by_small(w1: int, w2: int, divisor: int) -> tuple[int, int, int]:
    """Return (two words, remainder) of an unsigned 128-bit integer over a divisor < 2**32."""
    q2, rest = divide_unsigned(w2, divisor)
    high, rest = divide_unsigned((rest << 32) | shift_right_unsigned(w1, 32), divisor)
    low, rest = divide_unsigned((rest << 32) | (w1 & _LOW_HALF), divisor)
    return (high << 32) | low, q2, rest


@inner
def _divide_word(rest: int, word: int, divisor: int) -> tuple[int, int]:
    """Return (quotient, remainder) of ``rest * 2**64 + word`` and a positive int64 above rest."""
    quotient = 0
    for place in range(64):
        rest = (rest << 1) | (shift_right_unsigned(word, 63 - place) & 1)
        quotient <<= 1
        if not below_unsigned(rest, divisor):
            rest -= divisor
            quotient |= 1
    return quotient, rest


@inner
def _divide_by_any(w0: int, w1: int, w2: int, divisor: int) -> tuple[int, int, int, int]:
    """Return (three words, remainder) of an unsigned 192-bit integer over an int64 > 0."""
    q2, rest = _divide_word(0, w2, divisor)
    q1, rest = _divide_word(rest, w1, divisor)
    q0, rest = _divide_word(rest, w0, divisor)
    return q0, q1, q2, rest


@inner
def _ratio_to_float(
    negative: bool,
    w0: int,
    w1: int,
    w2: int,
    sticky: bool,
    exponent: int,
    first: int,
    second: int,
) -> tuple[float, bool]:
    """Round a magnitude divided by ``first * second`` once.

    Args:
        negative: Whether the result is negated.
        w0: Least significant word of the magnitude.
        w1: Middle word.
        w2: Most significant word; its top bit is set unless the magnitude is zero.
        sticky: Whether there are non-zero bits below word 0.
        exponent: Exponent of the least significant bit of word 0.
        first: One factor of the divisor, positive.
        second: The other one, positive.

    Returns:
        The value, and whether it overflowed.
    """
    if w2 == 0:
        return 0.0, False
    if first != 1 or second != 1:
        if first < _HALF_WORD and second < _HALF_WORD:
            # 128 bits divided by 64 leave at least 64, so word 0 only decides whether it is sticky.
            sticky = sticky or w0 != 0
            w0 = 0
            w1, w2, rest = _divide_by_small(w1, w2, first)
            sticky = sticky or rest != 0
            if second != 1:
                w1, w2, rest = _divide_by_small(w1, w2, second)
                sticky = sticky or rest != 0
        else:
            w0, w1, w2, rest = _divide_by_any(w0, w1, w2, first)
            sticky = sticky or rest != 0
            w0, w1, w2, rest = _divide_by_any(w0, w1, w2, second)
            sticky = sticky or rest != 0
        while w2 == 0:
            w0, w1, w2 = 0, w0, w1
            exponent -= 64
    zeros = leading_zeros(w2)
    leading = (w2 << zeros) | shift_right_unsigned(shift_right_unsigned(w1, 1), 63 - zeros)
    sticky = sticky or (w1 << zeros) != 0 or w0 != 0
    return _round_half_even(negative, leading, sticky, exponent + 128 - zeros)


@inner
def _compact_magnitude(at: int) -> tuple[bool, int, int, int]:
    """Return the magnitude of a compact sum as 192 bits with the top bit set.

    Returns:
        (negative, word 1, word 2, exponent of the least bit of word 0, which is zero).
    """
    i0 = load(at, 1)
    i1 = load(at, 2)
    negative = i1 < 0
    if negative:
        i0, carry = add_carry(~i0, 0, 1)
        i1 = ~i1 + carry
    zeros = leading_zeros(i1)
    if i1 == 0:
        zeros += leading_zeros(i0)
        if i0 == 0:
            return False, 0, 0, 0
    i0, i1 = shift_left_128(i0, i1, zeros)
    return negative, i0, i1, load(at, 0) - 64 - zeros


@inner
def _magnitude_word(fixed: int, place: int, low: int, negative: bool) -> int:
    """Return a word of a fixed point number's magnitude; ``low`` is its lowest non-zero word."""
    if place < low:
        return 0
    word = load(fixed, place)
    if not negative:
        return word
    # Negation is complement plus one; the one is carried through the zero words only.
    return -word if place == low else ~word


@inner
def _fixed_magnitude(
    fixed: int, n_words: int, lsb_exponent: int
) -> tuple[bool, int, int, int, bool, int]:
    """Return (negative, words 0 to 2, sticky, exponent) of a fixed point number's leading bits."""
    negative = load(fixed, n_words - 1) < 0
    low = 0
    while low < n_words and load(fixed, low) == 0:
        low += 1
    if low == n_words:
        return False, 0, 0, 0, False, 0
    high = n_words - 1
    while high > low and _magnitude_word(fixed, high, low, negative) == 0:
        high -= 1
    m3 = _magnitude_word(fixed, high, low, negative)
    m2 = _magnitude_word(fixed, high - 1, low, negative)
    m1 = _magnitude_word(fixed, high - 2, low, negative)
    m0 = _magnitude_word(fixed, high - 3, low, negative)
    zeros = leading_zeros(m3)
    m0, m1, m2, m3 = shift_left_256(m0, m1, m2, m3, zeros)
    sticky = m0 != 0 or low < high - 3
    return negative, m1, m2, m3, sticky, lsb_exponent + 64 * (high - 2) - zeros


@inner
def _check_divisors(n: int, ddof: int) -> None:
    if n < 1 or ddof < 0 or n <= ddof:
        raise ValueError("a mean or variance needs n > ddof >= 0 rows: fewer are the caller's null")


@inner
def sum_to_int(words: Words, pos: int, base: int) -> tuple[int, bool]:
    """Return a compact sum of int64 values as int64.

    Returns:
        The value, and whether it overflowed: it does not fit in int64, and the value is 0.

    Raises:
        ValueError: The sum has a fraction, so it is not one of int64 values.
    """
    at = row_address(words, pos, base)
    exponent = load(at, 0)
    i0 = load(at, 1)
    i1 = load(at, 2)
    sign = i1 >> 63
    if (i0 | i1) == 0:
        return 0, False
    if exponent < 0:
        raise ValueError("an int64 sum was asked of a sum with a fraction: use mean_to_float")
    if signed_bits_192(i0, i1, sign) + exponent > 63:
        return 0, True
    return i0 << exponent, False


@inner
def wide_sum_to_int(arena: Words, ref: int) -> tuple[int, bool]:
    """Return the wide sum of int64 values at ``arena[ref:]``; see ``sum_to_int``."""
    fixed = word_address(arena, ref)
    # The unit bit is bit 1074: bit 50 of word 16.
    place = -SUM_LSB // 64
    bits = -SUM_LSB % 64
    for at in range(place):
        if load(fixed, at) != 0:
            raise ValueError("an int64 sum was asked of a sum with a fraction: use mean_to_float")
    if (load(fixed, place) << (64 - bits)) != 0:
        raise ValueError("an int64 sum was asked of a sum with a fraction: use mean_to_float")
    value = shift_right_unsigned(load(fixed, place), bits) | (load(fixed, place + 1) << (64 - bits))
    sign = load(fixed, WIDE_SUM - 1) >> 63
    if value >> 63 != sign or load(fixed, place + 1) >> bits != sign:
        return 0, True
    for at in range(place + 2, WIDE_SUM):
        if load(fixed, at) != sign:
            return 0, True
    return value, False


@inner
def mean_to_float(words: Words, pos: int, base: int, n: int) -> tuple[float, bool]:
    """Return the float64 nearest to a compact sum divided by ``n`` (1: the sum), and overflow."""
    _check_divisors(n, 0)
    negative, w1, w2, exponent = _compact_magnitude(row_address(words, pos, base))
    return _ratio_to_float(negative, 0, w1, w2, False, exponent, n, 1)


@inner
def wide_mean_to_float(arena: Words, ref: int, n: int) -> tuple[float, bool]:
    """Return the float64 nearest to a wide sum divided by ``n``, and overflow."""
    _check_divisors(n, 0)
    negative, w0, w1, w2, sticky, exponent = _fixed_magnitude(
        word_address(arena, ref), WIDE_SUM, SUM_LSB
    )
    return _ratio_to_float(negative, w0, w1, w2, sticky, exponent, n, 1)


@inner
def _fixed_variance(sums: int, squares: int, n: int, ddof: int) -> tuple[float, bool]:
    """Return the variance, and overflow, from the addresses of a wide S1 and a wide S2."""
    numerator = stack_words(_NUMERATOR_WORDS)
    carry = 0
    for place in range(WIDE_SQUARE):
        word, carry = multiply_add(load(squares, place), n, carry, 0)
        store(numerator, place, word)
    store(numerator, WIDE_SQUARE, carry)
    store(numerator, WIDE_SQUARE + 1, 0)
    magnitude = stack_words(WIDE_SUM)
    negative = load(sums, WIDE_SUM - 1) < 0
    low = 0
    while low < WIDE_SUM and load(sums, low) == 0:
        low += 1
    high = low
    for place in range(low, WIDE_SUM):
        word = _magnitude_word(sums, place, low, negative)
        store(magnitude, place, word)
        if word != 0:
            high = place + 1
    # S1 * S1 has the least significant bit of S2, since SQUARE_LSB is twice SUM_LSB.
    product = stack_words(_NUMERATOR_WORDS)
    clear(product, _NUMERATOR_WORDS)
    for i in range(low, high):
        carry = 0
        for j in range(low, high):
            word, carry = multiply_add(
                load(magnitude, i), load(magnitude, j), load(product, i + j), carry
            )
            store(product, i + j, word)
        store(product, i + high, carry)
    # a - b is a + ~b + 1.
    carry = 1
    for place in range(_NUMERATOR_WORDS):
        word, carry = add_carry(load(numerator, place), ~load(product, place), carry)
        store(numerator, place, word)
    negative, w0, w1, w2, sticky, exponent = _fixed_magnitude(
        numerator, _NUMERATOR_WORDS, SQUARE_LSB
    )
    if negative:
        raise ValueError("a negative variance: the sum and the sum of squares differ in their rows")
    return _ratio_to_float(False, w0, w1, w2, sticky, exponent, n, n - ddof)


@inner
def wide_variance_to_float(
    sums: Words, sum_ref: int, squares: Words, square_ref: int, n: int, ddof: int
) -> tuple[float, bool]:
    """Return the variance, and overflow, from a wide S1 and S2; see ``variance_to_float``.

    Where only one of the two is wide, add the other to zeroed words with ``wide_add_compact``.
    """
    _check_divisors(n, ddof)
    return _fixed_variance(word_address(sums, sum_ref), word_address(squares, square_ref), n, ddof)


@inner
def _variance_of_far_exponents(
    sum_at: int, square_at: int, n: int, ddof: int
) -> tuple[float, bool]:
    """Return the variance, and overflow, from the addresses of a non-zero compact S1 and S2."""
    sums = stack_words(WIDE_SUM)
    clear(sums, WIDE_SUM)
    a1 = load(sum_at, 2)
    add_shifted(sums, WIDE_SUM, load(sum_at, 1), a1, a1 >> 63, load(sum_at, 0) - SUM_LSB)
    squares = stack_words(WIDE_SQUARE)
    clear(squares, WIDE_SQUARE)
    add_shifted(
        squares,
        WIDE_SQUARE,
        load(square_at, 1),
        load(square_at, 2),
        load(square_at, 3),
        load(square_at, 0) - SQUARE_LSB,
    )
    return _fixed_variance(sums, squares, n, ddof)


@inner
def variance_to_float(
    sums: Words,
    sum_pos: int,
    sum_base: int,
    squares: Words,
    square_pos: int,
    square_base: int,
    n: int,
    ddof: int,
) -> tuple[float, bool]:
    """Return the float64 nearest to ``(S2 - S1 * S1 / n) / (n - ddof)``, and overflow.

    S1 and S2 are compact; ``ddof`` is 0 for a population, 1 for a sample.
    """
    _check_divisors(n, ddof)
    sum_at = row_address(sums, sum_pos, sum_base)
    square_at = row_address(squares, square_pos, square_base)
    a0 = load(sum_at, 1)
    a1 = load(sum_at, 2)
    b0 = load(square_at, 1)
    b1 = load(square_at, 2)
    b2 = load(square_at, 3)
    if (a0 | a1 | b0 | b1 | b2) == 0:
        return 0.0, False
    if a1 < 0:
        a0, carry = add_carry(~a0, 0, 1)
        a1 = ~a1 + carry
    exponent = load(square_at, 0)
    # By how many bits n * S2 has to be shifted to the exponent of S1 * S1.
    above = exponent - 2 * load(sum_at, 0)
    if (a0 | a1) == 0:
        above = 0
    q0, carry = multiply_add(b0, n, 0, 0)
    q1, carry = multiply_add(b1, n, carry, 0)
    q2, q3 = multiply_add(b2, n, carry, 0)
    # S1 * S1 <= n * S2 (Cauchy and Schwarz), so where n * S2 fits in 256 bits, so does the other.
    if above > leading_zeros(q3) or above <= -256:
        return _variance_of_far_exponents(sum_at, square_at, n, ddof)
    p0, carry = multiply_add(a0, a0, 0, 0)
    p1, p2 = multiply_add(a0, a1, carry, 0)
    p1, carry = multiply_add(a1, a0, p1, 0)
    p2, p3 = multiply_add(a1, a1, p2, carry)
    if above > 0:
        q0, q1, q2, q3 = shift_left_256(q0, q1, q2, q3, above)
        exponent -= above
    elif above < 0:
        p0, p1, p2, p3 = shift_left_256(p0, p1, p2, p3, -above)
    d0, d1, d2, d3, borrow = subtract_256(q0, q1, q2, q3, p0, p1, p2, p3)
    if borrow != 0:
        raise ValueError("a negative variance: the sum and the sum of squares differ in their rows")
    if (d0 | d1 | d2 | d3) == 0:
        return 0.0, False
    while d3 == 0:
        d0, d1, d2, d3 = 0, d0, d1, d2
        exponent -= 64
    zeros = leading_zeros(d3)
    d0, d1, d2, d3 = shift_left_256(d0, d1, d2, d3, zeros)
    return _ratio_to_float(False, d1, d2, d3, d0 != 0, exponent + 64 - zeros, n, n - ddof)
