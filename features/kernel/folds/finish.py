"""The finishes: they turn merged answers into values, rounded once.

Every finish is one compiled function over all queries of a batch:

    run(variant, a, a_ask, a_asks, b, b_ask, b_asks, c, c_ask, c_asks, queries,
        blocks, param, width, is_float, column, values, nulls) -> overflows

* ``variant``: the number that the finish was registered with, if one function serves several.
* ``a``, ``b``, ``c``: the answers of the feature's partials, in the order of
  `Aggregation.partials` (an empty array where there is none); the answer to query ``q`` is row
  ``q * asks + ask``.
* ``values[q, column : column + width]`` receives 64-bit patterns, ``nulls[...]`` which of them are
  null; a null has the pattern 0.
* The function returns the number of values that are null because a total exceeds its dtype.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.accumulators import (
    SQUARE_LIMBS,
    SUM_LIMBS,
    WIDE_SQUARE,
    WIDE_SUM,
    wide_add_compact,
)
from tidemill.features.kernel.exact.rounding import (
    mean_to_float,
    sum_to_int,
    variance_to_float,
    wide_mean_to_float,
    wide_sum_to_int,
    wide_variance_to_float,
)
from tidemill.features.kernel.exact.wide_ints import float_to_bits
from tidemill.features.kernel.folds.counts_and_extremes import UInt8Array
from tidemill.features.kernel.registry import finish
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.layout import Q_AS_OF, Q_REQUEST
from tidemill.features.kernel.tiles.tile_blocks import SPILLED

# The variants of `finish_word`.
_COUNT: Final = 0
_EXTREME: Final = 1
_SINCE: Final = 2
_RATIO: Final = 3

# The variants of `finish_sum`.
_SUM: Final = 0
_MEAN: Final = 1

# The variants of `finish_variance`.
_VARIANCE: Final = 0
_STD: Final = 1


@inner
def _put(values: Int64Array, nulls: UInt8Array, q: int, column: int, null: bool, word: int) -> None:
    values[q, column] = 0 if null else word
    nulls[q, column] = 1 if null else 0


@finish("count", variant=_COUNT)
@finish("extreme", variant=_EXTREME)
@finish("since", variant=_SINCE)
@finish("ratio", variant=_RATIO)
@entry
def finish_word(
    variant: int,
    a: Int64Array,
    a_ask: int,
    a_asks: int,
    b: Int64Array,
    b_ask: int,
    b_asks: int,
    c: Int64Array,
    c_ask: int,
    c_asks: int,
    queries: Int64Array,
    blocks: Int64Array,
    param: float,
    width: int,
    is_float: bool,
    column: int,
    values: Int64Array,
    nulls: UInt8Array,
) -> int:
    """Write a count, an extreme, the time since an event, or a ratio; the last three null if empty.

    For a publication the anchor (the event's time) is written instead of the time since it. The
    ratio of two counts is rounded once (the counts are exact below 2**53).
    """
    for q in range(queries.shape[0]):
        word = a[q * a_asks + a_ask, 0]
        n = 1
        if variant != _COUNT:
            n = b[q * b_asks + b_ask, 0]
        if variant == _SINCE and queries[q, Q_REQUEST] != -1:
            word = queries[q, Q_AS_OF] - word
        elif variant == _RATIO and n:
            word = float_to_bits(float(word) / float(n))
        _put(values, nulls, q, column, n == 0, word)
    return 0


@finish("pick")
@finish("pick_k")
@finish("estimate")
@entry
def finish_present(
    variant: int,
    a: Int64Array,
    a_ask: int,
    a_asks: int,
    b: Int64Array,
    b_ask: int,
    b_asks: int,
    c: Int64Array,
    c_ask: int,
    c_asks: int,
    queries: Int64Array,
    blocks: Int64Array,
    param: float,
    width: int,
    is_float: bool,
    column: int,
    values: Int64Array,
    nulls: UInt8Array,
) -> int:
    """Write the values that are present: picks, the newest first, or an estimate."""
    for q in range(queries.shape[0]):
        o = q * a_asks + a_ask
        for k in range(width):
            _put(values, nulls, q, column + k, a[o, width + k] == 0, a[o, k])
    return 0


@finish("sum", variant=_SUM)
@finish("mean", variant=_MEAN)
@entry
def finish_sum(
    variant: int,
    a: Int64Array,
    a_ask: int,
    a_asks: int,
    b: Int64Array,
    b_ask: int,
    b_asks: int,
    c: Int64Array,
    c_ask: int,
    c_asks: int,
    queries: Int64Array,
    blocks: Int64Array,
    param: float,
    width: int,
    is_float: bool,
    column: int,
    values: Int64Array,
    nulls: UInt8Array,
) -> int:
    """Round the exact sum, or the exact sum divided by the count, once."""
    overflows = 0
    for q in range(queries.shape[0]):
        o = q * a_asks + a_ask
        n = 1
        if variant == _MEAN:
            n = b[q * b_asks + b_ask, 0]
        if n == 0:
            _put(values, nulls, q, column, True, 0)
            continue
        wide = a[o, 0] == SPILLED
        if is_float:
            if wide:
                value, over = wide_mean_to_float(blocks, a[o, 1], n)
            else:
                value, over = mean_to_float(a, o, 0, n)
            word = float_to_bits(value)
        elif wide:
            word, over = wide_sum_to_int(blocks, a[o, 1])
        else:
            word, over = sum_to_int(a, o, 0)
        overflows += over
        _put(values, nulls, q, column, over, word)
    return overflows


@inner
def _variance(
    a: Int64Array,
    ao: int,
    b: Int64Array,
    bo: int,
    n: int,
    ddof: int,
    blocks: Int64Array,
    wide: Int64Array,
) -> tuple[float, bool]:
    """Return the rounded variance, and overflow; ``wide`` is scratch."""
    if a[ao, 0] != SPILLED and b[bo, 0] != SPILLED:
        return variance_to_float(a, ao, 0, b, bo, 0, n, ddof)
    sums, sum_at = blocks, a[ao, 1]
    if a[ao, 0] != SPILLED:
        arena.clear_words(wide, 0, WIDE_SUM)
        wide_add_compact(wide, 0, a, ao, 0, SUM_LIMBS)
        sums, sum_at = wide, 0
    squares, square_at = blocks, b[bo, 1]
    if b[bo, 0] != SPILLED:
        arena.clear_words(wide, WIDE_SUM, WIDE_SQUARE)
        wide_add_compact(wide, WIDE_SUM, b, bo, 0, SQUARE_LIMBS)
        squares, square_at = wide, WIDE_SUM
    return wide_variance_to_float(sums, sum_at, squares, square_at, n, ddof)


@finish("variance", variant=_VARIANCE)
@finish("std", variant=_STD)
@entry
def finish_variance(
    variant: int,
    a: Int64Array,
    a_ask: int,
    a_asks: int,
    b: Int64Array,
    b_ask: int,
    b_asks: int,
    c: Int64Array,
    c_ask: int,
    c_asks: int,
    queries: Int64Array,
    blocks: Int64Array,
    param: float,
    width: int,
    is_float: bool,
    column: int,
    values: Int64Array,
    nulls: UInt8Array,
) -> int:
    """Round the exact variance once; ``std`` is the root of the rounded variance."""
    ddof = int(param)
    overflows = 0
    wide = np.empty(WIDE_SUM + WIDE_SQUARE, np.int64)
    for q in range(queries.shape[0]):
        n = c[q * c_asks + c_ask, 0]
        value, over = 0.0, False
        if n > ddof:
            value, over = _variance(
                a, q * a_asks + a_ask, b, q * b_asks + b_ask, n, ddof, blocks, wide
            )
            overflows += over
            if variant == _STD and not over:
                value = math.sqrt(value)
        _put(values, nulls, q, column, n <= ddof or over, float_to_bits(value))
    return overflows


@entry
def release_answers(
    out: Int64Array, words: int, blocks: Int64Array, block_meta: Int64Array
) -> None:
    """Release the wide blocks of the answers of an exact sum."""
    for o in range(out.shape[0]):
        if out[o, 0] == SPILLED:
            arena.release(blocks, block_meta, out[o, 1], arena.class_of(words))
