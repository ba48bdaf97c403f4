"""The arena blocks of tiles: wide sums, ids, last-k rows, sketches, sets.

A tile's words refer to the blocks. These functions know the class of each block, and release all
blocks of a tile.
"""

from __future__ import annotations

from typing import Final

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.exact.accumulators import WIDE_SQUARE, WIDE_SUM
from tidemill.features.kernel.registry import (
    OWNS_ID,
    OWNS_LAST_K,
    OWNS_SET,
    OWNS_SKETCH,
    OWNS_WIDE_SQUARE,
    OWNS_WIDE_SUM,
)
from tidemill.features.kernel.tiles import arena

SPILLED: Final = -(2**63)
"""First word of an accumulator that has moved to a wide block of the arena."""
REGISTERS: Final = -1
"""Count of a distinct set that has become HyperLogLog registers."""
REGISTER_CLASS: Final = 8


@inner
def id_class(length: int) -> int:
    """Return the class of a block that holds an id of ``length`` bytes and its length."""
    return arena.class_of(1 + ((length + 7) >> 3))


@inner
def release_id(blocks: Int64Array, block_meta: Int64Array, block: int) -> None:
    """Release the block of an id; -1 is no block."""
    if block >= 0:
        arena.release(blocks, block_meta, block, id_class(blocks[block]))


@inner
def release_tile(
    tiles: Int64Array,
    row: int,
    blocks: Int64Array,
    block_meta: Int64Array,
    references: Int64Array,
) -> None:
    """Release the arena blocks of a tile."""
    for k in range(references.shape[0]):
        kind, base, size = references[k, 0], references[k, 1], references[k, 2]
        if kind == OWNS_WIDE_SUM or kind == OWNS_WIDE_SQUARE:
            if tiles[row, base] == SPILLED:
                words = WIDE_SUM if kind == OWNS_WIDE_SUM else WIDE_SQUARE
                arena.release(blocks, block_meta, tiles[row, base + 1], arena.class_of(words))
        elif kind == OWNS_ID:
            release_id(blocks, block_meta, tiles[row, base + 1])
        elif kind == OWNS_LAST_K:
            if tiles[row, base] > 0:
                block = tiles[row, base + 1]
                for pick in range(tiles[row, base]):
                    release_id(blocks, block_meta, blocks[block + 3 * pick + 1])
                arena.release(blocks, block_meta, block, arena.class_of(3 * size))
        elif kind == OWNS_SKETCH or kind == OWNS_SET:
            n = tiles[row, base]
            if n == REGISTERS:
                arena.release(blocks, block_meta, tiles[row, base + 1], REGISTER_CLASS)
            elif n > 1:
                arena.release(blocks, block_meta, tiles[row, base + 1], arena.class_of(n))
