"""Kernel publications with the names of a view's columns."""

from __future__ import annotations

import pyarrow as pa

from tidemill.features.definitions import FeatureView
from tidemill.features.kernel.advance import NULLS, VALUES
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.kernel.prepare import KEY, matrix_of, nulls_of
from tidemill.serving import publications


def named_publications(view: FeatureView, kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Convert kernel publications to the schema `serving.publications.schema`."""
    values, nulls = matrix_of(kernel.column(VALUES)), nulls_of(kernel.column(NULLS))
    arrays = column_arrays(view.columns, values, nulls)
    return pa.RecordBatch.from_arrays(
        [
            kernel.column(KEY).cast(pa.binary()),
            kernel.column("event_timestamp"),
            kernel.column("valid_until"),
            kernel.column("revision"),
            *(arrays[column.name] for column in view.columns),
        ],
        schema=publications.schema(view),
    )
