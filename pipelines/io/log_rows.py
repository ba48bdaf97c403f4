"""The rows of a log: the declared columns, then the position and the time of receipt."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import ARROW_TYPES, EventStream, Request

POSITION: Final = "_position"
RECEIVED: Final = "_received"
PARTITION: Final = "_partition"
SENT: Final = "_sent"
"""When a poll read the row: wall clock in microseconds, for latency only."""


def log_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the schema of a source's log."""
    return pa.schema(
        [
            *(pa.field(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.int64()),
        ]
    )


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch (also when it is empty)."""
    combined = table.combine_chunks()
    batches = combined.to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.RecordBatch.from_arrays(
        [pa.array([], field.type) for field in table.schema], schema=table.schema
    )


def forgotten_rows(definition: EventStream | Request, rows: pa.RecordBatch | pa.Table) -> BoolArray:
    """Tell which rows of a log were forgotten whole, bool ``(rows,)``: they have no id.

    No row is accepted without an id. A forgotten one keeps its place and its time, so that polls,
    watermarks and the order of answers stay as they were (`pipelines.forget.blank_rows`).
    """
    ids = rows.column(definition.id_column)
    found: BoolArray = pc.is_null(ids).to_numpy(zero_copy_only=False)
    return found
