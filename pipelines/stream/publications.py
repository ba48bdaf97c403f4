"""Kernel publications with the names of a view's columns."""

from __future__ import annotations

import functools
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.features.kernel.advance import NULLS, VALUES
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.kernel.prepare import KEY, matrix_of, nulls_of
from tidemill.pipelines.io.output_parts import Output
from tidemill.serving import publications

OF_RELEASE: Final = ("_shard", "_release")
"""The columns of logged publications that name the shard and the number of their release."""


def named_publications(view: FeatureView, kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Convert kernel publications to the schema `serving.publications.schema`."""
    if not kernel.num_rows:
        return _nothing(view)
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


@functools.lru_cache(maxsize=256)
def _nothing(view: FeatureView) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=publications.schema(view))


def logged_publications(view: FeatureView, kernel: pa.RecordBatch) -> pa.Table:
    """Return the publications of a release as the stream's log of publications has them.

    They are sorted: the kernel numbers entities anew when it reads a snapshot, and publishes in
    that order.
    """
    names = (publications.ENTITY_KEY, EVENT_TIMESTAMP, publications.REVISION_COLUMN)
    rows = named_publications(view, kernel)
    # `Table.sort_by` runs a plan of Arrow's, with its threads: dear for a few rows.
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in names])
    return pa.Table.from_batches([rows.take(order)])


def publications_output(
    view: FeatureView, kernel: pa.RecordBatch, shard: int, number: int
) -> Output:
    """Return the publications of a release as an output of the stream.

    Its rows are those of `logged_publications`, and say at the end which release they are of.

    Args:
        view: The view.
        kernel: What its kernel has published.
        shard: The shard.
        number: The number of the release.
    """
    rows = logged_publications(view, kernel)
    schema, columns = rows.schema, [column.combine_chunks() for column in rows.columns]
    for name, value in zip(OF_RELEASE, (shard, number), strict=True):
        schema = schema.append(pa.field(name, pa.int64()))
        columns.append(pa.repeat(pa.scalar(value, pa.int64()), len(rows)))
    return Output(f"{number:012d}-{shard:05d}", pa.RecordBatch.from_arrays(columns, schema=schema))
