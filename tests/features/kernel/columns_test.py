"""Matrices as named columns, batches concatenated and filtered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from tests.support.streaming_project import PROJECT
from tidemill import col, first, last
from tidemill.features.contract import EARLIEST_EVENT, moment_of
from tidemill.features.kernel.columns import column_arrays, concat, keep, plain_array


def test_columns_of_a_matrix_have_their_names_types_and_nulls() -> None:
    cab = PROJECT.view("cab")
    typed = {
        "card_5m": last(col("card"), over="5m"),
        "paid_at_2m": first(col("at"), over="2m", where=col("card")),
    }
    view = replace(cab, features={**cab.features, **typed})
    values = np.array([[3, 0, 0, 5, 1, EARLIEST_EVENT], [0] * 6], np.int64)
    values[0, 1:2].view(np.float64)[0] = 2.5
    nulls = np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], np.uint8)
    arrays = column_arrays(view.columns, values, nulls)
    assert {name: array.to_pylist() for name, array in arrays.items()} == {
        "cab__trips_2m": [3, 0],
        "cab__fares_5m": [2.5, 0.0],
        "cab__last_fare_5m": [None, 0.0],
        "cab__quiet_5m": [5, 0],
        "cab__card_5m": [True, False],
        "cab__paid_at_2m": [moment_of(EARLIEST_EVENT), None],
    }
    types = [str(array.type) for array in arrays.values()]
    assert types == ["int64", "double", "double", "int64", "bool", "timestamp[us, tz=UTC]"]
    for array in arrays.values():
        array.validate(full=True)
    assert plain_array(arrays["cab__paid_at_2m"]).to_pylist() == [EARLIEST_EVENT, None]
    assert plain_array(arrays["cab__card_5m"]) is arrays["cab__card_5m"]
    nothing = column_arrays(view.columns, values[:0], nulls[:0])
    assert [array.type for array in nothing.values()] == [a.type for a in arrays.values()]


def test_batches_are_put_one_after_the_other() -> None:
    one, two = pa.record_batch({"a": [1, 2]}), pa.record_batch({"a": [3]})
    assert concat([]) is None
    assert concat([one]) is one
    both = concat([one, two])
    assert both is not None
    assert both.column("a").to_pylist() == [1, 2, 3]
    assert keep(one, np.array([True, True])) is one
    assert keep(one, np.array([False, True])).column("a").to_pylist() == [2]
