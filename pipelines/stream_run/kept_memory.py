"""Memory that a stream's process keeps, instead of giving it back with every bundle."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pyarrow as pa

KEPT_BYTES: Final = 256 << 20
"""So many free bytes at the end of the heap are kept."""
_BLOCK_BYTES: Final = 32 << 20
"""The largest block that is taken from the heap: the most that glibc allows."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let this process keep memory that is free while the block runs.

    The batches of a bundle take some megabytes each, and are free again when it ends. An allocator
    gives blocks of this size back to the system, which clears each page before it gives it out
    again: up to a quarter of the time of a stream that takes a full topic. So Arrow takes memory
    from the same heap as Python and numpy, and that heap keeps what is free, up to `KEPT_BYTES`.

    Where the C library has no such settings, only Arrow's part is done. The heap's settings outlast
    the block.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _BLOCK_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)
