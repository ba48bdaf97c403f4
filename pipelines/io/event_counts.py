"""Counts of a source's events: delivered again, in conflict, without a key.

They are functions of the accepted log. "Earlier" means in the order of receipt, then of partition
and position, over all partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


class EventCounter:
    """Takes the rows of a stream, partition by partition, and counts.

    It holds 40 bytes a row.

    Args:
        stream: The stream.
        views: The views of the stream.
    """

    def __init__(self, stream: EventStream, views: Sequence[FeatureView]) -> None:
        self._stream = stream
        self._views = views
        self._received: list[Int64Array] = []
        self._rows: list[UInt64Array] = []
        self._ids: list[UInt64Array] = []
        self._counted: list[BoolArray] = []
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
        self._received.append(received_us)
        self._rows.append(hashing.digest_rows(rows.select(list(self._stream.identity))))
        self._ids.append(
            np.stack([hashing.hash_column(ids), hashing.hash_column(ids, seed=1)], axis=1)
        )
        self._counted.append(counted)
        for view in self._views:
            missing = ~hashing.validity(rows.column(view.key)) & counted
            self._without_key[view.name] += int(missing.sum())

    def counts(self) -> EventCounts:
        """Return the counts of all rows that were taken."""
        if not self._rows:
            return EventCounts(0, 0, self._without_key)
        order = np.argsort(np.concatenate(self._received), kind="stable")
        counted = np.concatenate(self._counted)[order]
        is_first, has_first_id = (
            _is_first(np.concatenate(pairs)[order]) for pairs in (self._rows, self._ids)
        )
        return EventCounts(
            duplicates=int((counted & ~is_first).sum()),
            conflicts=int((counted & is_first & ~has_first_id).sum()),
            without_key=self._without_key,
        )


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
) -> EventCounts:
    """Count the events of a part of a log.

    Args:
        log: The log.
        stream: The stream.
        views: The views of the stream.
        since: The position in each partition from which on events are counted.
        until: The position in each partition at which the log ends for this count.
    """
    counter = EventCounter(stream, views)
    for partition, (first, stop) in enumerate(zip(since, until, strict=True)):
        reader, begin = log.open(stream.name, partition), 0
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            rows = batch.slice(0, max(stop - begin, 0))
            positions = np.arange(begin, begin + rows.num_rows)
            counter.take(rows, hashing.bits(rows.column(RECEIVED)), positions >= first)
            begin += batch.num_rows
    return counter.counts()
