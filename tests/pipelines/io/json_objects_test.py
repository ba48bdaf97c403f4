"""Rows as JSON objects: every value comes back, bit for bit."""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.features.contract import write_instant
from tidemill.pipelines.io.json_objects import json_objects

EARLIEST = -62_135_596_800_000_000
LATEST = 253_402_300_799_999_999


def objects(**columns: pa.Array) -> list[dict[str, object]]:
    texts = json_objects(pa.RecordBatch.from_pydict(columns)).to_pylist()
    return [json.loads(text, parse_constant=pytest.fail) for text in texts]


def bits(number: object) -> bytes:
    assert type(number) is float
    return struct.pack("<d", number)


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))))
def test_float64_keeps_its_bits(values: list[float | None]) -> None:
    for found, value in zip(objects(a=pa.array(values, pa.float64())), values, strict=True):
        if value is None:
            assert found["a"] is None
        else:
            assert bits(found["a"]) == bits(value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_is_the_float64_that_equals_it(values: list[float]) -> None:
    for found, value in zip(objects(a=pa.array(values, pa.float32())), values, strict=True):
        assert bits(found["a"]) == bits(float(np.float32(value)))


def test_numbers_without_a_form_are_texts() -> None:
    values = [float("nan"), float("inf"), float("-inf"), None, -0.0, 1e22, 5e-324]
    found = [row["a"] for row in objects(a=pa.array(values, pa.float64()))]
    assert found[:4] == ["NaN", "Infinity", "-Infinity", None]
    assert [bits(value) for value in found[4:]] == [bits(value) for value in (-0.0, 1e22, 5e-324)]


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))))
def test_int64_keeps_all_digits(values: list[int | None]) -> None:
    assert [row["a"] for row in objects(a=pa.array(values, pa.int64()))] == values


@given(st.lists(st.one_of(st.none(), st.text())))
def test_texts_come_back(values: list[str | None]) -> None:
    assert [row["a"] for row in objects(a=pa.array(values, pa.string()))] == values


@given(st.lists(st.one_of(st.none(), st.integers(EARLIEST, LATEST))))
def test_times_are_written_as_everywhere(values: list[int | None]) -> None:
    found = [row["a"] for row in objects(a=pa.array(values, pa.timestamp("us", "UTC")))]
    assert found == [None if value is None else write_instant(value) for value in values]


def test_columns_keep_their_order_and_names() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            'b "quoted"': pa.array([True, None]),
            "a": pa.nulls(2, pa.string()),
            "ä": pa.array(["x\ny", "z"]),
        }
    )
    assert json_objects(rows).to_pylist() == [
        '{"b \\"quoted\\"":true,"a":null,"ä":"x\\ny"}',
        '{"b \\"quoted\\"":null,"a":null,"ä":"z"}',
    ]


def test_no_rows_and_no_columns() -> None:
    assert (
        json_objects(pa.RecordBatch.from_pydict({"a": pa.array([], pa.float64())})).to_pylist()
        == []
    )


def test_another_type_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="column 'a' is list"):
        json_objects(pa.RecordBatch.from_pydict({"a": pa.array([[1]])}))


VALUES = {
    "float64": (pa.float64(), st.one_of(st.floats(), st.integers(-(2**60), 2**60).map(float))),
    "float32": (pa.float32(), st.floats(width=32)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text()),
    "large text": (pa.large_string(), st.text(alphabet='a"\\\n\x00\x1f\x7fé')),
    "time": (pa.timestamp("us", "UTC"), st.integers(EARLIEST, LATEST)),
    "second": (pa.timestamp("s", "UTC"), st.integers(EARLIEST // 10**6, LATEST // 10**6)),
    "null": (pa.null(), st.none()),
}


@given(st.data())
@settings(max_examples=25)
def test_few_rows_are_written_as_many(data: st.DataObject) -> None:
    """A message that is written again may come with more or fewer others."""
    columns = {}
    for name, (kind, values) in VALUES.items():
        some = data.draw(st.lists(st.one_of(st.none(), values), min_size=1, max_size=12))
        columns[name] = pa.array(some, kind).take(pa.array(np.arange(100) % len(some)))
    rows = pa.RecordBatch.from_pydict(columns)
    parts = [json_objects(rows.slice(start, 7)) for start in range(0, 100, 7)]
    assert json_objects(rows).equals(pa.concat_arrays(parts))
