"""The point-in-time join as a plain function: a view's values at any (key, time) pairs.

It uses the kernel of the stream, with all events at once and sorted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import NULLS, VALUES, Publish, advance
from tidemill.features.kernel.columns import column_arrays, keep
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import (
    REQUESTS_SCHEMA,
    identity_digests,
    matrix_of,
    nulls_of,
    prepare_events,
    with_key,
)
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.io.log import one_batch


def values_at(
    view: FeatureView, events: pa.Table | pa.RecordBatch, keys: pa.Array, times_us: Int64Array
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    """Compute a view's values for keys at instants, from all its events.

    Args:
        view: The view.
        events: Validated rows of its stream (further columns are ignored), in any order;
            duplicates count once, and rows without a key do not count.
        keys: string or int64, ``(rows,)``: entity keys, null for none.
        times_us: int64, ``(rows,)``: the instants.

    Returns:
        The 64-bit patterns and the nulls (1 = null) of the view's columns, ``(rows, columns)``.
    """
    table = events if isinstance(events, pa.Table) else pa.Table.from_batches([events])
    batch = one_batch(table.select(list(view.stream.schema)))
    if (mine := with_key(view, batch)) is not None:
        batch = keep(batch, mine)
    digests = identity_digests(view.stream, batch)
    kept = first_occurrences(digests)
    plan = make_plan(view)
    prepared = prepare_events(plan, view, batch.take(pa.array(kept)), digests[kept])
    requests = pa.RecordBatch.from_arrays(
        [
            hashing.key_bytes(keys),
            pa.array(times_us, pa.int64()),
            pa.array(np.arange(len(keys)), pa.int64()),
        ],
        schema=REQUESTS_SCHEMA,
    )
    newest = hashing.bits(prepared.column("time"))
    until = max(
        int(newest.max()) + 1 if len(newest) else 0, int(times_us.max()) if len(times_us) else 0
    )
    advanced = advance(State(plan, publishes=False), prepared, requests, until, Publish.NOTHING)
    return matrix_of(advanced.answers.column(VALUES)), nulls_of(advanced.answers.column(NULLS))


def columns_of(
    view: FeatureView, values: Int64Array, nulls: npt.NDArray[np.uint8]
) -> dict[str, pa.Array]:
    """Name the columns of a view's matrix: arrays by `FeatureColumn.name`."""
    return column_arrays(view.columns, values, nulls)
