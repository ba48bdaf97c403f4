"""Duplicates: of rows with equal 128-bit digests (`hashing.digest_rows`) only the first counts."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.kernel.compiled import entry, inner, read_only

UInt64Array = npt.NDArray[np.uint64]

FORGET_FROM: Final = 4_096
"""A set with fewer pairs forgets none."""

_FREE: Final = TIME_MIN - 1


def first_occurrences(digests: UInt64Array) -> Int64Array:
    """Return the first row of each distinct digest.

    Args:
        digests: uint64, ``(rows, 2)``.

    Returns:
        int64, ``(distinct rows,)``: ascending row indices.
    """
    slots = 64
    while slots < 2 * len(digests):
        slots *= 2
    rows = np.empty(len(digests), np.int64)
    found = _first_rows(_rows_of(digests), np.full(slots, -1, np.int64), rows)
    return rows[:found]


def _rows_of(digests: UInt64Array) -> UInt64Array:
    return read_only(np.ascontiguousarray(digests))


@entry
def _first_rows(digests: UInt64Array, table: Int64Array, rows: Int64Array) -> int:
    mask = table.shape[0] - 1
    found = 0
    for i in range(digests.shape[0]):
        slot = np.int64(digests[i, 0]) & mask
        first = table[slot]
        while first >= 0:
            if digests[first, 0] == digests[i, 0] and digests[first, 1] == digests[i, 1]:
                break
            slot = (slot + 1) & mask
            first = table[slot]
        if first < 0:
            table[slot] = i
            rows[found] = i
            found += 1
    return found


@inner
def _insert(table: UInt64Array, times: Int64Array, a: int, b: int, time: int) -> bool:
    """Insert a pair; False if the table has it already."""
    mask = np.uint64(table.shape[0] - 1)
    slot = a & mask
    while times[slot] != _FREE:
        if table[slot, 0] == a and table[slot, 1] == b:
            return False
        slot = (slot + np.uint64(1)) & mask
    table[slot, 0] = a
    table[slot, 1] = b
    times[slot] = time
    return True


@entry
def _insert_all(
    table: UInt64Array, times: Int64Array, pairs: UInt64Array, row_times: Int64Array, new: BoolArray
) -> int:
    inserted = 0
    for i in range(pairs.shape[0]):
        new[i] = _insert(table, times, pairs[i, 0], pairs[i, 1], row_times[i])
        inserted += new[i]
    return inserted


class PairSet:
    """A set of digests (pairs of uint64), each with its time, that can forget old ones."""

    def __init__(self) -> None:
        self._table = np.zeros((256, 2), np.uint64)
        self._times = np.full(256, _FREE, np.int64)
        self._count = 0
        self.forget_at = FORGET_FROM
        """With so many pairs the set forgets old ones, when it is told to."""

    def __len__(self) -> int:
        return self._count

    def add(self, pairs: UInt64Array, times_us: Int64Array) -> BoolArray:
        """Add pairs; returns which of them are new (of equal ones, the first)."""
        needed = 2 * (self._count + len(pairs))
        if needed > len(self._times):
            self._rebuild(*self.entries(), size=needed)
        new = np.zeros(len(pairs), np.bool_)
        self._count += _insert_all(
            self._table, self._times, _rows_of(pairs), read_only(times_us), new
        )
        return new

    def forget_before(self, time_us: int) -> int:
        """Forget pairs older than ``time_us``, unless the set is too small to be worth it.

        Returns:
            How many pairs were forgotten.
        """
        if self._count < self.forget_at:
            return 0
        forgotten = self.drop_before(time_us)
        self.forget_at = max(FORGET_FROM, 2 * self._count)
        return forgotten

    def drop_before(self, time_us: int) -> int:
        """Forget pairs older than ``time_us``; return how many."""
        before = self._count
        # A free slot is older than any instant.
        young = np.flatnonzero(self._times >= max(time_us, TIME_MIN))
        self._rebuild(self._table[young], self._times[young], size=2 * len(young))
        return before - self._count

    def entries(self) -> tuple[UInt64Array, Int64Array]:
        """Return the pairs, ``(n, 2)``, and their times, ``(n,)``."""
        used = self._times != _FREE
        return self._table[used], self._times[used]

    def _rebuild(self, pairs: UInt64Array, times: Int64Array, size: int) -> None:
        slots = 256
        while slots < 2 * size:
            slots *= 2
        if slots == len(self._times):
            self._times.fill(_FREE)  # the memory that is there costs less than new one
        else:
            self._table = np.empty((slots, 2), np.uint64)
            self._times = np.full(slots, _FREE, np.int64)
        self._count = _insert_all(
            self._table,
            self._times,
            read_only(pairs),
            read_only(times),
            np.zeros(len(pairs), np.bool_),
        )
