"""The kernel's publications as rows and parcels of the online database."""

from __future__ import annotations

import functools

import pyarrow as pa

from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.rows import KeySpace, RowBatch, online_keys
from tidemill.serving.publications import (
    REVISION_COLUMN,
    TECHNICAL_COLUMNS,
    VALID_UNTIL_COLUMN,
    checked_batch,
    entity_keys,
)


def online_rows(
    view: FeatureView, publications: pa.RecordBatch | pa.Table, shard: int | None
) -> RowBatch:
    """Convert publications (`serving.publications.schema`) to rows of the online database.

    Raises:
        InputError: The batch does not have the view's schema.
    """
    batch = checked_batch(view, publications)
    return RowBatch(
        keys=online_keys(view.entity.join_key, entity_keys(view, batch)),
        event_timestamps=batch.column(EVENT_TIMESTAMP).to_numpy(),
        revisions=batch.column(REVISION_COLUMN).to_numpy(),
        valid_until=batch.column(VALID_UNTIL_COLUMN).to_numpy(),
        shard=shard,
        cells=cell_matrix(_dtypes(view), batch.columns[TECHNICAL_COLUMNS:]),
    )


def parcel_of(
    project: str,
    view: FeatureView,
    publications: pa.RecordBatch | pa.Table,
    *,
    shard: int,
    shard_count: int,
    since_us: int | None,
    frontier_us: int,
) -> Parcel:
    """Make a `Parcel` of publications (`serving.publications.schema`; may be empty).

    Raises:
        InputError: The batch does not have the view's schema, or there is no such shard.
    """
    return Parcel(
        space=KeySpace.of(project, view),
        rows=online_rows(view, publications, shard),
        shard=shard,
        shard_count=shard_count,
        since_us=since_us,
        frontier_us=frontier_us,
    )


@functools.lru_cache(maxsize=256)
def _dtypes(view: FeatureView) -> tuple[str, ...]:
    # Cached, because making a view's columns takes longer than writing a few rows. Definitions are
    # frozen and compared by identity.
    return tuple(column.dtype for column in view.columns)
