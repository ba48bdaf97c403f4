"""The folds whose partial is one word (counts and extremes), and the arguments of every fold.

Every fold is one compiled function over a batch's steps:

    run(variant, first, step_row, step_at, queries, tiles, base, size, cells, value_cell,
        mask_word, mask_bit, event_time, id_offsets, id_data, blocks, block_meta,
        ask_windows, ask_params, scratch, out) -> next step

* ``variant``: the number that the fold was registered with. One function serves several folds
  that differ little, such as least and greatest.
* ``first``: the step to begin with. A fold that finds no room in the arena returns the step that it
  could not do, with nothing changed for it; the caller grows the arena and calls again from there.
* ``step_row[i]``: the index of an event, or -1 for a query; ``step_at[i]``: the row of the event's
  tile (-1: no tile), or the index of the query.
* ``tiles[row, base : ...]``: the partial's words in a tile; ``cells[event]``: the cells of a row.
* ``out[query * asks + ask]``: receives the answer's words. Asks are in order of ascending windows,
  so each continues from the one before.

Merging is commutative and associative bit for bit; `tests/laws` tests that.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import entry
from tidemill.features.kernel.registry import fold
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS

Float64Array = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

GREATEST: Final = 2**63 - 1
LEAST: Final = -(2**63)

# The bits of the variants of `fold_extreme`.
_OF_FLOATS: Final = 1
_GREATEST: Final = 2


@fold("count", identity=(0,))
@entry
def fold_count(
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


@fold("min_int", identity=(GREATEST,), variant=0)
@fold("min_float", identity=(GREATEST,), variant=_OF_FLOATS)
@fold("max_int", identity=(LEAST,), variant=_GREATEST)
@fold("max_float", identity=(LEAST,), variant=_GREATEST | _OF_FLOATS)
@entry
def fold_extreme(
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
    """Keep the least or the greatest value; the answer is its bits (the identity if empty).

    A float is kept as an integer of the same order: its bits, with those below the sign flipped if
    it is negative. Doing this twice gives the float's bits again.
    """
    # Flipping all bits of an integer reverses the order: the greatest becomes the least. Both
    # mappings are masks, because a branch in the loop takes a third longer.
    flip = -1 if variant & _GREATEST else 0
    bend = GREATEST if variant & _OF_FLOATS else 0
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at >= 0 and (cells[row, mask_word] >> mask_bit) & 1:
                value = cells[row, value_cell]
                value ^= (value >> 63) & bend
                if (value ^ flip) < (tiles[at, base] ^ flip):
                    tiles[at, base] = value
            continue
        p = queries[at, Q_HEAD]
        least = GREATEST
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                least = min(least, tiles[p, base] ^ flip)
                p -= 1
            best = least ^ flip
            out[at * asks + a, 0] = best ^ ((best >> 63) & bend)
    return step_row.shape[0]
