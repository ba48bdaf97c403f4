"""The events of a view's chosen entities, as far back as a window can hold them.

Rows are kept in tables that are sorted by the hash of the entity's key, each at least twice as
large as the next. So a round adds its rows at a cost that grows with their number (times the
logarithm of all), and finds the rows of some entities without looking at those of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.kernel import hashing
from tidemill.features.kernel.hashing import UInt64Array
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.verify.follow.share import is_chosen, key_hashes

_STALE: Final = 0.5
"""A table is written anew when more of its rows than this share are no longer needed."""


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Rows sorted by the hash of their key.

    Attributes:
        hashes: uint64, ``(rows,)``, ascending.
        times: int64, ``(rows,)``: the event times.
        rows: The rows.
    """

    hashes: UInt64Array
    times: Int64Array
    rows: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, places: Int64Array) -> _Sorted:
        return _Sorted(
            self.hashes[places], self.times[places], self.rows.take(pa.array(places, pa.int64()))
        )


class EntityRows:
    """The rows of one view.

    Args:
        key: The column of the entity's key.
        time: The column of the event time.
        schema: The columns of the rows.
    """

    def __init__(self, key: str, time: str, schema: pa.Schema) -> None:
        self._key, self._time, self.schema = key, time, schema
        self._levels: list[_Sorted] = []
        self.floor_us = TIME_MIN

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def add(self, rows: pa.Table) -> None:
        """Add rows that have a key."""
        if not len(rows):
            return
        batch = one_batch(rows.select(self.schema.names)).replace_schema_metadata(None)
        hashes = key_hashes(batch.column(self._key))
        times = hashing.bits(batch.column(self._time))
        order = np.argsort(hashes, kind="stable")
        self._levels.append(_Sorted(hashes, times, batch).take(order))
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            upper, lower = self._levels.pop(), self._levels.pop()
            if len(merged := self._merged(lower, upper)):
                self._levels.append(merged)

    def _merged(self, one: _Sorted, other: _Sorted) -> _Sorted:
        both = _Sorted(
            np.concatenate([one.hashes, other.hashes]),
            np.concatenate([one.times, other.times]),
            pa.concat_batches([one.rows, other.rows]),
        )
        order = np.argsort(both.hashes, kind="stable")
        return both.take(order[both.times[order] >= self.floor_us])

    def forget_before(self, floor_us: int) -> None:
        """Forget rows from before an instant, table by table, once half of one is forgotten."""
        self.floor_us = max(self.floor_us, floor_us)
        kept = []
        for level in self._levels:
            needed = level.times >= self.floor_us
            if needed.mean() < 1 - _STALE:
                level = level.take(np.flatnonzero(needed))
            if len(level):
                kept.append(level)
        self._levels = kept

    def narrow(self, share: float) -> None:
        """Forget the entities that a smaller share does not choose."""
        levels = (
            level.take(np.flatnonzero(is_chosen(level.rows.column(self._key), share)))
            for level in self._levels
        )
        self._levels = [level for level in levels if len(level)]

    def of(self, keys: pa.Array) -> pa.Table:
        """Return the rows of some entities, and perhaps of others whose keys have their hashes."""
        wanted = np.unique(key_hashes(keys)[hashing.validity(keys)])
        parts = [level.rows.slice(0, 0) for level in self._levels[:1]]
        for level in self._levels:
            starts = np.searchsorted(level.hashes, wanted, "left")
            stops = np.searchsorted(level.hashes, wanted, "right")
            places = _ranges(starts, stops)
            if len(places):
                parts.append(level.rows.take(pa.array(places, pa.int64())))
        return pa.Table.from_batches(parts, self.schema)

    def some_keys(self, after: int, count: int) -> tuple[pa.Array, int]:
        """Return some entities in the order of their hashes, to visit all of them in turn.

        Args:
            after: The hash after which to begin.
            count: How many are wanted.

        Returns:
            Their keys, each once; and the hash to go on after, -1 if these were the last.
        """
        found: list[tuple[UInt64Array, pa.Array]] = []
        for level in self._levels:
            start = 0
            if after >= 0:
                start = int(np.searchsorted(level.hashes, np.uint64(after), "right"))
            firsts = _firsts(level.hashes, start, count)
            keys = level.rows.column(self._key).take(pa.array(firsts, pa.int64()))
            found.append((level.hashes[firsts], keys))
        if not found:
            return pa.array([], self.schema.field(self._key).type), -1
        hashes = np.concatenate([one for one, _ in found])
        keys = pa.concat_arrays([one for _, one in found])
        distinct, places = np.unique(hashes, return_index=True)
        more = len(distinct) > count or any(len(one) == count for one, _ in found)
        last = int(distinct[min(count, len(distinct)) - 1]) if len(distinct) else -1
        return keys.take(pa.array(places[:count], pa.int64())), last if more else -1


def _ranges(starts: Int64Array, stops: Int64Array) -> Int64Array:
    """Return the numbers of all ranges ``[start, stop)``, in order."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    if not len(ends) or not ends[-1]:
        return np.zeros(0, np.int64)
    out: Int64Array = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    return out


def _firsts(hashes: UInt64Array, start: int, count: int) -> Int64Array:
    """Return the places of the first ``count`` distinct hashes from a place on."""
    return np.fromiter(_each_first(hashes, start, count), np.int64)


def _each_first(hashes: UInt64Array, start: int, count: int) -> Iterator[int]:
    for _ in range(count):
        if start >= len(hashes):
            return
        yield start
        start = int(np.searchsorted(hashes, hashes[start], "right"))
