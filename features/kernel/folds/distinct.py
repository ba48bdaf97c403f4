"""The fold of distinct counts: the exact set of hashes, then HyperLogLog.

The count is exact up to `DISTINCT_EXACT_BOUND` hashes. Beyond that it uses the registers of
Flajolet et al. (2007) with Ertl's improved raw estimator ("New cardinality estimation algorithms
for HyperLogLog sketches", 2017, algorithm 6). Sets and registers only grow, so the order of rows
does not matter.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import DISTINCT_EXACT_BOUND, DISTINCT_REGISTER_BITS
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.wide_ints import leading_zeros
from tidemill.features.kernel.folds.counts_and_extremes import Float64Array, Int32Array, UInt8Array
from tidemill.features.kernel.registry import OWNS_SET, fold
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS
from tidemill.features.kernel.tiles.sorted_words import insert, search
from tidemill.features.kernel.tiles.tile_blocks import REGISTER_CLASS, REGISTERS

_M: Final = 1 << DISTINCT_REGISTER_BITS
_REST_BITS: Final = 64 - DISTINCT_REGISTER_BITS
_SLOTS: Final = 4 * DISTINCT_EXACT_BOUND
SET_SCRATCH: Final = 2 * _SLOTS + 1 + _M


@inner
def _register_of(word: int) -> int:
    return np.int64(np.uint64(word) >> np.uint64(_REST_BITS))  # type: ignore[return-value]


@inner
def _rank_of(word: int) -> int:
    """Return the leading zeros of the bits below the register's number, plus one."""
    rest = word & ((1 << _REST_BITS) - 1)
    return _REST_BITS + 1 if rest == 0 else leading_zeros(rest) - (64 - _REST_BITS) + 1


@inner
def _read_register(blocks: Int64Array, block: int, k: int) -> int:
    return (blocks[block + (k >> 3)] >> ((k & 7) << 3)) & 0xFF


@inner
def _raise_register(blocks: Int64Array, block: int, word: int) -> None:
    k, rank = _register_of(word), _rank_of(word)
    if rank > _read_register(blocks, block, k):
        shift = (k & 7) << 3
        at = block + (k >> 3)
        blocks[at] = (blocks[at] & ~(np.int64(0xFF) << shift)) | (np.int64(rank) << shift)


@inner
def _add_hash(
    tiles: Int64Array,
    at: int,
    base: int,
    word: int,
    blocks: Int64Array,
    block_meta: Int64Array,
) -> bool:
    """Add a hash to a tile's set; False, with nothing changed, if there is no room."""
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
        place = search(blocks, block, n, word)
        if place < n and blocks[block + place] == word:
            return True
    if n < DISTINCT_EXACT_BOUND:
        return insert(tiles, at, base, place, word, blocks, block_meta)
    block = arena.allocate(blocks, block_meta, REGISTER_CLASS)
    if block == arena.NO_BLOCK:
        return False
    arena.clear_words(blocks, block, 1 << REGISTER_CLASS)
    old = tiles[at, base + 1]
    for k in range(n):
        _raise_register(blocks, block, blocks[old + k])
    _raise_register(blocks, block, word)
    arena.release(blocks, block_meta, old, arena.class_of(n))
    tiles[at, base] = REGISTERS
    tiles[at, base + 1] = block
    return True


@inner
def _sigma(x: float) -> float:
    y, z = 1.0, x
    while True:
        x = x * x
        before = z
        z = z + x * y
        y = y + y
        if z == before:
            return z


@inner
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


@inner
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
    return np.int64(np.rint(0.7213475204444817 * m * m / z))  # type: ignore[return-value]


@inner(forceinline=True)
def _collect(scratch: Int64Array, generation: int, n: int, word: int) -> int:
    """Add a hash to the scratch set, or to the scratch registers (n = REGISTERS); return n.

    A slot belongs to the set if it has the current generation. Beyond the exact bound the set
    becomes registers.
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
        arena.clear_words(scratch, registers, _M)
        for k in range(_SLOTS):
            if scratch[_SLOTS + k] == generation:
                at = registers + _register_of(scratch[k])
                scratch[at] = max(scratch[at], _rank_of(scratch[k]))
    at = registers + _register_of(word)
    scratch[at] = max(scratch[at], _rank_of(word))
    return REGISTERS


@inner
def _collect_registers(
    scratch: Int64Array, generation: int, n: int, blocks: Int64Array, block: int
) -> int:
    """Merge a tile's registers into the scratch; return REGISTERS."""
    registers = 2 * _SLOTS + 1
    if n != REGISTERS:
        arena.clear_words(scratch, registers, _M)
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
@entry
def fold_distinct(
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
    """Collect hashes; the answer is the (estimated) number of distinct hashes."""
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
