from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.support.trained_bundle import PROJECT
from tidemill import Request, col
from tidemill.features.errors import InputError, WrongType
from tidemill.features.models.preprocessing import (
    ModelInput,
    as_float32,
    categories,
    fill,
    missing,
    model_inputs,
    to_arrow_feed,
)


def test_request_inputs_come_first_then_features_in_their_order() -> None:
    assert model_inputs(PROJECT) == (
        ModelInput("size", "string"),
        ModelInput("hour", "int64"),
        ModelInput("grams", "int64"),
        ModelInput("metres", "float64"),
        ModelInput("fragile", "bool"),
        ModelInput("depot__minutes_1d", "float64"),
        ModelInput("depot__scans_1d", "int64"),
    )
    assert [i.kind for i in model_inputs(PROJECT)[:2]] == ["text", "numeric"]


def test_the_baseline_has_the_request_inputs_only() -> None:
    names = [i.name for i in model_inputs(PROJECT, only_request=True)]
    assert names == ["size", "hour", "grams", "metres", "fragile"]


def test_a_time_is_no_model_input() -> None:
    with pytest.raises(WrongType, match=r"'moment' is a timestamp.*take its \.hour_of_day"):
        Request("r", PROJECT.request.schema, "at", "parcel", inputs={"moment": col("at")})


def test_int64_is_rounded_once() -> None:
    # 2**62 + 2**38 + 1 lies just above the middle between two float32 numbers: rounding to
    # float64 first loses the 1, and then the tie goes to the even neighbour below.
    value = 2**62 + 2**38 + 1
    assert as_float32(pa.array([value]))[0] == np.float32(2.0**62 + 2.0**39)
    assert np.float32(np.float64(value)) == np.float32(2.0**62)


def test_null_is_nan_and_subnormal_is_zero() -> None:
    found = as_float32(pa.array([None, 1e-40, -1e-40, 2.0**-126, 1e39, 0.1]))
    expected = np.array([np.nan, 0.0, 0.0, 2.0**-126, np.inf, 0.1], np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        as_float32(pa.array([True, None, False])), np.array([1, np.nan, 0], np.float32)
    )


def test_the_feed_holds_the_inputs_in_order_and_nothing_else() -> None:
    table = pa.table({"other": [1, 2], "n": pa.array([3, None]), "t": pa.array([None, "b"])})
    feed = to_arrow_feed(table, [ModelInput("t", "string"), ModelInput("n", "int64")])
    assert feed.schema == pa.schema({"t": pa.string(), "n": pa.float32()})
    assert feed.column("t").to_pylist() == ["", "b"]
    np.testing.assert_array_equal(feed.column("n").to_numpy(), np.array([3, np.nan], np.float32))


def test_a_missing_column_and_a_wrong_type_are_named() -> None:
    table = pa.table({"grams": pa.array([1.0])})
    with pytest.raises(InputError, match="'gram' is not among the columns; did you mean 'grams'"):
        to_arrow_feed(table, [ModelInput("gram", "int64")])
    with pytest.raises(InputError, match="'grams' must be int64, found double"):
        to_arrow_feed(table, [ModelInput("grams", "int64")])


def test_missing_fill_and_categories() -> None:
    import tensorflow as tf

    x = tf.constant([np.nan, 0.0, 23.0, 24.0, -1.0, 1.5])
    assert missing(x).numpy().tolist() == [1, 0, 0, 0, 0, 0]
    assert fill(x, 9.0).numpy().tolist() == [9, 0, 23, 24, -1, 1.5]
    assert categories(x, 24).numpy().tolist() == [24, 0, 23, 24, 24, 24]
