"""Blocks of words with free lists: where tiles keep what does not fit a fixed number of words.

A block of class ``c`` has ``2**c`` words. Blocks carry no header: whoever owns one knows its
class. ``meta[0]`` is the first word never used, ``meta[1 + c]`` the first free block of class
``c`` (a free block's first word names the next one), and ``meta[-1]`` the words in use. A function
that finds no room returns -1 and changes nothing; the caller grows the arena and goes on.
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
    """Tell whether ``words`` words that were never used are left."""
    return meta[0] + words <= arena.shape[0]


@inner
def allocate(arena: Int64Array, meta: Int64Array, c: int) -> int:
    """Take a block of class ``c``; returns its first word, or -1 when there is no room."""
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
    """Give a block of class ``c`` back."""
    arena[block] = meta[1 + c]
    meta[1 + c] = block
    meta[meta.shape[0] - 1] -= 1 << c


@inner
def clear_words(words: Int64Array, start: int, n: int) -> None:
    """Set ``words[start : start + n]`` to zero.

    A loop, because an assignment to a slice compiles numba's message for shapes that differ.
    """
    for k in range(start, start + n):
        words[k] = 0


@inner
def copy_words(source: Int64Array, start: int, n: int, target: Int64Array, at: int) -> None:
    """Copy ``source[start : start + n]`` to ``target[at : at + n]``."""
    for k in range(n):
        target[at + k] = source[start + k]
