"""The columns of the log's files, made of publications."""

from __future__ import annotations

import pyarrow as pa

from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL, field_name
from tidemill.serving.publications import (
    REVISION_COLUMN,
    VALID_UNTIL_COLUMN,
    checked_batch,
    entity_keys,
)


def offline_table(view: FeatureView, publications: pa.RecordBatch | pa.Table) -> pa.Table:
    """Convert publications (`serving.publications.schema`) to the table that Feast joins.

    Returns:
        The join key by its name, ``event_timestamp`` as timestamp[us, UTC], every feature by its
        Feast name, and the two technical fields; ``(rows,)``.

    Raises:
        InputError: The batch does not have the view's schema.
    """
    batch = checked_batch(view, publications)
    columns = {
        view.entity.join_key: entity_keys(view, batch),
        EVENT_TIMESTAMP: batch.column(EVENT_TIMESTAMP).cast(pa.timestamp("us", tz="UTC")),
        **{field_name(column): batch.column(column.name) for column in view.columns},
        VALID_UNTIL: batch.column(VALID_UNTIL_COLUMN),
        REVISION: batch.column(REVISION_COLUMN),
    }
    return pa.table(columns)
