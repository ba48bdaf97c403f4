"""Counts of a source's events: delivered again, in conflict, without a key.

They are functions of the accepted log. "Earlier" means in the order of receipt, then of partition
and position, over all partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import EventStream, FeatureView
from tidemill.features.kernel import hashing
from tidemill.features.kernel.dedupe import UInt64Array, first_occurrences
from tidemill.features.kernel.prepare import identity_digests
from tidemill.pipelines.io.log import RECEIVED, Log


@dataclass(frozen=True)
class EventCounts:
    """Counts of some events of a stream.

    Attributes:
        duplicates: Events that are an earlier one, delivered again: equal to it in all columns but
            those of transport. An event counts once.
        conflicts: Other events with the id of an earlier one. Each of them counts.
        without_key: By view, the events without its key: they are no events of that view.
    """

    duplicates: int
    conflicts: int
    without_key: dict[str, int]

    def as_figures(self) -> dict[str, Any]:
        """Return the counts for a summary; `without_key` holds the views that have any."""
        without = {view: count for view, count in self.without_key.items() if count}
        return {
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "without_key": without,
        }


Taken = tuple[pa.RecordBatch, Int64Array, BoolArray | None]
"""Rows of a stream, when each arrived, and which of them to count; see `EventCounter.take`."""

HELD_ROWS: Final = 1_000_000
"""So many events are held in memory; more are kept in files."""

_PARTS: Final = 64
"""Files by the highest bits of the hash of the id."""

_PART_SHIFT: Final = np.uint64(58)

_RECORD: Final = np.dtype(
    [("received", "<i8"), ("row", "<u8", (2,)), ("id", "<u8", (2,)), ("counted", "?")]
)
"""What is kept of an event whose id may occur again: 41 bytes."""

Records = npt.NDArray[Any]


class EventCounter:
    """Counts the rows of a stream in two passes, in bounded memory.

    The first pass takes all rows and keeps a hash of each id. The second one looks at the rows
    whose id occurs more than once, if there are any.

    Args:
        stream: The stream.
        views: The views of the stream.
        folder: Where files are kept, if there are many events; the caller removes it.
    """

    def __init__(self, stream: EventStream, views: Sequence[FeatureView], folder: Path) -> None:
        self._stream = stream
        self._views = views
        self._folder = folder
        self._ids = _Collected(folder / f"{stream.name}-ids", np.dtype("<u8"), lambda ids: ids)
        self._without_key = {view.name: 0 for view in views}

    def take(
        self, rows: pa.RecordBatch, received_us: Int64Array, counted: BoolArray | None = None
    ) -> None:
        """Take the next rows of a partition, or the first ones of the next partition.

        Args:
            rows: The declared columns, ``(rows,)``.
            received_us: int64, ``(rows,)``: when each arrived.
            counted: bool, ``(rows,)``: which of them to count; None for all. The others are only
                what those may repeat.
        """
        self._ids.add(hashing.hash_column(rows.column(self._stream.event_id)))
        for view in self._views:
            key = rows.column(view.key)
            if key.null_count:
                missing = ~hashing.validity(key)
                self._without_key[view.name] += int(
                    missing.sum() if counted is None else (missing & counted).sum()
                )

    def counts(self, again: Callable[[], Iterable[Taken]]) -> EventCounts:
        """Return the counts of all rows that were taken.

        Args:
            again: Gives what was taken once more, in the same order.
        """
        repeated = _repeated(self._ids.parts())
        if repeated is not None and not len(repeated):
            return EventCounts(0, 0, self._without_key)
        looked_at = _Repeats(self._stream, self._folder / f"{self._stream.name}-events", repeated)
        for rows, received_us, counted in again():
            looked_at.take(rows, received_us, counted)
        duplicates, conflicts = looked_at.counts()
        return EventCounts(duplicates, conflicts, self._without_key)


class _Collected:
    """Records of events, at last yielded in parts: those with one id are in one part.

    Args:
        folder: Where more than `HELD_ROWS` are kept.
        dtype: The type of a record.
        hashes: Returns the hashes of the records' ids.
    """

    def __init__(
        self, folder: Path, dtype: np.dtype[Any], hashes: Callable[[Records], UInt64Array]
    ) -> None:
        self._folder, self._dtype, self._hashes = folder, dtype, hashes
        self._held: list[Records] = []
        self._rows = 0
        self._spilled = False

    def add(self, records: Records) -> None:
        self._held.append(records)
        self._rows += len(records)
        if self._rows > HELD_ROWS:
            self._spill()

    def parts(self) -> Iterator[Records]:
        """Yield all records, those of a part in the order in which they were added."""
        if not self._spilled:
            yield self._all_held()
            return
        self._spill()
        for part in range(_PARTS):
            yield np.fromfile(self._path(part), self._dtype)

    def _all_held(self) -> Records:
        return np.concatenate([np.empty(0, self._dtype), *self._held])

    def _spill(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        records = self._all_held()
        parts = (self._hashes(records) >> _PART_SHIFT).astype(np.uint8)
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(_PARTS + 1))
        for part in range(_PARTS):
            with self._path(part).open("ab") as file:
                file.write(records[order[ends[part] : ends[part + 1]]].tobytes())
        self._held, self._rows, self._spilled = [], 0, True

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:02d}"


def _repeated(hashes: Iterable[UInt64Array]) -> UInt64Array | None:
    """Return the hashes that occur more than once, ascending; None if they are too many.

    Args:
        hashes: Parts of all hashes, as `_Collected` yields them.
    """
    found, count = [np.empty(0, np.uint64)], 0
    for part in hashes:
        ordered = np.sort(part)
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
        count += len(found[-1])
        if count > HELD_ROWS:
            return None
    return np.concatenate(found)


class _Repeats:
    """Takes rows once more, and counts among those with certain ids; None stands for all ids."""

    def __init__(self, stream: EventStream, folder: Path, ids: UInt64Array | None) -> None:
        self._stream, self._ids = stream, ids
        self._records = _Collected(folder, _RECORD, lambda records: records["id"][:, 0])

    def take(
        self, rows: pa.RecordBatch, received_us: Int64Array, counted: BoolArray | None
    ) -> None:
        hashes = hashing.hash_column(rows.column(self._stream.event_id))
        if counted is None:
            counted = np.ones(rows.num_rows, np.bool_)
        if self._ids is not None:
            at = np.minimum(np.searchsorted(self._ids, hashes), len(self._ids) - 1)
            mine = np.flatnonzero(self._ids[at] == hashes)
            rows = rows.take(pa.array(mine))
            received_us, counted, hashes = received_us[mine], counted[mine], hashes[mine]
        records = np.empty(rows.num_rows, _RECORD)
        records["received"] = received_us
        records["row"] = identity_digests(self._stream, rows)
        records["id"][:, 0] = hashes
        records["id"][:, 1] = hashing.hash_column(rows.column(self._stream.event_id), seed=1)
        records["counted"] = counted
        self._records.add(records)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of duplicates and of conflicts."""
        duplicates = conflicts = 0
        for records in self._records.parts():
            order = np.argsort(records["received"], kind="stable")
            counted = records["counted"][order]
            is_first, has_first_id = (_is_first(records[name][order]) for name in ("row", "id"))
            duplicates += int((counted & ~is_first).sum())
            conflicts += int((counted & is_first & ~has_first_id).sum())
        return duplicates, conflicts


def _is_first(pairs: UInt64Array) -> BoolArray:
    found = np.zeros(len(pairs), np.bool_)
    found[first_occurrences(pairs)] = True
    return found


def count_logged(
    log: Log,
    stream: EventStream,
    views: Sequence[FeatureView],
    since: Sequence[int],
    until: Sequence[int],
    folder: Path,
) -> EventCounts:
    """Count the events of a part of a log.

    Args:
        log: The log.
        stream: The stream.
        views: The views of the stream.
        since: The position in each partition from which on events are counted.
        until: The position in each partition at which the log ends for this count.
        folder: As for `EventCounter`.
    """
    counter = EventCounter(stream, views, folder)

    def taken() -> Iterator[Taken]:
        for partition, (first, stop) in enumerate(zip(since, until, strict=True)):
            begin = 0
            for batch in log.batches(stream.name, partition):
                rows = batch.slice(0, max(stop - begin, 0))
                positions = np.arange(begin, begin + rows.num_rows)
                yield rows, hashing.bits(rows.column(RECEIVED)), positions >= first
                begin += batch.num_rows

    for rows, received_us, counted in taken():
        counter.take(rows, received_us, counted)
    return counter.counts(taken)
