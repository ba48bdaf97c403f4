"""The rows of a log: the declared columns, then the position and the time of receipt."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import ARROW_TYPES, EventStream, Project, Request, Schema

POSITION: Final = "_position"
RECEIVED: Final = "_received"
PARTITION: Final = "_partition"
SENT: Final = "_sent"
"""When a poll read the row: wall clock in microseconds, for latency only."""

_PLACES: Final = (POSITION, RECEIVED, PARTITION, SENT)


def log_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the schema of a source's log."""
    return pa.schema(
        [
            *(pa.field(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.int64()),
        ]
    )


def conformed(rows: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """Return rows of a log, or of a poll, that may be of an earlier version of their source.

    Args:
        rows: The rows, ``(rows,)``.
        schema: The declared columns that they are to have: one that they lack is null, and one of
            another dtype is cast. Their other columns, of the position and the like, follow.

    Raises:
        pa.ArrowInvalid: A value has no place in the other dtype.
    """
    names = rows.schema.names
    declared = [pa.field(name, ARROW_TYPES[dtype]) for name, dtype in schema.items()]
    others = [rows.schema.field(name) for name in names if name in _PLACES]
    wanted = pa.schema([*declared, *others])
    if rows.schema.equals(wanted):
        return rows
    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in names
        else pa.nulls(rows.num_rows, field.type)
        for field in wanted
    ]
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def conformed_table(rows: pa.Table, schema: Schema) -> pa.Table:
    """Return the rows of a table as `conformed` does."""
    batches = [conformed(batch, schema) for batch in rows.to_batches()]
    empty = conformed(one_batch(rows.slice(0, 0)), schema)
    return pa.Table.from_batches(batches, empty.schema)


def definitions_of(project: Project) -> list[EventStream | Request]:
    """Return the definitions of all sources of a project: its streams, then the request."""
    return [*project.streams, project.request]


def declared_columns(project: Project) -> dict[str, Schema]:
    """Return the declared columns of all sources of a project, by name."""
    return {definition.name: definition.schema for definition in definitions_of(project)}


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
