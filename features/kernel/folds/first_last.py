"""The folds that pick rows by (event time, id): first, last, last-k.

Rows at equal times are ordered by their ids as UTF-8 bytes, and rows of equal time and id
(different events, whose values differ) by the bits of their values as unsigned integers. An id is
in an arena block: its length in bytes, then the bytes, eight in a word, padded with zeros.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.folds.counts_and_extremes import (
    GREATEST,
    LEAST,
    Float64Array,
    Int32Array,
    UInt8Array,
)
from tidemill.features.kernel.registry import OWNS_ID, OWNS_LAST_K, fold
from tidemill.features.kernel.tiles import arena
from tidemill.features.kernel.tiles.layout import Q_HEAD, Q_TAILS
from tidemill.features.kernel.tiles.tile_blocks import id_class, release_id

_NO_ID: Final = -1
_PICK_WORDS: Final = 3

# The variants of `fold_first_or_last`.
_FIRST: Final = 0
_LAST: Final = 1


@inner
def _byte(blocks: Int64Array, block: int, k: int) -> int:
    return (blocks[block + 1 + (k >> 3)] >> ((k & 7) << 3)) & 0xFF


@inner
def _compare_row(
    blocks: Int64Array,
    time: int,
    block: int,
    value: int,
    row_time: int,
    data: UInt8Array,
    start: int,
    length: int,
    row_value: int,
) -> int:
    """Compare a row with a pick: negative if the row comes first, 0 if they are the same."""
    if row_time != time:
        return -1 if row_time < time else 1
    other = blocks[block]
    for k in range(min(length, other)):
        difference = np.int64(data[start + k]) - _byte(blocks, block, k)
        if difference:
            return difference
    if length != other:
        return -1 if length < other else 1
    if row_value == value:
        return 0
    # As unsigned integers.
    return -1 if (row_value ^ LEAST) < (value ^ LEAST) else 1


@inner
def _write_id(blocks: Int64Array, block: int, data: UInt8Array, start: int, length: int) -> None:
    blocks[block] = length
    for w in range((length + 7) >> 3):
        word = np.int64(0)
        for k in range(min(8, length - 8 * w)):
            word |= np.int64(data[start + 8 * w + k]) << (8 * k)
        blocks[block + 1 + w] = word


@inner
def _replace_id(
    blocks: Int64Array,
    block_meta: Int64Array,
    block: int,
    data: UInt8Array,
    start: int,
    length: int,
) -> int:
    """Replace an id (or none) by another; return its block, or -1 if there is no room."""
    wanted = id_class(length)
    if block == _NO_ID or id_class(blocks[block]) != wanted:
        fresh = arena.allocate(blocks, block_meta, wanted)
        if fresh == arena.NO_BLOCK:
            return arena.NO_BLOCK
        release_id(blocks, block_meta, block)
        block = fresh
    _write_id(blocks, block, data, start, length)
    return block


@fold("first", identity=(GREATEST, _NO_ID, 0), owns=OWNS_ID, answer_words=2, variant=_FIRST)
@fold("last", identity=(LEAST, _NO_ID, 0), owns=OWNS_ID, answer_words=2, variant=_LAST)
@entry
def fold_first_or_last(
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
    """Keep the first or the last row; the answer is (value bits, presence)."""
    latest = variant == _LAST
    asks = ask_windows.shape[0]
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at < 0 or not (cells[row, mask_word] >> mask_bit) & 1:
                continue
            time, value = event_time[row], cells[row, value_cell]
            start, length = id_offsets[row], id_offsets[row + 1] - id_offsets[row]
            block = tiles[at, base + 1]
            if block != _NO_ID:
                order = _compare_row(
                    blocks,
                    tiles[at, base],
                    block,
                    tiles[at, base + 2],
                    time,
                    id_data,
                    start,
                    length,
                    value,
                )
                if (order <= 0) if latest else (order >= 0):
                    continue
            block = _replace_id(blocks, block_meta, block, id_data, start, length)
            if block == arena.NO_BLOCK:
                return i
            tiles[at, base] = time
            tiles[at, base + 1] = block
            tiles[at, base + 2] = value
            continue
        # Tiles are in order of time: take the pick of the newest (oldest) tile that has one.
        p = queries[at, Q_HEAD]
        found = -1
        for a in range(asks):
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail and (found < 0 or not latest):
                if tiles[p, base + 1] != _NO_ID:
                    found = p
                p -= 1
            o = at * asks + a
            out[o, 0] = tiles[found, base + 2] if found >= 0 else 0
            out[o, 1] = 1 if found >= 0 else 0
    return step_row.shape[0]


@fold("last_k", identity=(0, 0), owns=OWNS_LAST_K, answer_words=0)
@entry
def fold_last_k(
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
    """Keep the last ``size`` rows, ascending; the answer is their values, the newest first.

    A tile's words are (number of picks, block); the block has (time, id, value) for each pick. The
    answer has ``size`` values and then ``size`` presences.
    """
    asks = ask_windows.shape[0]
    block_class = arena.class_of(_PICK_WORDS * size)
    for i in range(first, step_row.shape[0]):
        row = step_row[i]
        at = step_at[i]
        if row >= 0:
            if at < 0 or not (cells[row, mask_word] >> mask_bit) & 1:
                continue
            time, value = event_time[row], cells[row, value_cell]
            start, length = id_offsets[row], id_offsets[row + 1] - id_offsets[row]
            n = tiles[at, base]
            block = tiles[at, base + 1]
            place = n
            while place > 0:
                pick = block + _PICK_WORDS * (place - 1)
                order = _compare_row(
                    blocks,
                    blocks[pick],
                    blocks[pick + 1],
                    blocks[pick + 2],
                    time,
                    id_data,
                    start,
                    length,
                    value,
                )
                if order > 0:
                    break
                place -= 1
            if n == size and place == 0:
                continue
            wanted = id_class(length)
            fresh = arena.allocate(blocks, block_meta, wanted)
            if fresh == arena.NO_BLOCK:
                return i
            if n == 0:
                block = arena.allocate(blocks, block_meta, block_class)
                if block == arena.NO_BLOCK:
                    arena.release(blocks, block_meta, fresh, wanted)
                    return i
                tiles[at, base + 1] = block
            _write_id(blocks, fresh, id_data, start, length)
            if n == size:
                # Drop the oldest pick.
                release_id(blocks, block_meta, blocks[block + 1])
                place -= 1
                for k in range(_PICK_WORDS * place):
                    blocks[block + k] = blocks[block + k + _PICK_WORDS]
            else:
                for k in range(_PICK_WORDS * n - 1, _PICK_WORDS * place - 1, -1):
                    blocks[block + k + _PICK_WORDS] = blocks[block + k]
                tiles[at, base] = n + 1
            pick = block + _PICK_WORDS * place
            blocks[pick] = time
            blocks[pick + 1] = fresh
            blocks[pick + 2] = value
            continue
        p = queries[at, Q_HEAD]
        filled = 0
        for a in range(asks):
            o = at * asks + a
            for k in range(2 * size):
                out[o, k] = 0 if a == 0 else out[o - 1, k]
            tail = queries[at, Q_TAILS + ask_windows[a]]
            while p >= tail:
                n = tiles[p, base]
                if n:
                    block = tiles[p, base + 1]
                    while n > 0 and filled < size:
                        n -= 1
                        out[o, filled] = blocks[block + _PICK_WORDS * n + 2]
                        out[o, size + filled] = 1
                        filled += 1
                p -= 1
    return step_row.shape[0]
