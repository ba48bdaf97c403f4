"""The folds that sketch: quantiles (DDSketch) and distinct counts (a set, then HyperLogLog).

Both are free of order: buckets and registers only ever add up or grow. Their buckets and hashes
come from the values' bits, not from libm, so every CPU gives the same bytes.

* Quantiles: Masson, Rim and Lee, "DDSketch" (VLDB 2019), with the bits of the float as the
  bucket: sign, exponent and the top `QUANTILE_MANTISSA_BITS` of the mantissa. The relative error
  is at most 1/256.
* Distinct counts: the exact set of 64-bit hashes up to `DISTINCT_EXACT_BOUND`, past that
  HyperLogLog (Flajolet et al., 2007) with Ertl's improved raw estimator ("New cardinality
  estimation algorithms for HyperLogLog sketches", 2017, algorithm 6).
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Final

import numba as nb
import numpy as np

from features.aggregations import (
    DISTINCT_EXACT_BOUND,
    DISTINCT_REGISTER_BITS,
    QUANTILE_MANTISSA_BITS,
)
from features.contract import Int64Array
from features.kernel import arena
from features.kernel.folds import Float64Array, Int32Array, UInt8Array
from features.kernel.layout import Q_HEAD, Q_TAILS, REGISTER_CLASS, REGISTERS
from features.kernel.limbs import bits_to_float, float_to_bits, leading_zeros
from features.kernel.registry import OWNS_SET, OWNS_SKETCH, fold

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
"""A histogram with two coarser levels, and a short sorted list that most queries do with."""

_M: Final = 1 << DISTINCT_REGISTER_BITS
_REST_BITS: Final = 64 - DISTINCT_REGISTER_BITS
_SLOTS: Final = 4 * DISTINCT_EXACT_BOUND
SET_SCRATCH: Final = 2 * _SLOTS + 1 + _M


@nb.njit(cache=True, inline="always")
def _bucket(word: int) -> int:
    """Return the bucket of a float by its bits: signed, ascending with the value."""
    magnitude = (word & 0x7FFFFFFFFFFFFFFF) >> _BUCKET_SHIFT
    return -magnitude if word < 0 else magnitude


@nb.njit(cache=True)
def _representative(bucket: int) -> float:
    magnitude = abs(bucket)
    if magnitude == 0:
        return 0.0
    low = bits_to_float(magnitude << _BUCKET_SHIFT)
    high = bits_to_float((magnitude + 1) << _BUCKET_SHIFT)
    middle = low if math.isinf(high) else low + (high - low) / 2.0
    return -middle if bucket < 0 else middle


@nb.njit(cache=True, inline="always")
def _search(blocks: Int64Array, block: int, n: int, word: int) -> int:
    """Return the first place in a sorted block whose word is at least ``word``."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if blocks[block + middle] < word:
            low = middle + 1
        else:
            high = middle
    return low


@nb.njit(cache=True)
def _insert(
    tiles: Int64Array, at: int, base: int, place: int, word: int,
    blocks: Int64Array, block_meta: Int64Array,
) -> bool:
    """Insert a word into a tile's sorted words; False, with nothing changed, for want of room.

    A tile's words are (n, ref): one word stands in ``ref`` itself, more in a block of the class
    of ``n``.
    """
    n = tiles[at, base]
    if n == 0:
        tiles[at, base + 1] = word
    else:
        block = tiles[at, base + 1]
        old_class = arena.class_of(n)
        new_class = arena.class_of(n + 1)
        if n == 1 or old_class != new_class:
            fresh = arena.allocate(blocks, block_meta, new_class)
            if fresh == arena.NO_BLOCK:
                return False
            if n == 1:
                blocks[fresh] = block
            else:
                for k in range(n):
                    blocks[fresh + k] = blocks[block + k]
                arena.release(blocks, block_meta, block, old_class)
            block = fresh
            tiles[at, base + 1] = block
        for k in range(n, place, -1):
            blocks[block + k] = blocks[block + k - 1]
        blocks[block + place] = word
    tiles[at, base] = n + 1
    return True


@nb.njit(cache=True)
def _add_bucket(
    tiles: Int64Array, at: int, base: int, bucket: int,
    blocks: Int64Array, block_meta: Int64Array,
) -> bool:
    """Count one value into a tile's sketch: sorted words of bucket and count."""
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
        place = _search(blocks, block, n, word)
        if place < n and blocks[block + place] >> _COUNT_BITS == bucket:
            blocks[block + place] += 1
            return True
    return _insert(tiles, at, base, place, word + 1, blocks, block_meta)


@nb.njit(cache=True, inline="always")
def _tally(scratch: Int64Array, word: int, sign: int) -> None:
    """Add a bucket's count to the histogram and its two coarser levels, or take it out."""
    bucket = (word >> _COUNT_BITS) + (_BUCKETS >> 1)
    count = word & _COUNT_MASK
    scratch[bucket] += sign * count
    scratch[_BUCKETS + (bucket >> _GROUP_BITS)] += sign * count
    scratch[_BUCKETS + _GROUPS + (bucket >> (2 * _GROUP_BITS))] += sign * count


@nb.njit(cache=True)
def _bucket_of_rank(scratch: Int64Array, rank: int) -> int:
    """Return the bucket that holds the value of a rank."""
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


@nb.njit(cache=True, inline="always")
def _gather(scratch: Int64Array, n: int, word: int) -> int:
    """Add a bucket's count to the short sorted list at the end of the scratch.

    Returns:
        The buckets in the list now, or -1, with nothing changed, when it is full.
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


@nb.njit(cache=True, inline="always")
def _listed_bucket_of_rank(scratch: Int64Array, rank: int) -> int:
    seen = 0
    place = 0
    while seen + (scratch[_LIST + place] & _COUNT_MASK) <= rank:
        seen += scratch[_LIST + place] & _COUNT_MASK
        place += 1
    return scratch[_LIST + place] >> _COUNT_BITS


@nb.njit(cache=True, inline="always")
def _gather_tile(
    scratch: Int64Array, listed: int, tiles: Int64Array, p: int, base: int, blocks: Int64Array
) -> int:
    """Add a tile's buckets to the list, or once that is full to the histogram.

    Args:
        listed: Buckets in the list, or -1 when the histogram is in use.

    Returns:
        ``listed`` now.
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


@nb.njit(cache=True)
def _forget_tile(
    scratch: Int64Array, tiles: Int64Array, p: int, base: int, blocks: Int64Array
) -> None:
    """Take a tile's buckets out of the histogram again."""
    n = tiles[p, base]
    block = tiles[p, base + 1]
    for k in range(n):
        _tally(scratch, block if n == 1 else blocks[block + k], -1)


@nb.njit(cache=True, inline="always")
def _count_tile(tiles: Int64Array, p: int, base: int, blocks: Int64Array) -> int:
    n = tiles[p, base]
    block = tiles[p, base + 1]
    if n == 1:
        return block & _COUNT_MASK
    total = 0
    for k in range(n):
        total += blocks[block + k] & _COUNT_MASK
    return total


@nb.njit(cache=True)
def _fold_sketch(
    is_float: bool,
    first: int,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    tiles: Int64Array,
    base: int,
    cells: Int64Array,
    value_cell: int,
    mask_word: int,
    mask_bit: int,
    blocks: Int64Array,
    block_meta: Int64Array,
    ask_windows: Int64Array,
    ask_params: Float64Array,
    scratch: Int64Array,
    out: Int64Array,
) -> int:
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
            out[o, 0] = 1 if total else 0
            out[o, 1] = 0
            if total:
                rank = np.int64(math.floor(ask_params[a] * float(total - 1)))
                if listed >= 0:
                    bucket = _listed_bucket_of_rank(scratch, rank)
                else:
                    bucket = _bucket_of_rank(scratch, rank)
                out[o, 1] = float_to_bits(_representative(bucket))
        if listed < 0:
            for q in range(p + 1, head + 1):
                _forget_tile(scratch, tiles, q, base, blocks)
    return step_row.shape[0]


@fold("sketch_float", identity=(0, 0), owns=OWNS_SKETCH, answer_words=2, takes_param=True,
      scratch_words=SKETCH_SCRATCH)
@nb.njit(cache=True)
def fold_sketch_float(
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
    """Sketch floats; the answer is (presence, bits of the quantile)."""
    return _fold_sketch(
        True, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, ask_params, scratch, out,
    )


@fold("sketch_int", identity=(0, 0), owns=OWNS_SKETCH, answer_words=2, takes_param=True,
      scratch_words=SKETCH_SCRATCH)
@nb.njit(cache=True)
def fold_sketch_int(
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
    """Sketch ints; the answer is (presence, bits of the quantile)."""
    return _fold_sketch(
        False, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, ask_params, scratch, out,
    )


@nb.njit(cache=True)
def _register_of(word: int) -> int:
    return np.int64(np.uint64(word) >> np.uint64(_REST_BITS))


@nb.njit(cache=True)
def _rank_of(word: int) -> int:
    """Return the leading zeros of the bits that do not name the register, plus one."""
    rest = word & ((1 << _REST_BITS) - 1)
    return _REST_BITS + 1 if rest == 0 else leading_zeros(rest) - (64 - _REST_BITS) + 1


@nb.njit(cache=True)
def _read_register(blocks: Int64Array, block: int, k: int) -> int:
    return (blocks[block + (k >> 3)] >> ((k & 7) << 3)) & 0xFF


@nb.njit(cache=True)
def _raise_register(blocks: Int64Array, block: int, word: int) -> None:
    k, rank = _register_of(word), _rank_of(word)
    if rank > _read_register(blocks, block, k):
        shift = (k & 7) << 3
        at = block + (k >> 3)
        blocks[at] = (blocks[at] & ~(np.int64(0xFF) << shift)) | (np.int64(rank) << shift)


@nb.njit(cache=True)
def _add_hash(
    tiles: Int64Array, at: int, base: int, word: int,
    blocks: Int64Array, block_meta: Int64Array,
) -> bool:
    """Put a hash into a tile's set; False, with nothing changed, for want of room."""
    n = tiles[at, base]
    if n == REGISTERS:
        _raise_register(blocks, tiles[at, base + 1], word)
        return True
    place = 0
    if n == 1:
        only = tiles[at, base + 1]
        if only == word:
            return True
        place = 1 if only < word else 0
    elif n > 1:
        block = tiles[at, base + 1]
        place = _search(blocks, block, n, word)
        if place < n and blocks[block + place] == word:
            return True
    if n < DISTINCT_EXACT_BOUND:
        return _insert(tiles, at, base, place, word, blocks, block_meta)
    block = arena.allocate(blocks, block_meta, REGISTER_CLASS)
    if block == arena.NO_BLOCK:
        return False
    blocks[block : block + (1 << REGISTER_CLASS)] = 0
    old = tiles[at, base + 1]
    for k in range(n):
        _raise_register(blocks, block, blocks[old + k])
    _raise_register(blocks, block, word)
    arena.release(blocks, block_meta, old, arena.class_of(n))
    tiles[at, base] = REGISTERS
    tiles[at, base + 1] = block
    return True


@nb.njit(cache=True)
def _sigma(x: float) -> float:
    y, z = 1.0, x
    while True:
        x = x * x
        before = z
        z = z + x * y
        y = y + y
        if z == before:
            return z


@nb.njit(cache=True)
def _tau(x: float) -> float:
    if x == 0.0 or x == 1.0:
        return 0.0
    y, z = 1.0, 1.0 - x
    while True:
        x = math.sqrt(x)
        y = 0.5 * y
        d = 1.0 - x
        before = z
        z = z - d * d * y
        if z == before:
            return z / 3.0


@nb.njit(cache=True)
def _estimate(scratch: Int64Array) -> int:
    """Return Ertl's improved raw estimate of the scratch registers, rounded half to even."""
    counts = np.zeros(_REST_BITS + 2, np.int64)
    for k in range(_M):
        counts[scratch[2 * _SLOTS + 1 + k]] += 1
    m = float(_M)
    z = m * _tau(1.0 - float(counts[_REST_BITS + 1]) / m)
    for k in range(_REST_BITS, 0, -1):
        z = 0.5 * (z + float(counts[k]))
    z = z + m * _sigma(float(counts[0]) / m)
    return np.int64(np.rint(0.7213475204444817 * m * m / z))


@nb.njit(cache=True, inline="always")
def _collect(scratch: Int64Array, generation: int, n: int, word: int) -> int:
    """Add a hash to the scratch set, or to the scratch registers (n = REGISTERS); returns n.

    A slot belongs to the set when it carries the generation; past the exact bound the set is
    turned into registers.
    """
    registers = 2 * _SLOTS + 1
    if n != REGISTERS:
        slot = word & (_SLOTS - 1)
        while scratch[_SLOTS + slot] == generation:
            if scratch[slot] == word:
                return n
            slot = (slot + 1) & (_SLOTS - 1)
        if n < DISTINCT_EXACT_BOUND:
            scratch[slot] = word
            scratch[_SLOTS + slot] = generation
            return n + 1
        scratch[registers : registers + _M] = 0
        for k in range(_SLOTS):
            if scratch[_SLOTS + k] == generation:
                at = registers + _register_of(scratch[k])
                scratch[at] = max(scratch[at], _rank_of(scratch[k]))
    at = registers + _register_of(word)
    scratch[at] = max(scratch[at], _rank_of(word))
    return REGISTERS


@nb.njit(cache=True)
def _collect_registers(
    scratch: Int64Array, generation: int, n: int, blocks: Int64Array, block: int
) -> int:
    """Merge a tile's registers into the scratch; returns REGISTERS."""
    registers = 2 * _SLOTS + 1
    if n != REGISTERS:
        scratch[registers : registers + _M] = 0
        for k in range(_SLOTS):
            if scratch[_SLOTS + k] == generation:
                at = registers + _register_of(scratch[k])
                scratch[at] = max(scratch[at], _rank_of(scratch[k]))
    for k in range(_M):
        rank = _read_register(blocks, block, k)
        if rank > scratch[registers + k]:
            scratch[registers + k] = rank
    return REGISTERS


@fold("distinct", identity=(0, 0), owns=OWNS_SET, hashed=True, scratch_words=SET_SCRATCH)
@nb.njit(cache=True)
def fold_distinct(
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
    """Collect hashes; the answer is the (estimated) number of distinct ones."""
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if (
                at >= 0
                and (cells[row, mask_word] >> mask_bit) & 1
                and not _add_hash(tiles, at, base, cells[row, value_cell], blocks, block_meta)
            ):
                return i
            continue
        p = queries[at, Q_HEAD]
        scratch[2 * _SLOTS] += 1
        generation = scratch[2 * _SLOTS]
        n = 0
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                held = tiles[p, base]
                if held == 1:
                    n = _collect(scratch, generation, n, tiles[p, base + 1])
                elif held == REGISTERS:
                    n = _collect_registers(scratch, generation, n, blocks, tiles[p, base + 1])
                else:
                    block = tiles[p, base + 1]
                    for k in range(held):
                        n = _collect(scratch, generation, n, blocks[block + k])
                p -= 1
            out[at * asks + a, 0] = _estimate(scratch) if n == REGISTERS else n
    return step_row.shape[0]
