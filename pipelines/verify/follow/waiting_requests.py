"""The requests that a stream has taken, and those of them that it has yet to answer.

The requests that one poll has of a partition are answered together, when the frontiers have passed
all of them (`pipelines.stream.answer_join`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, one_batch
from tidemill.pipelines.verify.follow.log_rows import LogRows

POLL: Final = "_poll"
"""The column of the number of the poll that brought a request."""
Waiting = Sequence[tuple[int, int, int]]
"""Partition, position and poll of each request that waits."""


class WaitingRequests:
    """Reads requests in the order of their log, and keeps those that wait for an answer.

    Args:
        request: The request.
        positions: The position in each partition to begin at.
        waiting: Those of the requests before it that wait.
        log: The log.

    Raises:
        DamagedFile: A block of the log is not what was written.
    """

    def __init__(
        self, request: Request, positions: Sequence[int], waiting: Waiting, log: Log
    ) -> None:
        self._rows = LogRows(request, len(positions))
        self._rows.positions = list(positions)
        self._schema = self._rows.schema.append(pa.field(POLL, pa.int64()))
        self._waiting = pa.concat_tables(
            [self._schema.empty_table(), *self._read_again(request, waiting, log)]
        )

    def _read_again(self, request: Request, waiting: Waiting, log: Log) -> list[pa.Table]:
        found = []
        for partition in sorted({of_partition for of_partition, _, _ in waiting}):
            polls = {at: poll for where, at, poll in waiting if where == partition}
            again = LogRows(request, partition + 1)
            again.positions = [0] * partition + [min(polls)]
            for rows in again.read(log, [0] * partition + [max(polls) + 1]):
                of_it = [polls.get(at, -1) for at in rows.column(POSITION).to_pylist()]
                rows = rows.append_column(POLL, pa.array(of_it, pa.int64()))
                found.append(rows.filter(pa.array([poll >= 0 for poll in of_it])))
        return found

    def places(self) -> Waiting:
        """Return the requests that wait."""
        columns = (self._waiting.column(name).to_pylist() for name in (PARTITION, POSITION, POLL))
        return list(zip(*columns, strict=True))

    def take(
        self, log: Log, positions: Sequence[int], ends: Mapping[int, Sequence[int]]
    ) -> pa.Table:
        """Return the requests that wait, and those up to some positions.

        Args:
            log: The log.
            positions: The positions.
            ends: Poll to the position in each partition after its requests.
        """
        polls = np.array(sorted(ends), np.int64)
        after = np.array([ends[number] for number in polls.tolist()], np.int64)
        tables = [self._waiting]
        for rows in self._rows.read(log, positions):
            partition = rows.column(PARTITION)[0].as_py()
            at = hashing.bits(one_batch(rows.select([POSITION])).column(0))
            place = np.searchsorted(after[:, partition], at, "right")
            of_rows = polls[np.minimum(place, len(polls) - 1)]
            tables.append(rows.append_column(POLL, pa.array(of_rows, pa.int64())))
        return pa.concat_tables(tables)

    def keep(self, asked: pa.Table, waits: BoolArray) -> None:
        """Keep the requests that wait."""
        self._waiting = asked.filter(pa.array(waits))


def due_together(asked: pa.Table, is_due: BoolArray) -> BoolArray:
    """Tell which requests must be answered, given those that the frontiers have passed.

    Args:
        asked: Requests, ``(rows,)``.
        is_due: bool, ``(rows,)``.
    """
    if not len(asked):
        return is_due
    group = pa.table({name: asked.column(name) for name in (PARTITION, POLL)})
    columns: list[Int64Array] = [
        hashing.bits(one_batch(group.select([name])).column(0)) for name in group.column_names
    ]
    _, inverse = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    groups: Any = inverse.ravel()
    waits = np.bincount(groups, weights=~is_due) > 0
    due: BoolArray = ~waits[groups]
    return due
