"""Duplicates: equal rows count once.

Rows are told apart by their 128-bit digests (`hashing.digest_rows`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.contract import Int64Array


def first_occurrences(digests: npt.NDArray[np.uint64]) -> Int64Array:
    """Return the rows that are the first of their digest, in their order.

    Args:
        digests: uint64, ``(rows, 2)``.

    Returns:
        int64, ``(distinct rows,)``: ascending row indices.
    """
    pairs = np.ascontiguousarray(digests).view([("a", np.uint64), ("b", np.uint64)]).ravel()
    _, first = np.unique(pairs, return_index=True)
    return np.sort(first)
