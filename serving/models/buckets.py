"""The rows of calls: a few powers of two, so that TensorFlow meets few shapes.

TensorFlow's bytes depend on the shape of a batch (a plain Keras model's scores for a batch of 1 and
one of 1,024 differ in the last bits of most rows). With few shapes, few stamps differ, and each can
be called once before the first rows wait.
"""

from __future__ import annotations

from typing import Final

MIN_ROWS: Final = 8
"""Least padded rows: below, TensorFlow's kernels take other paths, and last bits differ."""
MAX_ROWS: Final = 4096
"""Most rows of a call."""
BUCKETS: Final = tuple(MIN_ROWS << n for n in range((MAX_ROWS // MIN_ROWS).bit_length()))
"""The rows of calls: powers of two, from `MIN_ROWS` to `MAX_ROWS`."""


def padded_rows(rows: int) -> int:
    """Return the padded rows of a call with up to `MAX_ROWS` rows: a power of two.

    >>> [padded_rows(rows) for rows in (1, 8, 9, 1000)]
    [8, 8, 16, 1024]
    """
    return max(MIN_ROWS, 1 << (rows - 1).bit_length())
