"""Entity rows: the entities and instants that historical features are requested for.

They are a pandas frame, an Arrow table, or an SQL query for duckdb that returns them.
"""

from __future__ import annotations

from typing import TypeAlias

import pandas as pd
import pyarrow as pa
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError

from tidemill.features.contract import Int64Array
from tidemill.features.errors import InputError
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.serving.offline.exact_casts import exact_cast
from tidemill.serving.offline.join import JoinEngine

EntityRows: TypeAlias = pd.DataFrame | pa.Table | str


def entity_table(engine: JoinEngine, entity_df: EntityRows) -> pa.Table:
    """Return entity rows as an Arrow table; duckdb runs a query."""
    if isinstance(entity_df, str):
        with engine.connection() as connection:
            return connection.sql(entity_df).to_arrow_table()
    if isinstance(entity_df, pa.Table):
        return entity_df
    return pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)


def time_column(rows: pa.Table) -> str:
    """Return the column of the rows' instants: ``event_timestamp``, else the only timestamp.

    Raises:
        EntityTimestampInferenceException: There is not exactly one.
    """
    if EVENT_TIMESTAMP in rows.column_names:
        return EVENT_TIMESTAMP
    times: list[str] = [field.name for field in rows.schema if pa.types.is_timestamp(field.type)]
    if len(times) != 1:
        raise EntityTimestampInferenceException(EVENT_TIMESTAMP)
    return times[0]


def microseconds(rows: pa.Table, name: str) -> Int64Array:
    """Return the rows' instants, int64 microseconds UTC, ``(rows,)``.

    Raises:
        InputError: The column holds no timestamps, or nulls.
    """
    column = rows.column(name)
    if not pa.types.is_timestamp(column.type):
        raise InputError(
            f"column {name!r} of the entity rows must be a timestamp, found {column.type}"
        )
    if column.null_count:
        raise InputError(
            f"column {name!r} of the entity rows is null in {column.null_count} rows; a value is "
            "as of an instant, so each row needs one"
        )
    if column.type.unit == "ns":  # rounded down, never to a later instant
        times: Int64Array = column.cast(pa.int64()).to_numpy() // 1_000
    else:
        times = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_numpy()
    return times


def keys_of(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    """Return the rows' entity keys in the log's type, ``(rows,)``.

    Raises:
        FeastEntityDFMissingColumnsError: There is no such column.
        InputError: Its keys are of another kind, or cannot be converted exactly.
    """
    if name not in rows.column_names:
        raise FeastEntityDFMissingColumnsError({name}, set(rows.column_names))
    column = rows.column(name).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    fits = texts if kind == pa.string() else numbers
    if not (fits or column.null_count == len(column)):
        raise InputError(
            f"column {name!r} of the entity rows holds keys of type {column.type}, and the view's "
            f"are {kind}"
        )
    return exact_cast(column, kind, f"column {name!r} of the entity rows")
