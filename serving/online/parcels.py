"""Publications on their way to an online store: parcels, and rows of Feast's generic write path.

* `online_rows`, `parcel_of` and `write_publications` make whole columns for the online database:
  the fast path.
* `feast_rows` makes rows for any other online store. These carry the same values, but only
  `serving.feast_plugins.online_store` keeps their order.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pyarrow as pa

from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.rows import KeySpace, RowBatch, online_keys
from tidemill.serving.publications import (
    REVISION_COLUMN,
    TECHNICAL_COLUMNS,
    VALID_UNTIL_COLUMN,
    checked_batch,
    entity_keys,
)

if TYPE_CHECKING:
    from tidemill.serving.online.feast_rows import FeastRow


def online_rows(
    view: FeatureView, publications: pa.RecordBatch | pa.Table, shard: int | None
) -> RowBatch:
    """Make the rows of the online database, column by column.

    Args:
        view: The view.
        publications: Publications of it (`serving.publications.schema`), ``(rows,)``.
        shard: The shard they are of; None where it is not known.

    Returns:
        A row for each.

    Raises:
        InputError: The batch is not of the view's schema.
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
    """Make the parcel of what one or more successive advances of a shard published.

    Args:
        project: The project's name.
        view: The view.
        publications: Publications of it (`serving.publications.schema`), ``(rows,)``; none is fine.
        shard: The shard.
        shard_count: How many shards the view has.
        since_us: The frontier before these advances; None where they published the whole shard.
        frontier_us: The instant as of which the shard's rows are now the value.

    Raises:
        InputError: The batch is not of the view's schema, or there is no such shard.
    """
    return Parcel(
        space=KeySpace.of(project, view),
        rows=online_rows(view, publications, shard),
        shard=shard,
        shard_count=shard_count,
        since_us=since_us,
        frontier_us=frontier_us,
    )


def write_publications(
    database: OnlineDatabase,
    project: str,
    view: FeatureView,
    publications: pa.RecordBatch | pa.Table,
    *,
    shard: int,
    shard_count: int,
    since_us: int | None,
    frontier_us: int,
) -> int:
    """Write what advances of one shard published, and the frontier it reached, together.

    Args:
        database: The online database; the project must be registered there.
        project: The project's name.
        view: The view.
        publications: Publications of it (`serving.publications.schema`), ``(rows,)``; none is fine.
        shard: The shard.
        shard_count: How many shards the view has.
        since_us: The frontier before these advances; None where they published the whole shard.
        frontier_us: The instant as of which the shard's rows are now the value.

    Returns:
        How many rows stand now; the others were older than, or equal to, what stood.

    Raises:
        InputError: The batch is not of the view's schema.
        LostPublications: The store stands behind ``since_us``; nothing is written.
        ConflictingPublication: A publication contradicts the one that stands; nothing is written.
        StoreError: The store is missing or refuses.
    """
    parcel = parcel_of(
        project,
        view,
        publications,
        shard=shard,
        shard_count=shard_count,
        since_us=since_us,
        frontier_us=frontier_us,
    )
    (written,) = database.publish([parcel])
    return written


def feast_rows(view: FeatureView, publications: pa.RecordBatch | pa.Table) -> list[FeastRow]:
    """Make the rows that Feast's ``online_write_batch`` takes.

    Args:
        view: The view.
        publications: Publications of it (`serving.publications.schema`), ``(rows,)``.

    Returns:
        For each row its entity key, its values by Feast field name (an unset ``Value`` for a
        null, and the two technical fields), its event timestamp, and None for its creation.

    Raises:
        InputError: The batch is not of the view's schema.
    """
    from tidemill.serving.online import feast_rows as of_stored

    # The rows are the same in every project's key space.
    stored = of_stored.StoredView(KeySpace.of("", view), (VALID_UNTIL, REVISION), judged=True)
    return of_stored.feast_rows(stored, online_rows(view, publications, None))


@functools.lru_cache(maxsize=256)
def _dtypes(view: FeatureView) -> tuple[str, ...]:
    # As the schema: definitions are frozen and compared by identity, and their columns are made
    # anew at each use, which for few rows takes longer than writing them.
    return tuple(column.dtype for column in view.columns)
