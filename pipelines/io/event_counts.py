"""Counts of a source's events: delivered again, in conflict, without a key.

They are functions of the accepted log. "Earlier" means in the order of receipt, then of partition
and position, over all partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


_RECORD: Final = np.dtype(
    [("received", "<i8"), ("row", "<u8", (2,)), ("id", "<u8", (2,)), ("counted", "?")]
)
"""What is kept of an event: 41 bytes."""

HELD_ROWS: Final = 1_000_000
"""So many events are held in memory; more are kept in files."""

_PARTS: Final = 64
"""Files by the hash of the id, so that events with one id are counted together."""


class EventCounter:
    """Takes the rows of a stream, partition by partition, and counts, in bounded memory.

    Args:
        stream: The stream.
        views: The views of the stream.
        folder: Where files are kept, if there are many events; the caller removes it.
    """

    def __init__(self, stream: EventStream, views: Sequence[FeatureView], folder: Path) -> None:
        self._stream = stream
        self._views = views
        self._folder = folder
        self._held: list[npt.NDArray[np.void]] = []
        self._rows = 0
        self._spilled = False
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
        everything = np.ones(rows.num_rows, np.bool_)
        counted = everything if counted is None else counted
        ids = rows.column(self._stream.event_id)
        found = np.empty(rows.num_rows, _RECORD)
        found["received"] = received_us
        found["row"] = hashing.digest_rows(rows.select(list(self._stream.identity)))
        found["id"][:, 0] = hashing.hash_column(ids)
        found["id"][:, 1] = hashing.hash_column(ids, seed=1)
        found["counted"] = counted
        self._held.append(found)
        self._rows += len(found)
        if self._rows > HELD_ROWS:
            self._spill()
        for view in self._views:
            missing = ~hashing.validity(rows.column(view.key)) & counted
            self._without_key[view.name] += int(missing.sum())

    def _spill(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = np.concatenate([np.empty(0, _RECORD), *self._held])
        parts = found["id"][:, 0] % np.uint64(_PARTS)
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(_PARTS + 1, dtype=np.uint64))
        for part in range(_PARTS):
            with self._path(part).open("ab") as file:
                file.write(found[order[ends[part] : ends[part + 1]]].tobytes())
        self._held, self._rows, self._spilled = [], 0, True

    def _path(self, part: int) -> Path:
        return self._folder / f"{self._stream.name}-{part:02d}.events"

    def counts(self) -> EventCounts:
        """Return the counts of all rows that were taken."""
        duplicates = conflicts = 0
        for records in self._parts():
            order = np.argsort(records["received"], kind="stable")
            counted = records["counted"][order]
            is_first, has_first_id = (_is_first(records[name][order]) for name in ("row", "id"))
            duplicates += int((counted & ~is_first).sum())
            conflicts += int((counted & is_first & ~has_first_id).sum())
        return EventCounts(duplicates, conflicts, self._without_key)

    def _parts(self) -> Iterator[npt.NDArray[np.void]]:
        """Yield all events, those with one id together, in the order in which they were taken."""
        if not self._spilled:
            yield np.concatenate([np.empty(0, _RECORD), *self._held])
            return
        self._spill()
        for part in range(_PARTS):
            yield np.fromfile(self._path(part), _RECORD)


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
    for partition, (first, stop) in enumerate(zip(since, until, strict=True)):
        reader, begin = log.open(stream.name, partition), 0
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            rows = batch.slice(0, max(stop - begin, 0))
            positions = np.arange(begin, begin + rows.num_rows)
            counter.take(rows, hashing.bits(rows.column(RECEIVED)), positions >= first)
            begin += batch.num_rows
    return counter.counts()
