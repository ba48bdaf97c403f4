"""The places of requests in their log, as one number each."""

from __future__ import annotations

import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.stream.answer_parts import groups_of


def places_of(rows: pa.RecordBatch | pa.Table, partition: str, position: str) -> Int64Array:
    """Return the place of each row (`pipelines.stream.answer_parts.group_of`).

    Args:
        rows: Requests, or what was made of them, ``(rows,)``.
        partition: The column of their partition.
        position: The column of their position.

    Returns:
        int64, ``(rows,)``.
    """
    if isinstance(rows, pa.Table):
        rows = one_batch(rows.select([partition, position]))
    partitions, positions = (hashing.bits(rows.column(name)) for name in (partition, position))
    return groups_of(partitions, positions)
