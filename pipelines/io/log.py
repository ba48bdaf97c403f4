"""The log of a source on disk: every accepted row, in order of arrival, by partition.

A partition is one Arrow IPC file: the declared columns, then ``_position`` (int64: the row's number
in the partition, ascending) and ``_received`` (int64 microseconds: when it arrived; for a table
without an order of arrival, the row's own time). Training, replay and verification read the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Request
from tidemill.features.errors import InputError
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

POSITION: Final = "_position"
RECEIVED: Final = "_received"
PARTITION: Final = "_partition"
SENT: Final = "_sent"
"""When a poll read the row: wall clock in microseconds, for latency only."""
_BATCH_ROWS: Final = 65_536
_MEND: Final = "run `tidemill backfill` again, which writes the log anew"


def log_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the schema of a source's log."""
    return pa.schema(
        [
            *(pa.field(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.int64()),
        ]
    )


LOG: Final = "log"
"""The name of the logs' folder below a root."""


@dataclass(frozen=True)
class Log:
    """The logs of a run.

    Attributes:
        root: The run's folder; a partition is the file ``root/log/<source>/<partition>.arrow``.
    """

    root: Path

    def path(self, source: str, partition: int) -> Path:
        """Return the file of a partition."""
        return self.root / LOG / source / f"{partition:05d}.arrow"

    def partitions(self, source: str) -> int:
        """Return how many partitions a source has.

        Raises:
            InputError: There is no log of the source.
        """
        found = len(list((self.root / LOG / source).glob("*.arrow")))
        if not found:
            raise InputError(
                f"there is no log of {source!r} in {self.root / LOG}; run `tidemill backfill`"
            )
        return found

    def open(self, source: str, partition: int) -> pa.ipc.RecordBatchFileReader:
        """Open a partition, memory-mapped."""
        path = self.path(source, partition)
        if not path.exists():
            raise InputError(f"there is no partition {partition} of {source!r}: {path} is missing")
        with reading(path, _MEND):
            return pa.ipc.open_file(pa.memory_map(str(path)))

    def read(
        self, source: str, partition: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read a partition, or all partitions in order with a ``_partition`` column."""
        if partition is not None:
            reader = self.open(source, partition)
            with reading(self.path(source, partition), _MEND):
                table = reader.read_all()
                return table if columns is None else table.select(list(columns))
        parts = []
        for number in range(self.partitions(source)):
            table = self.read(source, number, columns)
            parts.append(
                table.append_column(PARTITION, pa.array(np.full(len(table), number), pa.int64()))
            )
        return pa.concat_tables(parts)

    def write(
        self,
        definition: EventStream | Request,
        partition: int,
        table: pa.Table,
        received_us: Int64Array,
    ) -> None:
        """Write a partition; its rows get the positions 0, 1, ... in their order.

        Args:
            definition: The source.
            partition: The partition's number.
            table: The declared columns, in order of arrival, ``(rows,)``.
            received_us: int64, ``(rows,)``: when each row arrived, ascending.
        """
        schema = log_schema(definition)
        whole = pa.table(
            [
                *(table.column(name) for name in definition.schema),
                pa.array(np.arange(len(table)), pa.int64()),
                pa.array(received_us, pa.int64()),
            ],
            schema=schema,
        )
        with (
            atomic_write(self.path(definition.name, partition)) as unfinished,
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            writer.write_table(whole, max_chunksize=_BATCH_ROWS)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch (also when it is empty)."""
    combined = table.combine_chunks()
    batches = combined.to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.RecordBatch.from_arrays(
        [pa.array([], field.type) for field in table.schema], schema=table.schema
    )
