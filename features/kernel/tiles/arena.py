"""Blocks of words with free lists, for the parts of a tile that have no fixed size.

A block of class ``c`` has ``2**c`` words and no header: its owner knows its class. ``meta[0]`` is
the first word that was never used, ``meta[1 + c]`` the first free block of class ``c`` (the first
word of a free block is the next one), and ``meta[-1]`` the number of words in use. A function that
finds no room returns -1 and changes nothing; the caller grows the arena and tries again.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import inner

CLASSES: Final = 40
NO_BLOCK: Final = -1


def make_meta() -> Int64Array:
    """Return the bookkeeping of an empty arena."""
    meta = np.full(CLASSES + 2, NO_BLOCK, np.int64)
    meta[0] = 0
    meta[-1] = 0
    return meta


@inner
def class_of(words: int) -> int:
    """Return the smallest class whose blocks have at least ``words`` words."""
    c = 0
    while (1 << c) < words:
        c += 1
    return c


@inner
def has_room(arena: Int64Array, meta: Int64Array, words: int) -> bool:
    """Return whether ``words`` words are left that were never used."""
    return meta[0] + words <= arena.shape[0]


@inner
def allocate(arena: Int64Array, meta: Int64Array, c: int) -> int:
    """Take a block of class ``c``; return its first word, or -1 if there is no room."""
    block = meta[1 + c]
    if block != -1:
        meta[1 + c] = arena[block]
    else:
        block = meta[0]
        if block + (1 << c) > arena.shape[0]:
            return -1
        meta[0] = block + (1 << c)
    meta[meta.shape[0] - 1] += 1 << c
    return block


@inner
def release(arena: Int64Array, meta: Int64Array, block: int, c: int) -> None:
    """Release a block of class ``c``."""
    arena[block] = meta[1 + c]
    meta[1 + c] = block
    meta[meta.shape[0] - 1] -= 1 << c


@inner
def clear_words(words: Int64Array, start: int, n: int) -> None:
    """Set ``words[start : start + n]`` to zero.

    This is a loop because numba compiles an assignment to a slice with an error message for
    different shapes, which takes longer than all else here.
    """
    for k in range(start, start + n):
        words[k] = 0


@inner
def copy_words(source: Int64Array, start: int, n: int, target: Int64Array, at: int) -> None:
    """Copy ``source[start : start + n]`` to ``target[at : at + n]``."""
    for k in range(n):
        target[at + k] = source[start + k]
