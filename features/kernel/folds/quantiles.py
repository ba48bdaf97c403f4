"""The fold of quantiles: DDSketch with buckets taken from the float's bits.

Masson, Rim and Lee, "DDSketch" (VLDB 2019). A bucket is the sign, the exponent and the top
`QUANTILE_MANTISSA_BITS` of the mantissa, so every CPU computes the same, and sketches merge in any
order. The relative error is at most 1/256. A tile keeps sorted words of bucket and count.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import QUANTILE_MANTISSA_BITS
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.wide_ints import bits_to_float, float_to_bits
from tidemill.features.kernel.folds.counts_and_extremes import Float64Array, Int32Array, UInt8Array
from tidemill.features.kernel.registry import OWNS_SKETCH, fold
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS
from tidemill.features.kernel.tiles.sorted_words import insert, search

_BUCKET_SHIFT: Final = 52 - QUANTILE_MANTISSA_BITS
_COUNT_BITS: Final = 44
_COUNT_MASK: Final = (1 << _COUNT_BITS) - 1
_BUCKETS: Final = 1 << 19
_GROUP_BITS: Final = 6
_GROUPS: Final = _BUCKETS >> _GROUP_BITS
_SUPERS: Final = _GROUPS >> _GROUP_BITS
_LIST: Final = _BUCKETS + _GROUPS + _SUPERS
_LIST_WORDS: Final = 64
SKETCH_SCRATCH: Final = _LIST + _LIST_WORDS
"""A histogram with two coarser levels, and a short sorted list that suffices for most queries."""

# The variants of `fold_sketch`.
_OF_INTS: Final = 0
_OF_FLOATS: Final = 1


@inner(forceinline=True)
def _bucket(word: int) -> int:
    """Return the bucket of a float's bits: signed, in the order of the values."""
    magnitude = (word & 0x7FFFFFFFFFFFFFFF) >> _BUCKET_SHIFT
    return -magnitude if word < 0 else magnitude


@inner
def _representative(bucket: int) -> float:
    magnitude = abs(bucket)
    if magnitude == 0:
        return 0.0
    low = bits_to_float(magnitude << _BUCKET_SHIFT)
    high = bits_to_float((magnitude + 1) << _BUCKET_SHIFT)
    middle = low if math.isinf(high) else low + (high - low) / 2.0
    return -middle if bucket < 0 else middle


@inner
def _add_bucket(
    tiles: Int64Array,
    at: int,
    base: int,
    bucket: int,
    blocks: Int64Array,
    block_meta: Int64Array,
) -> bool:
    """Count a value in a tile's sketch; False, with nothing changed, if there is no room."""
    n = tiles[at, base]
    word = bucket << _COUNT_BITS
    place = 0
    if n == 1:
        only = tiles[at, base + 1]
        if only >> _COUNT_BITS == bucket:
            tiles[at, base + 1] = only + 1
            return True
        place = 1 if only < word else 0
    elif n > 1:
        block = tiles[at, base + 1]
        place = search(blocks, block, n, word)
        if place < n and blocks[block + place] >> _COUNT_BITS == bucket:
            blocks[block + place] += 1
            return True
    return insert(tiles, at, base, place, word + 1, blocks, block_meta)


@inner(forceinline=True)
def _tally(scratch: Int64Array, word: int, sign: int) -> None:
    """Add a bucket's count to the histogram and its coarser levels, or subtract it (sign -1)."""
    bucket = (word >> _COUNT_BITS) + (_BUCKETS >> 1)
    count = word & _COUNT_MASK
    scratch[bucket] += sign * count
    scratch[_BUCKETS + (bucket >> _GROUP_BITS)] += sign * count
    scratch[_BUCKETS + _GROUPS + (bucket >> (2 * _GROUP_BITS))] += sign * count


@inner
def _bucket_of_rank(scratch: Int64Array, rank: int) -> int:
    """Return the bucket of the value with a rank."""
    seen = 0
    upper = 0
    while seen + scratch[_BUCKETS + _GROUPS + upper] <= rank:
        seen += scratch[_BUCKETS + _GROUPS + upper]
        upper += 1
    group = upper << _GROUP_BITS
    while seen + scratch[_BUCKETS + group] <= rank:
        seen += scratch[_BUCKETS + group]
        group += 1
    bucket = group << _GROUP_BITS
    while seen + scratch[bucket] <= rank:
        seen += scratch[bucket]
        bucket += 1
    return bucket - (_BUCKETS >> 1)


@inner(forceinline=True)
def _gather(scratch: Int64Array, n: int, word: int) -> int:
    """Add a bucket's count to the short sorted list at the end of the scratch.

    Returns:
        The number of buckets in the list, or -1, with nothing changed, if it is full.
    """
    bucket = word >> _COUNT_BITS
    place = n
    while place > 0 and scratch[_LIST + place - 1] >> _COUNT_BITS > bucket:
        place -= 1
    if place > 0 and scratch[_LIST + place - 1] >> _COUNT_BITS == bucket:
        scratch[_LIST + place - 1] += word & _COUNT_MASK
        return n
    if n == _LIST_WORDS:
        return -1
    for k in range(n, place, -1):
        scratch[_LIST + k] = scratch[_LIST + k - 1]
    scratch[_LIST + place] = word
    return n + 1


@inner(forceinline=True)
def _listed_bucket_of_rank(scratch: Int64Array, rank: int) -> int:
    seen = 0
    place = 0
    while seen + (scratch[_LIST + place] & _COUNT_MASK) <= rank:
        seen += scratch[_LIST + place] & _COUNT_MASK
        place += 1
    return scratch[_LIST + place] >> _COUNT_BITS


@inner(forceinline=True)
def _gather_tile(
    scratch: Int64Array, listed: int, tiles: Int64Array, p: int, base: int, blocks: Int64Array
) -> int:
    """Add a tile's buckets to the list or, once that is full, to the histogram.

    ``listed`` is the number of buckets in the list, or -1 if the histogram is in use; the function
    returns its new value.
    """
    n = tiles[p, base]
    block = tiles[p, base + 1]
    for k in range(n):
        word = block if n == 1 else blocks[block + k]
        if listed >= 0:
            more = _gather(scratch, listed, word)
            if more >= 0:
                listed = more
                continue
            for place in range(listed):
                _tally(scratch, scratch[_LIST + place], 1)
            listed = -1
        _tally(scratch, word, 1)
    return listed


@inner
def _forget_tile(
    scratch: Int64Array, tiles: Int64Array, p: int, base: int, blocks: Int64Array
) -> None:
    """Subtract a tile's buckets from the histogram."""
    n = tiles[p, base]
    block = tiles[p, base + 1]
    for k in range(n):
        _tally(scratch, block if n == 1 else blocks[block + k], -1)


@inner(forceinline=True)
def _count_tile(tiles: Int64Array, p: int, base: int, blocks: Int64Array) -> int:
    n = tiles[p, base]
    block = tiles[p, base + 1]
    if n == 1:
        return block & _COUNT_MASK
    total = 0
    for k in range(n):
        total += blocks[block + k] & _COUNT_MASK
    return total


@fold(
    "sketch_int",
    identity=(0, 0),
    owns=OWNS_SKETCH,
    answer_words=2,
    takes_param=True,
    scratch_words=SKETCH_SCRATCH,
    variant=_OF_INTS,
)
@fold(
    "sketch_float",
    identity=(0, 0),
    owns=OWNS_SKETCH,
    answer_words=2,
    takes_param=True,
    scratch_words=SKETCH_SCRATCH,
    variant=_OF_FLOATS,
)
@entry
def fold_sketch(
    variant: int,
    first: int,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    tiles: Int64Array,
    base: int,
    size: int,
    cells: Int64Array,
    value_cell: int,
    mask_word: int,
    mask_bit: int,
    event_time: Int64Array,
    id_offsets: Int32Array,
    id_data: UInt8Array,
    blocks: Int64Array,
    block_meta: Int64Array,
    ask_windows: Int64Array,
    ask_params: Float64Array,
    scratch: Int64Array,
    out: Int64Array,
) -> int:
    """Count values per bucket; the answer is (bits of the quantile, presence)."""
    is_float = variant == _OF_FLOATS
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at < 0 or not (cells[row, mask_word] >> mask_bit) & 1:
                continue
            word = cells[row, value_cell]
            if not is_float:
                word = float_to_bits(float(word))
            if not _add_bucket(tiles, at, base, _bucket(word), blocks, block_meta):
                return i
            continue
        head = queries[at, Q_HEAD]
        p = head
        total = 0
        listed = 0
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                if tiles[p, base]:
                    total += _count_tile(tiles, p, base, blocks)
                    listed = _gather_tile(scratch, listed, tiles, p, base, blocks)
                p -= 1
            o = at * asks + a
            out[o, 0] = 0
            out[o, 1] = 1 if total else 0
            if total:
                rank = np.int64(math.floor(ask_params[a] * float(total - 1)))
                if listed >= 0:
                    bucket = _listed_bucket_of_rank(scratch, rank)
                else:
                    bucket = _bucket_of_rank(scratch, rank)
                out[o, 0] = float_to_bits(_representative(bucket))
        if listed < 0:
            for q in range(p + 1, head + 1):
                _forget_tile(scratch, tiles, q, base, blocks)
    return step_row.shape[0]
