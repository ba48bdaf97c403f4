"""The folds of fixed size: counts, exact sums, extremes.

Every fold is one compiled function over a batch's steps, with the same arguments:

    run(first, step_row, step_at, queries, tiles, base, size, cells, value_cell,
        mask_word, mask_bit, event_time, id_offsets, id_data, blocks, block_meta,
        ask_windows, ask_params, scratch, out) -> next step

* ``first``: the step to begin with. A fold that runs out of arena room returns the step it could
  not do, having changed nothing for it; the caller grows the arena and calls again from there.
* ``step_row[i]``: the event's index, or -1 for a query; ``step_at[i]``: the event's tile row (-1:
  no tile), or the query's index.
* ``tiles[row, base : ...]``: the partial's words in a tile; ``cells[event]``: a row's cells.
* ``out[query * asks + ask]``: receives the answer's words. Asks go by ascending window, so each
  goes on from the one before.

Merging is commutative and associative bit for bit in each of them; the law suite shows it.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any, Final

import numba as nb
import numpy as np
import numpy.typing as npt

from features.contract import Int64Array
from features.kernel import arena
from features.kernel.exact import (
    SQUARE_LIMBS,
    SUM_LIMBS,
    WIDE_SQUARE,
    WIDE_SUM,
    add_float,
    add_int,
    add_int_square,
    add_square,
    merge_compact,
    wide_add_compact,
    wide_add_float,
    wide_add_int,
    wide_add_int_square,
    wide_add_square,
    wide_add_wide,
)
from features.kernel.layout import Q_HEAD, Q_TAILS, SPILLED
from features.kernel.limbs import bits_to_float
from features.kernel.registry import OWNS_WIDE_SQUARE, OWNS_WIDE_SUM, fold

Float64Array = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

GREATEST: Final = 2**63 - 1
LEAST: Final = -(2**63)

_FLOAT_SUM: Final = 0
_INT_SUM: Final = 1
_FLOAT_SQUARE: Final = 2
_INT_SQUARE: Final = 3


@nb.njit(cache=True, inline="always")
def ordered_bits(word: int) -> int:
    """Map a float's bits to an int64 of the same order, and back (it is its own inverse)."""
    return word ^ ((word >> 63) & GREATEST)


@fold("count", identity=(0,))
@nb.njit(cache=True)
def fold_count(
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
    """Count the rows; the answer is the count."""
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at >= 0 and (cells[row, mask_word] >> mask_bit) & 1:
                tiles[at, base] += 1
            continue
        p = queries[at, Q_HEAD]
        total = 0
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                total += tiles[p, base]
                p -= 1
            out[at * asks + a, 0] = total
    return step_row.shape[0]


@nb.njit(cache=True)
def _fold_extreme(
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
    ask_windows: Int64Array,
    out: Int64Array,
    greatest: bool,
    is_float: bool,
) -> int:
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at >= 0 and (cells[row, mask_word] >> mask_bit) & 1:
                value = cells[row, value_cell]
                if is_float:
                    value = ordered_bits(value)
                if (value > tiles[at, base]) == greatest:
                    tiles[at, base] = value
            continue
        p = queries[at, Q_HEAD]
        best = LEAST if greatest else GREATEST
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                value = tiles[p, base]
                if (value > best) == greatest:
                    best = value
                p -= 1
            out[at * asks + a, 0] = ordered_bits(best) if is_float else best
    return step_row.shape[0]


@fold("min_int", identity=(GREATEST,))
@nb.njit(cache=True)
def fold_min_int(
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
    """Keep the least integer; the answer is its bits (the identity when empty)."""
    return _fold_extreme(
        first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word, mask_bit,
        ask_windows, out, False, False,
    )


@fold("min_float", identity=(GREATEST,))
@nb.njit(cache=True)
def fold_min_float(
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
    """Keep the least float; the answer is its bits (the identity when empty)."""
    return _fold_extreme(
        first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word, mask_bit,
        ask_windows, out, False, True,
    )


@fold("max_int", identity=(LEAST,))
@nb.njit(cache=True)
def fold_max_int(
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
    """Keep the greatest integer; the answer is its bits (the identity when empty)."""
    return _fold_extreme(
        first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word, mask_bit,
        ask_windows, out, True, False,
    )


@fold("max_float", identity=(LEAST,))
@nb.njit(cache=True)
def fold_max_float(
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
    """Keep the greatest float; the answer is its bits (the identity when empty)."""
    return _fold_extreme(
        first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word, mask_bit,
        ask_windows, out, True, True,
    )


@nb.njit(cache=True)
def _add_to_tile(
    kind: int, tiles: Int64Array, at: int, base: int, value: int,
    blocks: Int64Array, block_meta: Int64Array,
) -> bool:
    """Add a value to a tile's accumulator; False, with nothing changed, for want of room."""
    if tiles[at, base] != SPILLED:
        if kind == _FLOAT_SUM:
            fits = add_float(tiles, at, base, bits_to_float(value))
        elif kind == _INT_SUM:
            fits = add_int(tiles, at, base, value)
        elif kind == _FLOAT_SQUARE:
            fits = add_square(tiles, at, base, bits_to_float(value))
        else:
            fits = add_int_square(tiles, at, base, value)
        if fits:
            return True
        limbs, words = (SUM_LIMBS, WIDE_SUM) if kind < 2 else (SQUARE_LIMBS, WIDE_SQUARE)
        block = arena.allocate(blocks, block_meta, arena.class_of(words))
        if block == arena.NO_BLOCK:
            return False
        blocks[block : block + words] = 0
        wide_add_compact(blocks, block, tiles, at, base, limbs)
        for k in range(1 + limbs):
            tiles[at, base + k] = 0
        tiles[at, base] = SPILLED
        tiles[at, base + 1] = block
    block = tiles[at, base + 1]
    if kind == _FLOAT_SUM:
        wide_add_float(blocks, block, bits_to_float(value))
    elif kind == _INT_SUM:
        wide_add_int(blocks, block, value)
    elif kind == _FLOAT_SQUARE:
        wide_add_square(blocks, block, bits_to_float(value))
    else:
        wide_add_int_square(blocks, block, value)
    return True


@nb.njit(cache=True)
def _widen(out: Int64Array, o: int, limbs: int, words: int, blocks: Int64Array, block: int) -> None:
    """Move an answer's compact accumulator into a wide block."""
    blocks[block : block + words] = 0
    wide_add_compact(blocks, block, out, o, 0, limbs)
    out[o, 0] = SPILLED
    out[o, 1] = block


@nb.njit(cache=True)
def _fold_exact(
    kind: int,
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
    out: Int64Array,
) -> int:
    asks = ask_windows.shape[0]
    limbs, words = (SUM_LIMBS, WIDE_SUM) if kind < 2 else (SQUARE_LIMBS, WIDE_SQUARE)
    block_class = arena.class_of(words)
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if (
                at >= 0
                and (cells[row, mask_word] >> mask_bit) & 1
                and not _add_to_tile(
                    kind, tiles, at, base, cells[row, value_cell], blocks, block_meta
                )
            ):
                return i
            continue
        p = queries[at, Q_HEAD]
        roomy = False
        for a in range(asks):
            o = at * asks + a
            wide = False
            if a == 0:
                for k in range(1 + limbs):
                    out[o, k] = 0
            else:
                for k in range(1 + limbs):
                    out[o, k] = out[o - 1, k]
                if out[o, 0] == SPILLED:
                    wide = True
                    block = arena.allocate(blocks, block_meta, block_class)
                    before = out[o - 1, 1]
                    blocks[block : block + words] = blocks[before : before + words]
                    out[o, 1] = block
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                if not wide and tiles[p, base] != SPILLED:
                    if merge_compact(out, o, 0, tiles, p, base, limbs):
                        p -= 1
                        continue
                if not wide:
                    # Before the first wide answer, make sure that all of this query's fit, so
                    # that giving up leaves nothing behind.
                    if not roomy:
                        if not arena.has_room(blocks, block_meta, asks << block_class):
                            return i
                        roomy = True
                    wide = True
                    _widen(out, o, limbs, words, blocks,
                           arena.allocate(blocks, block_meta, block_class))
                if tiles[p, base] == SPILLED:
                    wide_add_wide(blocks, out[o, 1], blocks, tiles[p, base + 1], words)
                else:
                    wide_add_compact(blocks, out[o, 1], tiles, p, base, limbs)
                p -= 1
    return step_row.shape[0]


@fold("sum_float", identity=(0, 0, 0), owns=OWNS_WIDE_SUM, answer_words=3)
@nb.njit(cache=True)
def fold_sum_float(
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
    """Sum floats exactly; the answer is an accumulator (`features.kernel.exact`)."""
    return _fold_exact(
        _FLOAT_SUM, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, out,
    )


@fold("sum_int", identity=(0, 0, 0), owns=OWNS_WIDE_SUM, answer_words=3)
@nb.njit(cache=True)
def fold_sum_int(
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
    """Sum integers exactly; the answer is an accumulator (`features.kernel.exact`)."""
    return _fold_exact(
        _INT_SUM, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, out,
    )


@fold("square_float", identity=(0, 0, 0, 0), owns=OWNS_WIDE_SQUARE, answer_words=4)
@nb.njit(cache=True)
def fold_square_float(
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
    """Sum the squares of floats exactly; the answer is an accumulator (`features.kernel.exact`)."""
    return _fold_exact(
        _FLOAT_SQUARE, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, out,
    )


@fold("square_int", identity=(0, 0, 0, 0), owns=OWNS_WIDE_SQUARE, answer_words=4)
@nb.njit(cache=True)
def fold_square_int(
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
    """Sum the squares of integers exactly; the answer is an accumulator (`features.kernel.exact`)."""
    return _fold_exact(
        _INT_SQUARE, first, step_row, step_at, queries, tiles, base, cells, value_cell, mask_word,
        mask_bit, blocks, block_meta, ask_windows, out,
    )
