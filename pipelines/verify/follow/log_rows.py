"""The rows of a source in the order of its log, each with what was known when it came.

Read from the log of the build and the sealed rows of the live log; each block is checked against
its digest when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, Log, log_schema
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.verify.source_history import KNOWN

_PIECE_ROWS: Final = 4 * BLOCK_ROWS


def rows_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the columns of the rows: those of a log, ``_partition`` and ``_known``."""
    schema = log_schema(definition)
    return schema.append(pa.field(PARTITION, pa.int64())).append(pa.field(KNOWN, pa.int64()))


class LogRows:
    """Reads a source from the beginning of its log on.

    Args:
        definition: The source.
        partitions: The number of its partitions.

    Attributes:
        positions: The position in each partition up to which rows were read.
        schema: The columns of the rows.
    """

    def __init__(self, definition: EventStream | Request, partitions: int) -> None:
        self._definition, self.positions = definition, [0] * partitions
        self.schema = rows_schema(definition)
        self._highest = [TIME_MIN] * partitions
        self._swept = [0] * partitions

    def read(self, log: Log, until: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the rows up to some positions, in pieces of bounded size.

        Raises:
            DamagedFile: A block is not what was written.
        """
        schema, time = self.schema, _time_column(self._definition)
        for partition, stop in enumerate(until):
            while (start := self.positions[partition]) < stop:
                end = min(stop, (start // _PIECE_ROWS + 1) * _PIECE_ROWS)
                rows = log.read_span(self._definition.name, partition, start, end)
                times, received = (hashing.bits(rows.column(name)) for name in (time, RECEIVED))
                known = self._known(partition, times, received)
                columns = [
                    *(rows.column(name) for name in schema.names[:-2]),
                    pa.array(np.full(len(times), partition), pa.int64()),
                    pa.array(known, pa.int64()),
                ]
                self.positions[partition] = start + rows.num_rows
                yield pa.Table.from_arrays(columns, schema=schema)

    def _known(self, partition: int, times: Int64Array, received: Int64Array) -> Int64Array:
        highest = np.maximum.accumulate(np.concatenate([[self._highest[partition]], times]))
        self._highest[partition] = int(highest[-1])
        known: Int64Array = np.maximum(received, highest[:-1])
        return known

    def check_again(self, log: Log) -> None:
        """Read one block of each partition again, in turn, to see that it is what was written.

        Raises:
            DamagedFile: It is not.
        """
        for partition, end in enumerate(self.positions):
            if not end:
                continue
            start = self._swept[partition] * BLOCK_ROWS
            if start >= end:
                start = 0
            log.read_span(self._definition.name, partition, start, min(start + BLOCK_ROWS, end))
            self._swept[partition] = start // BLOCK_ROWS + 1


def _time_column(definition: EventStream | Request) -> str:
    if isinstance(definition, EventStream):
        return definition.event_time
    return definition.request_time


def limits_of(rows: pa.Table, positions: Sequence[int]) -> BoolArray:
    """Return which rows are below a position vector: bool, ``(rows,)``."""
    limits = np.asarray(positions, np.int64)
    places, partitions = (hashing.bits(_one(rows, name)) for name in (POSITION, PARTITION))
    below: BoolArray = places < limits[partitions]
    return below


def _one(rows: pa.Table, name: str) -> pa.Array:
    column = rows.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
