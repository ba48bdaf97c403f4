"""Sorted sets of words of a tile: one word is in the tile itself, more are in an arena block.

The tile has two words (n, ref): ``ref`` is the only word if n is 1, else a block of the class of n.
"""

# numba is Any to mypy, and so is what a compiled function returns to another.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.tiles import arena


@inner(forceinline=True)
def search(blocks: Int64Array, block: int, n: int, word: int) -> int:
    """Return the first place in a sorted block with a word of at least ``word``."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if blocks[block + middle] < word:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def insert(
    tiles: Int64Array,
    at: int,
    base: int,
    place: int,
    word: int,
    blocks: Int64Array,
    block_meta: Int64Array,
) -> bool:
    """Insert a word into a tile's sorted words; False, with nothing changed, without room."""
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
                arena.copy_words(blocks, block, n, blocks, fresh)
                arena.release(blocks, block_meta, block, old_class)
            block = fresh
            tiles[at, base + 1] = block
        for k in range(n, place, -1):
            blocks[block + k] = blocks[block + k - 1]
        blocks[block + place] = word
    tiles[at, base] = n + 1
    return True
