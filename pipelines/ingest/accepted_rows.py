"""The accepted rows of a source on their way to its log, in bounded memory.

Rows are collected in *runs*. A run that is full is written to a file, and the next one begins; a
source with few rows is never written. The runs of a table are sorted by time and id, and merged
when the log is written; those of a log keep the order of their file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.io.files.judged_rows import StreamBatch
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.io.merging import Run, merged

RUN_ROWS: Final = 1_000_000
"""Rows of a run."""

Arrived = tuple[int, pa.RecordBatch, Int64Array]
"""A partition, its next rows, and when each arrived (int64 microseconds)."""


def sorted_order(times_us: Int64Array, ids: pa.Array) -> Int64Array:
    """Return the order of rows by time and id; equal rows keep theirs.

    Args:
        times_us: int64, ``(rows,)``.
        ids: string or int64, ``(rows,)``.

    Returns:
        int64, ``(rows,)``: row indices.
    """
    order = np.arange(len(times_us))
    if (times_us[1:] < times_us[:-1]).any():
        order = np.argsort(times_us, kind="stable")
    times = times_us[order]
    same = times[1:] == times[:-1]
    tied = np.zeros(len(times), np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    if tied.any():
        rows = order[tied]
        ties = pa.table({"time": times[tied], "id": ids.take(pa.array(rows))})
        sorted_ties = pc.sort_indices(ties, [("time", "ascending"), ("id", "ascending")])
        order[tied] = rows[sorted_ties.to_numpy()]
    return order


@dataclass
class AcceptedRows:
    """The accepted rows of a source.

    Attributes:
        definition: The stream or request.
        source: With a ``received`` column each file is a partition. Without one the rows are sorted
            by time and id, and the hash of the id chooses among ``source.partitions``.
        folder: Where runs are written; it need not exist.
        until_us: Leave out rows received at or after this instant; None keeps all.
        lengths: How many rows each partition has so far.
    """

    definition: EventStream | Request
    source: Source
    folder: Path
    until_us: int | None = None
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = [0] * (self.source.partitions if self.source.received is None else 1)
        self._schema = pa.schema(
            [(name, ARROW_TYPES[dtype]) for name, dtype in self.definition.schema.items()]
        )
        self._waiting: list[tuple[int, pa.RecordBatch]] = []
        self._waiting_rows = 0
        # Of a log, each run has the rows of one partition; the runs are in order.
        self._runs: list[tuple[int, Run]] = []
        self._highest: dict[int, int] = {}
        self._written = 0

    def add(self, batch: StreamBatch) -> None:
        """Take the next rows of a file."""
        rows = batch.batch
        if self.source.received is not None:
            # A file is a partition also if all its rows were rejected.
            self.lengths += [0] * (batch.partition + 1 - len(self.lengths))
        if not rows.num_rows:
            return
        if self.source.received is not None:
            self._count(batch.partition, self._arrivals(batch.partition, rows, self._highest))
        else:
            for partition, _, times in self._dealt(rows):
                self._count(partition, times)
        self._waiting.append((batch.partition, rows))
        self._waiting_rows += rows.num_rows
        if self._waiting_rows >= RUN_ROWS:
            self._end_run(keep=False)

    def _count(self, partition: int, received_us: Int64Array) -> None:
        kept = len(received_us) if self.until_us is None else (received_us < self.until_us).sum()
        self.lengths[partition] += int(kept)

    def _end_run(self, *, keep: bool) -> None:
        """End a run, and write it unless it is to be kept in memory."""
        groups: dict[int, list[pa.RecordBatch]] = {}
        for partition, rows in self._waiting:
            groups.setdefault(0 if self.source.received is None else partition, []).append(rows)
        self._waiting, self._waiting_rows = [], 0
        for partition, batches in groups.items():
            rows = one_batch(pa.Table.from_batches(batches, schema=self._schema))
            if self.source.received is None:
                rows = self._sorted(rows)
            path = None if keep else self.folder / f"run-{self._written:06d}.arrow"
            self._written += not keep
            self._runs.append((partition, Run(rows, path)))

    def _sorted(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        order = sorted_order(self._times(rows), rows.column(self.definition.id_column))
        if (order[1:] > order[:-1]).all():
            return rows
        return rows.take(pa.array(order))

    def _times(self, rows: pa.RecordBatch) -> Int64Array:
        return hashing.bits(rows.column(self.definition.time_column))

    def _arrivals(
        self, partition: int, rows: pa.RecordBatch, highest: dict[int, int]
    ) -> Int64Array:
        """Return when the next rows of a file arrived: never before the rows before them."""
        assert self.source.received is not None
        received = hashing.bits(rows.column(self.source.received))
        arrived = np.maximum(np.maximum.accumulate(received), highest.get(partition, TIME_MIN))
        highest[partition] = int(arrived[-1])
        return arrived

    def all_rows(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in any order; rows may be added afterwards."""
        for _, run in self._runs:
            for block in range(run.blocks):
                yield run.read(block)
        for _, rows in self._waiting:
            yield rows

    def arrived(self) -> Iterator[Arrived]:
        """Yield the rows of each partition in order of arrival; no rows may be added afterwards."""
        if self._waiting:
            self._end_run(keep=True)
        pieces: Iterator[Arrived]
        if self.source.received is None:
            pieces = (
                part
                for rows in merged([run for _, run in self._runs], self._times, self._sorted)
                for part in self._dealt(rows)
            )
        else:
            pieces = self._in_order_of_files()
        for partition, rows, received in pieces:
            stop = len(received)
            if self.until_us is not None:
                stop = int(np.searchsorted(received, self.until_us, "left"))
            if stop:
                yield partition, rows.slice(0, stop), received[:stop]

    def _in_order_of_files(self) -> Iterator[Arrived]:
        highest: dict[int, int] = {}
        for partition, run in self._runs:
            for block in range(run.blocks):
                rows = run.read(block)
                yield partition, rows, self._arrivals(partition, rows, highest)

    def _dealt(self, rows: pa.RecordBatch) -> Iterator[Arrived]:
        """Deal the rows of a table to partitions; a row arrives at its own time."""
        if self.source.partitions == 1:
            yield 0, rows, self._times(rows)
            return
        ids = hashing.key_bytes(rows.column(self.definition.id_column))
        dealt = hashing.shard_of(ids, self.source.partitions)
        for partition in range(self.source.partitions):
            mine = rows.filter(pa.array(dealt == partition))
            if mine.num_rows:
                yield partition, mine, self._times(mine)
