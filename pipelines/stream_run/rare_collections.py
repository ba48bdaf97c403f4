"""Fewer searches for garbage in a stream's process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG: Final = 50_000
"""So many new objects are there when they are searched for garbage."""

_lock: Final = threading.Lock()
_before: Final[list[tuple[int, int, int]]] = []


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python search for cyclic garbage less often, and not among what is there already.

    Python looks for garbage whenever 700 more objects were made than freed, and now and then among
    all objects. Decoding a message of a thousand rows makes thousands, none of which is garbage;
    and a stream's process has half a million objects of libraries, which stay. Searching them took
    a third of the time of decoding JSON, and delays whatever bundle it falls into.

    The settings of before come back after the last of the blocks that run at the same time.
    """
    with _lock:
        _before.append(gc.get_threshold())
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, *_before[-1][1:])
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                gc.set_threshold(*before)
                gc.unfreeze()
