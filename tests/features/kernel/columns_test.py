"""Matrices as named columns, batches concatenated and filtered."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tests.support.streaming_project import PROJECT
from tidemill.features.kernel.columns import column_arrays, concat, keep


def test_columns_of_a_matrix_have_their_names_types_and_nulls() -> None:
    view = PROJECT.view("cab")
    values = np.array([[3, 0, 0, 5]], np.int64)
    values[0, 1:2].view(np.float64)[0] = 2.5
    arrays = column_arrays(view.columns, values, np.array([[0, 0, 1, 0]], np.uint8))
    assert {name: array.to_pylist() for name, array in arrays.items()} == {
        "cab__trips_2m": [3],
        "cab__fares_5m": [2.5],
        "cab__last_fare_5m": [None],
        "cab__quiet_5m": [5],
    }
    assert [str(array.type) for array in arrays.values()] == ["int64", "double", "double", "int64"]


def test_batches_are_put_one_after_the_other() -> None:
    one, two = pa.record_batch({"a": [1, 2]}), pa.record_batch({"a": [3]})
    assert concat([]) is None
    assert concat([one]) is one
    both = concat([one, two])
    assert both is not None
    assert both.column("a").to_pylist() == [1, 2, 3]
    assert keep(one, np.array([True, True])) is one
    assert keep(one, np.array([False, True])).column("a").to_pylist() == [2]
