"""The rows of a source with their positions in the log, indexed by entity and time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MIN, Int64Array, window_tail
from tidemill.features.definitions import EventStream, FeatureView, Project, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.history.sorted_ranges import first_at_or_after
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, one_batch
from tidemill.pipelines.stream.sequence import arrivals

KNOWN: Final = "_known"
"""The column of the highest time that is known when a row comes (`SourceHistory.known_before`)."""
PositionVector = tuple[int, ...]
"""The next position of each partition of a source: lower positions were seen."""


class Seen(NamedTuple):
    """Which events an answer can have used.

    Attributes:
        positions: Its release had taken the events below these positions.
        before: The releases before it had taken those below these; None if all that its release
            had taken count (exact mode).
        arrived_us: When its request arrived (`pipelines.stream.sequence.arrivals`): of the events
            between, those count that had arrived before.
    """

    positions: PositionVector
    before: PositionVector | None = None
    arrived_us: int = 0


@dataclass(frozen=True, eq=False)
class SourceHistory:
    """All accepted rows of a source.

    Attributes:
        definition: The stream or the request.
        rows: The declared columns, ``_position``, ``_received`` and ``_partition``, ``(rows,)``.
        partitions: The number of partitions.
        counts: The numbers of rows read, kept, dropped and rejected.
    """

    definition: EventStream | Request
    rows: pa.Table
    partitions: int
    counts: Counts

    def words(self, column: str) -> Int64Array:
        """Return an int64 or timestamp column as int64, ``(rows,)``."""
        return hashing.bits(one_batch(self.rows.select([column])).column(0))

    def known_before(self) -> Int64Array:
        """Return the highest time that is known when each row comes, int64 ``(rows,)``.

        That is its time of receipt, or the highest event time before it in its partition. It is a
        column of the rows (`KNOWN`) where they are only some of the source's.
        """
        if KNOWN in self.rows.column_names:
            return np.array(self.words(KNOWN))
        assert isinstance(self.definition, EventStream)
        times, partitions = self.words(self.definition.event_time), self.words(PARTITION)
        positions = self.words(POSITION)
        known = np.array(self.words(RECEIVED), copy=True)
        for partition in np.unique(partitions).tolist():
            rows = np.flatnonzero(partitions == partition)
            rows = rows[np.argsort(positions[rows], kind="stable")]
            highest = np.maximum.accumulate(times[rows])
            known[rows[1:]] = np.maximum(known[rows[1:]], highest[:-1])
        return known

    def received_in(self, start_us: int, stop_us: int) -> pa.Table:
        """Return the rows received in ``[start_us, stop_us)``."""
        received = self.words(RECEIVED)
        return self.rows.filter(pa.array((received >= start_us) & (received < stop_us)))


@dataclass(frozen=True)
class History:
    """The original history of a project.

    Attributes:
        project: The project.
        sources: By name of the stream or request.
    """

    project: Project
    sources: Mapping[str, SourceHistory]

    @property
    def requests(self) -> SourceHistory:
        """The requests."""
        return self.sources[self.project.request.name]

    def of(self, view: FeatureView) -> SourceHistory:
        """Return the history of a view's stream."""
        return self.sources[view.stream.name]


class EventsByKey:
    """The events of a view, indexed by entity and time."""

    def __init__(self, view: FeatureView, source: SourceHistory) -> None:
        self.view = view
        self.rows = source.rows
        self.times = source.words(view.stream.event_time)
        self.partitions = source.words(PARTITION)
        self.positions = source.words(POSITION)
        encoded = one_batch(self.rows.select([view.key])).column(0).dictionary_encode()
        self._keys = encoded.dictionary
        self._code = {key: code for code, key in enumerate(encoded.dictionary.to_pylist())}
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        order = np.lexsort((self.times, codes))
        self._order = order[codes[order] >= 0]  # a row without a key is no event of the view
        self._starts = np.searchsorted(codes[self._order], np.arange(len(self._code) + 1))

    def of_key(self, key: object) -> Int64Array:
        """Return the rows of an entity, by event time: int64 indices in ``rows``."""
        code = self._code.get(key)
        if code is None:
            return np.zeros(0, np.int64)
        mine: Int64Array = self._order[self._starts[code] : self._starts[code + 1]]
        return mine

    def within(self, key: object, first_us: int, last_us: int) -> Int64Array:
        """Return the rows of an entity from one instant to another, both included, by time."""
        mine = self.of_key(key)
        times = self.times[mine]
        found: Int64Array = mine[
            np.searchsorted(times, first_us, "left") : np.searchsorted(times, last_us, "right")
        ]
        return found

    def window(self, key: object, as_of_us: int) -> Int64Array:
        """Return the rows that a window of the view can hold as of an instant.

        Events at the instant itself must not count, but are included, since a fault may have
        counted them.

        Args:
            key: The entity's key; an unknown or null key has no rows.
            as_of_us: The instant.

        Returns:
            int64: indices in ``rows``, by event time.
        """
        tail = window_tail(as_of_us, self.view.longest_window_us, self.view.hop_us)
        return self.within(key, tail, as_of_us)

    def below(self, rows: Int64Array, positions: PositionVector) -> Int64Array:
        """Return the rows below a position vector; partitions that it lacks have none."""
        limits = np.zeros(max(len(positions), int(self.partitions.max(initial=0)) + 1), np.int64)
        limits[: len(positions)] = positions
        kept: Int64Array = rows[self.positions[rows] < limits[self.partitions[rows]]]
        return kept

    def seen(self, rows: Int64Array, by: Seen) -> Int64Array:
        """Return the rows that an answer can have used."""
        taken = self.below(rows, by.positions)
        if by.before is None:
            return taken
        is_earlier = np.isin(taken, self.below(taken, by.before))
        kept: Int64Array = taken[is_earlier | (self.arrivals[taken] < by.arrived_us)]
        return kept

    @functools.cached_property
    def arrivals(self) -> Int64Array:
        """When each event arrived (`pipelines.stream.sequence.arrivals`), int64 ``(rows,)``."""
        received = hashing.bits(one_batch(self.rows.select([RECEIVED])).column(0))
        return arrivals(self.times, received)

    def newest_arrivals(self, keys: pa.Array, as_of_us: Int64Array) -> Int64Array:
        """Return when the last of an entity's events before an instant arrived.

        Args:
            keys: ``(rows,)``: the entities.
            as_of_us: int64, ``(rows,)``: the instants.

        Returns:
            int64, ``(rows,)``; `TIME_MIN` where there is no event.
        """
        codes = pc.fill_null(pc.index_in(keys, self._keys), -1).to_numpy().astype(np.int64)
        starts, stops = self._starts[codes], self._starts[np.where(codes < 0, 0, codes + 1)]
        starts = np.where(codes < 0, stops, starts)
        place = first_at_or_after(self.times[self._order], as_of_us, starts, stops)
        found = np.full(len(keys), TIME_MIN)
        some = place > starts
        found[some] = self._highest_arrivals[place[some] - 1]
        return found

    @functools.cached_property
    def _highest_arrivals(self) -> Int64Array:
        """The last arrival among an entity's events up to each one, in the order of `_order`."""
        arrivals = self.arrivals[self._order]
        by_arrival = np.argsort(arrivals, kind="stable")
        rank = np.empty(len(arrivals), np.int64)
        rank[by_arrival] = np.arange(len(arrivals))
        # Above the ranks of the entities before, so that one running maximum serves all.
        base = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts)) * len(arrivals)
        highest = np.maximum.accumulate(base + rank) - base
        found: Int64Array = arrivals[by_arrival[highest]]
        return found

    def ids(self, rows: Int64Array) -> list[str]:
        """Return the ids of some rows."""
        column = self.rows.column(self.view.stream.event_id)
        return [str(id) for id in column.take(pa.array(rows)).to_pylist()]
