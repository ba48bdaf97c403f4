"""The folds of exact sums and sums of squares, over floats and integers.

A tile has a compact accumulator (`features.kernel.exact.accumulators`). A sum that does not fit it
moves into a wide block of the arena, so the sum is exact whatever the values.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Final

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.accumulators import (
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
from tidemill.features.kernel.exact.wide_ints import bits_to_float
from tidemill.features.kernel.folds.counts_and_extremes import Float64Array, Int32Array, UInt8Array
from tidemill.features.kernel.registry import OWNS_WIDE_SQUARE, OWNS_WIDE_SUM, fold
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS
from tidemill.features.kernel.tiles.tile_blocks import SPILLED

_FLOAT_SUM: Final = 0
_INT_SUM: Final = 1
_FLOAT_SQUARE: Final = 2
_INT_SQUARE: Final = 3


@inner
def _add_to_tile(
    kind: int,
    tiles: Int64Array,
    at: int,
    base: int,
    value: int,
    blocks: Int64Array,
    block_meta: Int64Array,
) -> bool:
    """Add a value to a tile's accumulator; False, with nothing changed, if there is no room."""
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
        limbs, words = (
            (SUM_LIMBS, WIDE_SUM) if kind < _FLOAT_SQUARE else (SQUARE_LIMBS, WIDE_SQUARE)
        )
        block = arena.allocate(blocks, block_meta, arena.class_of(words))
        if block == arena.NO_BLOCK:
            return False
        arena.clear_words(blocks, block, words)
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


@inner
def _widen(out: Int64Array, o: int, limbs: int, words: int, blocks: Int64Array, block: int) -> None:
    """Move an answer's compact accumulator into a wide block."""
    arena.clear_words(blocks, block, words)
    wide_add_compact(blocks, block, out, o, 0, limbs)
    out[o, 0] = SPILLED
    out[o, 1] = block


@fold("sum_float", identity=(0,) * 3, owns=OWNS_WIDE_SUM, answer_words=3, variant=_FLOAT_SUM)
@fold("sum_int", identity=(0,) * 3, owns=OWNS_WIDE_SUM, answer_words=3, variant=_INT_SUM)
@fold(
    "square_float",
    identity=(0,) * 4,
    owns=OWNS_WIDE_SQUARE,
    answer_words=4,
    variant=_FLOAT_SQUARE,
)
@fold("square_int", identity=(0,) * 4, owns=OWNS_WIDE_SQUARE, answer_words=4, variant=_INT_SQUARE)
@entry
def fold_exact(
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
    """Sum values or their squares exactly; the answer is an accumulator."""
    asks = ask_windows.shape[0]
    limbs, words = (SUM_LIMBS, WIDE_SUM) if variant < _FLOAT_SQUARE else (SQUARE_LIMBS, WIDE_SQUARE)
    block_class = arena.class_of(words)
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if (
                at >= 0
                and (cells[row, mask_word] >> mask_bit) & 1
                and not _add_to_tile(
                    variant, tiles, at, base, cells[row, value_cell], blocks, block_meta
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
                    arena.copy_words(blocks, out[o - 1, 1], words, blocks, block)
                    out[o, 1] = block
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                if (
                    not wide
                    and tiles[p, base] != SPILLED
                    and merge_compact(out, o, 0, tiles, p, base, limbs)
                ):
                    p -= 1
                    continue
                if not wide:
                    # Check before the first wide answer that all of this query's answers fit, so
                    # that returning leaves no block allocated.
                    if not roomy:
                        if not arena.has_room(blocks, block_meta, asks << block_class):
                            return i
                        roomy = True
                    wide = True
                    _widen(
                        out,
                        o,
                        limbs,
                        words,
                        blocks,
                        arena.allocate(blocks, block_meta, block_class),
                    )
                if tiles[p, base] == SPILLED:
                    wide_add_wide(blocks, out[o, 1], blocks, tiles[p, base + 1], words)
                else:
                    wide_add_compact(blocks, out[o, 1], tiles, p, base, limbs)
                p -= 1
    return step_row.shape[0]
