"""Feature matrices as named columns, and batches concatenated and filtered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, FeatureColumn

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
        An array of the column's dtype, ``(rows,)``, by `FeatureColumn.name`.
    """
    out: dict[str, pa.Array] = {}
    by_column = np.ascontiguousarray(values.T)
    for index, column in enumerate(columns):
        null = nulls[:, index].astype(np.bool_)
        out[column.name] = typed_array(column.dtype, by_column[index], null)
    return out


def typed_array(dtype: str, words: Int64Array, null: BoolArray | None = None) -> pa.Array:
    """Return 64-bit patterns as an Arrow array of their dtype.

    Args:
        dtype: One of `FEATURE_DTYPES`.
        words: int64 patterns, ``(rows,)``, contiguous: a bool is 0 or 1, a timestamp microseconds.
        null: bool, ``(rows,)``: where the array is null; None for nowhere.
    """
    if dtype == FLOAT64:
        return pa.array(words.view(np.float64), mask=null)
    if dtype == BOOL:
        return pa.array(words != 0, mask=null)
    return pa.array(words, mask=null).view(ARROW_TYPES[dtype])


def plain_array(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column as the oracle writes its values: times as int64 microseconds UTC."""
    return array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Concatenate batches of one schema; None if there are none."""
    if not batches:
        return None
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def keep(batch: pa.RecordBatch, mask: BoolArray) -> pa.RecordBatch:
    """Keep the rows where ``mask`` is true."""
    return batch if mask.all() else pc.filter(batch, pa.array(mask))
