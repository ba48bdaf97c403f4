"""Searching in many sorted ranges of one array at once."""

from __future__ import annotations

import numpy as np

from tidemill.features.contract import Int64Array


def first_at_or_after(
    values: Int64Array, wanted: Int64Array, starts: Int64Array, stops: Int64Array
) -> Int64Array:
    """Return, for each range, the place of the first value that is at least the wanted one.

    Args:
        values: int64, ``(values,)``: ascending within each range.
        wanted: int64, ``(ranges,)``.
        starts: int64, ``(ranges,)``: where each range starts.
        stops: int64, ``(ranges,)``: where it stops.

    Returns:
        int64, ``(ranges,)``: a place in ``values``; the range's stop if there is none.
    """
    low, high = starts.copy(), stops.copy()
    rows = np.flatnonzero(low < high)
    while len(rows):
        middle = (low[rows] + high[rows]) // 2
        reached = values[middle] >= wanted[rows]
        high[rows[reached]] = middle[reached]
        low[rows[~reached]] = middle[~reached] + 1
        rows = rows[low[rows] < high[rows]]
    return low
