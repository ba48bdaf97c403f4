"""Merging sorted runs of rows, a block of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.file_errors import named_for

MERGE_ROWS: Final = 32_768
"""Rows of a run that are read at once."""


class Run:
    """Rows in memory or in a file, by blocks.

    Args:
        rows: The rows, ``(rows,)``, at least one.
        path: The file to write them to; None keeps them in memory.
    """

    def __init__(self, rows: pa.RecordBatch, path: Path | None) -> None:
        starts = range(0, rows.num_rows, MERGE_ROWS)
        self.blocks = len(starts)
        self._path = path
        self._rows = [rows.slice(start, MERGE_ROWS) for start in starts]
        if path is None:
            return
        with (
            atomic_write(path) as unfinished,
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, rows.schema) as writer,
        ):
            for block in self._rows:
                writer.write_batch(block)
        self._rows = []

    def read(self, block: int) -> pa.RecordBatch:
        """Read a block."""
        if self._path is None:
            return self._rows[block]
        with named_for(self._path), pa.OSFile(str(self._path), "rb") as file:
            return pa.ipc.open_file(file).get_batch(block)


class _Cursor:
    """The rows of a run that were read and not taken."""

    def __init__(self, run: Run, times_of: Callable[[pa.RecordBatch], Int64Array]) -> None:
        self._run, self._times_of = run, times_of
        self._next = 0
        self.rows: list[pa.RecordBatch] = []
        self._times: list[Int64Array] = []

    @property
    def more(self) -> bool:
        """Whether there are blocks that were not read."""
        return self._next < self._run.blocks

    @property
    def last_us(self) -> int:
        """The time of the last row that was read."""
        return int(self._times[-1][-1])

    def read(self) -> None:
        """Read the next block."""
        rows = self._run.read(self._next)
        self._next += 1
        self.rows.append(rows)
        self._times.append(self._times_of(rows))

    def take(self, before_us: int | None) -> list[pa.RecordBatch]:
        """Take the rows before an instant; None takes all."""
        taken = []
        while self.rows:
            rows, times = self.rows[0], self._times[0]
            stop = len(times) if before_us is None else int(np.searchsorted(times, before_us))
            if stop:
                taken.append(rows.slice(0, stop))
            if stop < len(times):
                self.rows[0], self._times[0] = rows.slice(stop), times[stop:]
                break
            del self.rows[0], self._times[0]
        return taken


def merged(
    runs: Sequence[Run],
    times_of: Callable[[pa.RecordBatch], Int64Array],
    in_order: Callable[[pa.RecordBatch], pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Merge runs that are sorted by time first.

    Memory holds a block of each run that reaches into the time that is merged, and all rows of one
    instant.

    Args:
        runs: The runs; of rows that compare equal, those of an earlier run come first.
        times_of: Returns the times of rows: int64, ``(rows,)``.
        in_order: Sorts rows, stably; their first key is the time.

    Yields:
        The rows of all runs, in order.
    """
    first = [int(times_of(run.read(0))[0]) if len(runs) > 1 else 0 for run in runs]
    waiting = sorted(range(len(runs)), key=lambda run: (first[run], run), reverse=True)
    cursors: dict[int, _Cursor] = {}
    while waiting or cursors:
        bounds = [first[waiting[-1]]] if waiting else []
        bounds += [cursor.last_us for cursor in cursors.values() if cursor.more]
        bound = min(bounds, default=None)
        taken = [rows for run in sorted(cursors) if (rows := cursors[run].take(bound))]
        if len(taken) == 1:
            yield from taken[0]
        elif taken:
            yield in_order(pa.concat_batches([piece for rows in taken for piece in rows]))
        cursors = {run: one for run, one in cursors.items() if one.rows or one.more}
        while waiting and (not cursors or first[waiting[-1]] == bound):
            run = waiting.pop()
            cursors[run] = _Cursor(runs[run], times_of)
            cursors[run].read()
        for cursor in cursors.values():
            if cursor.more and (not cursor.rows or cursor.last_us == bound):
                cursor.read()
