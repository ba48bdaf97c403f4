"""The folds of one word: counts and extremes; and what every fold has in common.

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

from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.registry import fold
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS

Float64Array = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

GREATEST: Final = 2**63 - 1
LEAST: Final = -(2**63)


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
        first,
        step_row,
        step_at,
        queries,
        tiles,
        base,
        cells,
        value_cell,
        mask_word,
        mask_bit,
        ask_windows,
        out,
        False,
        False,
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
        first,
        step_row,
        step_at,
        queries,
        tiles,
        base,
        cells,
        value_cell,
        mask_word,
        mask_bit,
        ask_windows,
        out,
        False,
        True,
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
        first,
        step_row,
        step_at,
        queries,
        tiles,
        base,
        cells,
        value_cell,
        mask_word,
        mask_bit,
        ask_windows,
        out,
        True,
        False,
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
        first,
        step_row,
        step_at,
        queries,
        tiles,
        base,
        cells,
        value_cell,
        mask_word,
        mask_bit,
        ask_windows,
        out,
        True,
        True,
    )
