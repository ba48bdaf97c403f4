"""Publications: the rows for the feature store, and the forms they take on the way there.

A batch of publications of one view (`schema`) is what the kernel emits. From it come

* parcels for the online database (`online_rows`, `parcel_of`, `write_publications`): the fast
  path, whole columns;
* rows of Feast's generic write path (`feast_rows`), for any other online store. These carry the
  same values, but only `serving.feast_plugins.online_store` keeps their order;
* the table of the offline store (`offline_table`; `serving.offline.log` keeps it).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT
from tidemill.features.definitions.expressions import ARROW_TYPES, INT64
from tidemill.features.definitions.views import FeatureView
from tidemill.features.errors import InputError
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL, field_name
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.rows import KeySpace, RowBatch, online_keys

if TYPE_CHECKING:
    from tidemill.serving.online.feast_rows import FeastRow

ENTITY_KEY: Final = "entity_key"
"""The column of entity keys: UTF-8 of the key, an int64 key in decimal digits."""

_VALID_UNTIL: Final = "valid_until"
_REVISION: Final = "revision"
_TECHNICAL: Final = 4
"""How many columns come before those of the features."""


@functools.lru_cache(maxsize=256)
def schema(view: FeatureView) -> pa.Schema:
    """Return the Arrow schema of a view's publications.

    ``entity_key`` (binary), ``event_timestamp`` and ``valid_until`` (int64, microseconds UTC),
    ``revision`` (int64), then every `FeatureColumn` by name (int64 or float64, nullable).
    """
    return pa.schema(
        [
            pa.field(ENTITY_KEY, pa.binary(), nullable=False),
            pa.field(EVENT_TIMESTAMP, pa.int64(), nullable=False),
            pa.field(_VALID_UNTIL, pa.int64(), nullable=False),
            pa.field(_REVISION, pa.int64(), nullable=False),
            *(pa.field(column.name, ARROW_TYPES[column.dtype]) for column in view.columns),
        ]
    )


def entity_keys(view: FeatureView, batch: pa.RecordBatch) -> pa.Array:
    """Return the entity keys of publications in the join key's own type, string or int64."""
    text = batch.column(ENTITY_KEY).cast(pa.string())
    return text.cast(pa.int64()) if view.entity.dtype == INT64 else text


def online_rows(
    view: FeatureView, publications: pa.RecordBatch | pa.Table, shard: int | None
) -> RowBatch:
    """Make the rows of the online database, column by column.

    Args:
        view: The view.
        publications: Publications of it, `schema`, ``(rows,)``.
        shard: The shard they are of; None where it is not known.

    Returns:
        A row for each.

    Raises:
        InputError: The batch is not of the view's schema.
    """
    batch = _checked(view, publications)
    return RowBatch(
        keys=online_keys(view.entity.join_key, entity_keys(view, batch)),
        event_timestamps=batch.column(EVENT_TIMESTAMP).to_numpy(),
        revisions=batch.column(_REVISION).to_numpy(),
        valid_until=batch.column(_VALID_UNTIL).to_numpy(),
        shard=shard,
        cells=cell_matrix(_dtypes(view), batch.columns[_TECHNICAL:]),
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
        publications: Publications of it, `schema`, ``(rows,)``; none is fine.
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
        publications: Publications of it, `schema`, ``(rows,)``; none is fine.
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
        publications: Publications of it, `schema`, ``(rows,)``.

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


def offline_table(view: FeatureView, publications: pa.RecordBatch | pa.Table) -> pa.Table:
    """Make the table that Feast joins offline.

    Args:
        view: The view.
        publications: Publications of it, `schema`, ``(rows,)``.

    Returns:
        The join key by its name, ``event_timestamp`` as timestamp[us, UTC], every feature by its
        Feast name, and the two technical fields; ``(rows,)``.

    Raises:
        InputError: The batch is not of the view's schema.
    """
    batch = _checked(view, publications)
    columns = {
        view.entity.join_key: entity_keys(view, batch),
        EVENT_TIMESTAMP: batch.column(EVENT_TIMESTAMP).cast(pa.timestamp("us", tz="UTC")),
        **{field_name(column): batch.column(column.name) for column in view.columns},
        VALID_UNTIL: batch.column(_VALID_UNTIL),
        REVISION: batch.column(_REVISION),
    }
    return pa.table(columns)


def _checked(view: FeatureView, publications: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
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
    for name in wanted.names[:_TECHNICAL]:
        if batch.column(name).null_count:
            raise InputError(f"publications of view {view.name!r}: {name} is null in a row")
    times = batch.column(EVENT_TIMESTAMP).to_numpy()
    outside = np.flatnonzero((times < EARLIEST_EVENT) | (times > LATEST_EVENT))
    if outside.size:
        raise InputError(
            f"publications of view {view.name!r}: event_timestamp {times[outside[0]]} in row "
            f"{outside[0]} is not a time of the years 1 to 9999, which Feast can carry"
        )
    return batch


@functools.lru_cache(maxsize=256)
def _dtypes(view: FeatureView) -> tuple[str, ...]:
    # As the schema: definitions are frozen and compared by identity, and their columns are made
    # anew at each use, which for few rows takes longer than writing them.
    return tuple(column.dtype for column in view.columns)


def _show(found: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in found)
