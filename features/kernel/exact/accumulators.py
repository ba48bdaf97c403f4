"""Exact accumulators for sums and sums of squares of float64 and int64 values.

Promise: an accumulator holds the *exact* sum of the values that were added to it. So adding and
merging commute and associate, and the canonical form of a sum depends on its exact value alone: the
same bytes, whatever the order and grouping. Nothing is rounded here; ``rounding`` rounds once, at
the end.

A sum has one of two forms:

- **compact**: ``1 + limbs`` int64 words in a row of a matrix, ``words[pos, base : base + 1 +
  limbs]``. Word 0 is the exponent ``e`` of the least significant bit, the others are a two's
  complement integer ``I``, least significant word first; the value is ``I * 2**e``. Sums have
  ``SUM_LIMBS``, sums of squares ``SQUARE_LIMBS``.
- **wide**: ``WIDE_SUM`` or ``WIDE_SQUARE`` int64 words of an arena, from ``ref`` on. They are a
  two's complement fixed point number whose least significant bit is worth ``2**SUM_LSB`` or
  ``2**SQUARE_LSB``. Every finite float64 fits, and so does the sum of 2**63 of them.

All words zero is the empty sum in both forms. A function that adds to a compact sum returns False,
with the sum unchanged, where the result needs more bits (or the value is not finite): the caller
then moves the sum into a wide accumulator.

The canonical form of a value is the compact one with odd ``I`` (``normalise``) where that fits,
else the wide one (``wide_to_compact``). A wide accumulator is the superaccumulator of Kulisch
("Computer Arithmetic and Validity", 2008); real data rarely needs more than the compact form.
Demmel and Nguyen, "Parallel Reproducible Summation" (IEEE Transactions on Computers, 2015),
describe the problem and other solutions.

``pos``, ``base`` and ``ref`` are not bounds-checked.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from typing import Final

from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.exact.wide_ints import (
    Words,
    add_128,
    add_192,
    add_carry,
    add_shifted,
    clear,
    float_to_bits,
    leading_zeros,
    load,
    multiply_add,
    row_address,
    shift_left_128,
    shift_left_192,
    shift_right_unsigned,
    signed_bits_192,
    stack_words,
    store,
    strip_trailing_zeros_192,
    trailing_zeros,
    word_address,
)

SUM_LIMBS: Final = 2
"""Integer words of a compact sum: 127 bits and a sign."""
SQUARE_LIMBS: Final = 3
"""Integer words of a compact sum of squares: 191 bits and a sign."""
SUM_LSB: Final = -1074
"""Exponent of the least significant bit of a wide sum: that of the least subnormal."""
SQUARE_LSB: Final = -2148
"""Exponent of the least significant bit of a wide sum of squares."""
WIDE_SUM: Final = 34
"""Words of a wide sum: 1074 + 1024 bits for one float64, 63 for the count, a sign."""
WIDE_SQUARE: Final = 67
"""Words of a wide sum of squares: 2148 + 2048 bits for one square, 63 for the count, a sign."""

_MANTISSA: Final = (1 << 52) - 1
_HIDDEN_BIT: Final = 1 << 52
_NOT_FINITE: Final = 2047
# Two odd integers whose exponents differ by more than this have no sum of 192 bits or less.
_FARTHEST: Final = 192
_SCRATCH_WORDS: Final = 8


@inner(forceinline=True)
def _split(x: float) -> tuple[int, int, int, int]:
    """Split a finite float64.

    Returns:
        (sign, magnitude, exponent, bound): x is magnitude * 2**exponent, negated where sign is -1
        (else 0). The magnitude is odd and below 2**53, or zero: then sign and exponent mean
        nothing. |x| < 2**bound.
    """
    bits = float_to_bits(x)
    biased = (bits >> 52) & 2047
    if biased == 0:
        biased = 1
        magnitude = bits & _MANTISSA
    else:
        magnitude = (bits & _MANTISSA) | _HIDDEN_BIT
    zeros = trailing_zeros(magnitude) & 63
    return bits >> 63, magnitude >> zeros, biased - 1075 + zeros, biased - 1022


@inner
def _fixed_to_compact(
    fixed: int,
    n_words: int,
    lsb_exponent: int,
    at: int,
    limbs: int,
) -> bool:
    """Write a fixed point number in canonical compact form; False if it is too long."""
    sign = load(fixed, n_words - 1) >> 63
    low = 0
    while low < n_words and load(fixed, low) == 0:
        low += 1
    if low == n_words:
        clear(at, 1 + limbs)
        return True
    high = n_words - 1
    while high > low and load(fixed, high) == sign:
        high -= 1
    zeros = trailing_zeros(load(fixed, low))
    length = 64 * (high - low) + 64 - leading_zeros(load(fixed, high) ^ sign) - zeros
    if length > 64 * limbs - 1:
        return False
    store(at, 0, lsb_exponent + 64 * low + zeros)
    for limb in range(limbs):
        place = low + limb
        below = load(fixed, place) if place < n_words else sign
        above = load(fixed, place + 1) if place + 1 < n_words else sign
        store(at, 1 + limb, shift_right_unsigned(below, zeros) | ((above << 1) << (63 - zeros)))
    return True


@inner
def _add_in_scratch(
    at: int,
    limbs: int,
    v0: int,
    v1: int,
    v2: int,
    exponent: int,
) -> bool:
    """Add a non-zero value to a non-zero compact sum, where only the normalised result may fit."""
    i0 = load(at, 1)
    i1 = load(at, 2)
    i2 = load(at, 3) if limbs == SQUARE_LIMBS else i1 >> 63
    i0, i1, i2, zeros = strip_trailing_zeros_192(i0, i1, i2)
    held_exponent = load(at, 0) + zeros
    v0, v1, v2, zeros = strip_trailing_zeros_192(v0, v1, v2)
    exponent += zeros
    lowest = min(held_exponent, exponent)
    if max(held_exponent, exponent) - lowest > _FARTHEST:
        return False
    scratch = stack_words(_SCRATCH_WORDS)
    clear(scratch, _SCRATCH_WORDS)
    add_shifted(scratch, _SCRATCH_WORDS, i0, i1, i2, held_exponent - lowest)
    add_shifted(scratch, _SCRATCH_WORDS, v0, v1, v2, exponent - lowest)
    return _fixed_to_compact(scratch, _SCRATCH_WORDS, lowest, at, limbs)


@inner
def _add_scaled(
    at: int,
    limbs: int,
    v0: int,
    v1: int,
    v2: int,
    exponent: int,
) -> bool:
    """Add the signed 192-bit integer v, which fits in ``limbs`` words, times 2**exponent."""
    if (v0 | v1 | v2) == 0:
        return True
    i0 = load(at, 1)
    i1 = load(at, 2)
    i2 = load(at, 3) if limbs == SQUARE_LIMBS else i1 >> 63
    fits = True
    lowest = exponent
    if (i0 | i1 | i2) == 0:
        s0, s1, s2 = v0, v1, v2
    else:
        lowest = min(load(at, 0), exponent)
        up = exponent - lowest
        held_up = load(at, 0) - lowest
        capacity = 64 * limbs - 1
        if up > 0:
            fits = signed_bits_192(v0, v1, v2) + up <= capacity
        elif held_up > 0:
            fits = signed_bits_192(i0, i1, i2) + held_up <= capacity
        # A shift of more than 191 bits gives a wrong result here, which is not used.
        a0, a1, a2 = shift_left_192(i0, i1, i2, held_up)
        b0, b1, b2 = shift_left_192(v0, v1, v2, up)
        s0, s1, s2 = add_192(a0, a1, a2, b0, b1, b2)
        if limbs == SQUARE_LIMBS:
            fits = fits and ((a2 ^ s2) & (b2 ^ s2)) >= 0
        else:
            fits = fits and s2 == s1 >> 63
    if not fits:
        return _add_in_scratch(at, limbs, v0, v1, v2, exponent)
    store(at, 0, lowest)
    store(at, 1, s0)
    store(at, 2, s1)
    if limbs == SQUARE_LIMBS:
        store(at, 3, s2)
    return True


@inner(forceinline=True)
def add_float(words: Words, pos: int, base: int, x: float) -> bool:
    """Add a float64 to a compact sum (``wide_add_float`` raises where it is not finite)."""
    at = row_address(words, pos, base)
    sign, magnitude, exponent, bound = _split(x)
    if bound == _NOT_FINITE - 1022:
        return False
    if magnitude == 0:
        return True
    mantissa = (magnitude ^ sign) - sign
    lowest = load(at, 0)
    up = exponent - lowest
    if up >= 0 and bound - lowest <= 64 * SUM_LIMBS - 2:
        v0, v1 = shift_left_128(mantissa, sign, up)
        s0, s1, overflow = add_128(load(at, 1), load(at, 2), v0, v1)
        if not overflow:
            store(at, 1, s0)
            store(at, 2, s1)
            return True
    return _add_scaled(at, SUM_LIMBS, mantissa, sign, sign, exponent)


@inner(forceinline=True)
def add_square(words: Words, pos: int, base: int, x: float) -> bool:
    """Add the exact square of a float64 to a compact sum of squares; as ``add_float``."""
    at = row_address(words, pos, base)
    _, magnitude, exponent, bound = _split(x)
    if bound == _NOT_FINITE - 1022:
        return False
    if magnitude == 0:
        return True
    p0, p1 = multiply_add(magnitude, magnitude, 0, 0)
    exponent *= 2
    lowest = load(at, 0)
    up = exponent - lowest
    if up >= 0 and 2 * bound - lowest <= 64 * SQUARE_LIMBS - 2:
        v0, v1, v2 = shift_left_192(p0, p1, 0, up)
        s0, s1, s2 = add_192(load(at, 1), load(at, 2), load(at, 3), v0, v1, v2)
        # Neither addend is negative, so a negative sum has overflowed.
        if s2 >= 0:
            store(at, 1, s0)
            store(at, 2, s1)
            store(at, 3, s2)
            return True
    return _add_scaled(at, SQUARE_LIMBS, p0, p1, 0, exponent)


@inner(forceinline=True)
def add_int(words: Words, pos: int, base: int, i: int) -> bool:
    """Add an int64 to a compact sum."""
    at = row_address(words, pos, base)
    sign = i >> 63
    if load(at, 0) == 0:
        s0, s1, overflow = add_128(load(at, 1), load(at, 2), i, sign)
        if not overflow:
            store(at, 1, s0)
            store(at, 2, s1)
            return True
    return _add_scaled(at, SUM_LIMBS, i, sign, sign, 0)


@inner(forceinline=True)
def add_int_square(words: Words, pos: int, base: int, i: int) -> bool:
    """Add the exact square of an int64 to a compact sum of squares."""
    at = row_address(words, pos, base)
    sign = i >> 63
    # The magnitude of -2**63 wraps; read as unsigned it is 2**63, which is right.
    magnitude = (i ^ sign) - sign
    p0, p1 = multiply_add(magnitude, magnitude, 0, 0)
    if load(at, 0) == 0:
        s0, s1, s2 = add_192(load(at, 1), load(at, 2), load(at, 3), p0, p1, 0)
        if s2 >= 0:
            store(at, 1, s0)
            store(at, 2, s1)
            store(at, 3, s2)
            return True
    return _add_scaled(at, SQUARE_LIMBS, p0, p1, 0, 0)


@inner
def merge_compact(
    words: Words,
    pos: int,
    base: int,
    source: Words,
    source_pos: int,
    source_base: int,
    limbs: int,
) -> bool:
    """Add the compact accumulator in ``source`` to the one in ``words``; both have ``limbs``."""
    at = row_address(words, pos, base)
    source_at = row_address(source, source_pos, source_base)
    v0 = load(source_at, 1)
    v1 = load(source_at, 2)
    v2 = load(source_at, 3) if limbs == SQUARE_LIMBS else v1 >> 63
    exponent = load(source_at, 0)
    return _add_scaled(at, limbs, v0, v1, v2, exponent)


@inner
def normalise(words: Words, pos: int, base: int, limbs: int) -> None:
    """Bring a compact accumulator into its canonical form: odd integer, or all words zero."""
    at = row_address(words, pos, base)
    i0 = load(at, 1)
    i1 = load(at, 2)
    i2 = load(at, 3) if limbs == SQUARE_LIMBS else i1 >> 63
    if (i0 | i1 | i2) == 0:
        store(at, 0, 0)
        return
    i0, i1, i2, zeros = strip_trailing_zeros_192(i0, i1, i2)
    store(at, 0, load(at, 0) + zeros)
    store(at, 1, i0)
    store(at, 2, i1)
    if limbs == SQUARE_LIMBS:
        store(at, 3, i2)


@inner
def wide_add_float(arena: Words, ref: int, x: float) -> None:
    """Add a float64 to the wide sum at ``arena[ref : ref + WIDE_SUM]``.

    Raises:
        ValueError: x is a NaN or an infinity.
    """
    sign, magnitude, exponent, bound = _split(x)
    if bound == _NOT_FINITE - 1022:
        raise ValueError("an exact sum takes finite values: reject NaN and infinity before it")
    mantissa = (magnitude ^ sign) - sign
    if magnitude != 0:
        add_shifted(word_address(arena, ref), WIDE_SUM, mantissa, sign, sign, exponent - SUM_LSB)


@inner
def wide_add_square(arena: Words, ref: int, x: float) -> None:
    """Add the exact square of a float64 to ``arena[ref : ref + WIDE_SQUARE]``.

    Raises:
        ValueError: x is a NaN or an infinity.
    """
    _, magnitude, exponent, bound = _split(x)
    if bound == _NOT_FINITE - 1022:
        raise ValueError("an exact sum takes finite values: reject NaN and infinity before it")
    p0, p1 = multiply_add(magnitude, magnitude, 0, 0)
    if magnitude != 0:
        add_shifted(word_address(arena, ref), WIDE_SQUARE, p0, p1, 0, 2 * exponent - SQUARE_LSB)


@inner
def wide_add_int(arena: Words, ref: int, i: int) -> None:
    """Add an int64 to the wide sum at ``arena[ref : ref + WIDE_SUM]``."""
    sign = i >> 63
    add_shifted(word_address(arena, ref), WIDE_SUM, i, sign, sign, -SUM_LSB)


@inner
def wide_add_int_square(arena: Words, ref: int, i: int) -> None:
    """Add the exact square of an int64 to the wide sum at ``arena[ref : ref + WIDE_SQUARE]``."""
    sign = i >> 63
    magnitude = (i ^ sign) - sign
    p0, p1 = multiply_add(magnitude, magnitude, 0, 0)
    add_shifted(word_address(arena, ref), WIDE_SQUARE, p0, p1, 0, -SQUARE_LSB)


@inner
def wide_add_compact(arena: Words, ref: int, words: Words, pos: int, base: int, limbs: int) -> None:
    """Add a compact accumulator to a wide one; zeroed words make it a copy in the wide form."""
    at = row_address(words, pos, base)
    v0 = load(at, 1)
    v1 = load(at, 2)
    if limbs == SQUARE_LIMBS:
        v2 = load(at, 3)
        if (v0 | v1 | v2) != 0:
            add_shifted(word_address(arena, ref), WIDE_SQUARE, v0, v1, v2, load(at, 0) - SQUARE_LSB)
    elif (v0 | v1) != 0:
        add_shifted(word_address(arena, ref), WIDE_SUM, v0, v1, v1 >> 63, load(at, 0) - SUM_LSB)


@inner
def wide_add_wide(arena: Words, ref: int, source: Words, source_ref: int, n_words: int) -> None:
    """Add the wide accumulator at ``source[source_ref:]`` to the one at ``arena[ref:]``.

    Both have ``n_words`` words. Added to itself, an accumulator doubles.
    """
    carry = 0
    at = word_address(arena, ref)
    source_at = word_address(source, source_ref)
    for place in range(n_words):
        total, carry = add_carry(load(at, place), load(source_at, place), carry)
        store(at, place, total)


@inner
def wide_to_compact(arena: Words, ref: int, words: Words, pos: int, base: int, limbs: int) -> bool:
    """Write the canonical compact form of a wide accumulator over ``words[pos, base:]``.

    Returns:
        False, with nothing written, where it does not fit: the canonical form is the wide one.
    """
    fixed = word_address(arena, ref)
    at = row_address(words, pos, base)
    if limbs == SQUARE_LIMBS:
        return _fixed_to_compact(fixed, WIDE_SQUARE, SQUARE_LSB, at, limbs)
    return _fixed_to_compact(fixed, WIDE_SUM, SUM_LSB, at, limbs)
