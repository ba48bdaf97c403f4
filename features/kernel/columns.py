"""Feature matrices as named columns, and batches concatenated and filtered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import FeatureColumn

UInt8Array = npt.NDArray[np.uint8]


def column_arrays(
    columns: Sequence[FeatureColumn], values: Int64Array, nulls: UInt8Array
) -> dict[str, pa.Array]:
    """Name the columns of a feature matrix.

    Args:
        columns: The feature columns, in the order of the matrix.
        values: int64 patterns, ``(rows, columns)``.
        nulls: uint8, ``(rows, columns)``: 1 = null.

    Returns:
        int64 or float64 arrays, ``(rows,)``, by `FeatureColumn.name`.
    """
    out: dict[str, pa.Array] = {}
    by_column = np.ascontiguousarray(values.T)
    for index, column in enumerate(columns):
        words = by_column[index]
        data = words.view(np.float64) if column.dtype == "float64" else words
        out[column.name] = pa.array(data, mask=nulls[:, index].astype(np.bool_))
    return out


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Concatenate batches of one schema; None if there are none."""
    if not batches:
        return None
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def keep(batch: pa.RecordBatch, mask: BoolArray) -> pa.RecordBatch:
    """Keep the rows where ``mask`` is true."""
    return batch if mask.all() else pc.filter(batch, pa.array(mask))
