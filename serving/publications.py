"""Publications: the rows that the kernel emits for the stores, as Arrow.

Both stores take the same batch of one view (`schema`): `serving.online.parcels` turns it into rows
of the online database, `serving.offline.offline_table` into the table that Feast joins.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, write_instant
from tidemill.features.definitions import ARROW_TYPES, INT64, FeatureView
from tidemill.features.errors import InputError
from tidemill.features.feast_objects import EVENT_TIMESTAMP

ENTITY_KEY: Final = "entity_key"
"""Column of the entity keys, as UTF-8; an int64 key is written in decimal digits."""
VALID_UNTIL_COLUMN: Final = "valid_until"
"""Column of the instants until which the values hold if no further event arrives."""
REVISION_COLUMN: Final = "revision"
"""Column of the number of events applied to the entity."""
TECHNICAL_COLUMNS: Final = 4
"""Number of columns before those of the features."""


@functools.lru_cache(maxsize=256)
def schema(view: FeatureView) -> pa.Schema:
    """Return the Arrow schema of a view's publications.

    ``entity_key`` (binary), ``event_timestamp`` and ``valid_until`` (int64, microseconds UTC),
    ``revision`` (int64), then every `FeatureColumn` by name in its own type, nullable.
    """
    return pa.schema(
        [
            pa.field(ENTITY_KEY, pa.binary(), nullable=False),
            pa.field(EVENT_TIMESTAMP, pa.int64(), nullable=False),
            pa.field(VALID_UNTIL_COLUMN, pa.int64(), nullable=False),
            pa.field(REVISION_COLUMN, pa.int64(), nullable=False),
            *(pa.field(column.name, ARROW_TYPES[column.dtype]) for column in view.columns),
        ]
    )


def entity_keys(view: FeatureView, batch: pa.RecordBatch) -> pa.Array:
    """Return the entity keys of publications in the join key's own type, string or int64."""
    text = batch.column(ENTITY_KEY).cast(pa.string())
    return text.cast(pa.int64()) if view.entity.dtype == INT64 else text


def checked_batch(view: FeatureView, publications: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
    """Check publications of a view, and return them as one batch.

    Raises:
        InputError: They do not have the view's schema, a technical column holds a null, or an
            event_timestamp is outside the range that Feast can carry.
    """
    wanted = schema(view)
    found = publications.schema
    if not found.equals(wanted) and (found.names != wanted.names or found.types != wanted.types):
        raise InputError(
            f"publications of view {view.name!r} must have the columns "
            f"{_show(wanted)}, found {_show(found)}"
        )
    if isinstance(publications, pa.Table):
        columns = [column.combine_chunks() for column in publications.columns]
        batch = pa.RecordBatch.from_arrays(columns, schema=found)
    else:
        batch = publications
    for name in wanted.names[:TECHNICAL_COLUMNS]:
        if batch.column(name).null_count:
            raise InputError(f"publications of view {view.name!r}: {name} is null in a row")
    times = batch.column(EVENT_TIMESTAMP).to_numpy()
    outside = np.flatnonzero((times < EARLIEST_EVENT) | (times > LATEST_EVENT))
    if outside.size:
        found_us = int(times[outside[0]])
        raise InputError(
            f"publications of view {view.name!r}: event_timestamp {write_instant(found_us)} in row "
            f"{outside[0]} is not a time of the years 1 to 9999, which Feast can carry"
        )
    return batch


def _show(found: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in found)
