"""A row in an online store: keys as Feast's, cells to the bit, age by the frontier."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import parcels
from tidemill.features.contract import TIME_MAX, TIME_MIN, ReadStatus
from tidemill.features.errors import InputError
from tidemill.serving.online.cells import (
    cell_matrix,
    cells_width,
    decode_cells,
    decode_row,
    encode_row,
    matrix_rows,
)
from tidemill.serving.online.rows import Frontiers, online_key, online_keys, readable_key

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT64 = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.text(max_size=12) | INT64, max_size=8))
def test_keys_are_the_bytes_that_feast_serializes(keys: list[str | int]) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    for dtype, kind, some in (
        (pa.string(), "string_val", [key for key in keys if isinstance(key, str)]),
        (pa.int64(), "int64_val", [key for key in keys if isinstance(key, int)]),
    ):
        theirs = [
            serialize_entity_key(
                EntityKey(join_keys=["courier"], entity_values=[Value(**{kind: key})]),
                entity_key_serialization_version=3,
            )
            for key in some
        ]
        assert online_keys("courier", pa.array(some, dtype)) == theirs
        assert [online_key("courier", key) for key in some] == theirs


def test_null_key_is_no_key() -> None:
    with pytest.raises(InputError, match="'courier' is null"):
        online_keys("courier", pa.array(["a", None]))


def test_key_is_readable_in_an_error() -> None:
    assert readable_key(online_keys("depot", pa.array([-7]))[0]) == "depot=-7"


@given(
    st.lists(
        st.tuples(*(st.none() | (INT64 if i % 2 else FLOAT64) for i in range(11))), max_size=20
    )
)
def test_cells_return_every_value_to_the_bit(rows: list[tuple[int | float | None, ...]]) -> None:
    dtypes = ["int64" if i % 2 else "float64" for i in range(11)]
    arrays = [
        pa.array([row[i] for row in rows], pa.int64() if i % 2 else pa.float64()) for i in range(11)
    ]
    cells = matrix_rows(cell_matrix(dtypes, arrays))
    assert cells == [encode_row(dtypes, row) for row in rows]
    for row, encoded in zip(rows, cells, strict=True):
        for found, wanted in zip(decode_row(dtypes, encoded), row, strict=True):
            assert type(found) is type(wanted)
            assert repr(found) == repr(wanted)
    for found, array in zip(decode_cells(dtypes, cells), arrays, strict=True):
        assert found.type == array.type
        assert [repr(v) for v in found.to_pylist()] == [repr(v) for v in array.to_pylist()]


@given(
    st.lists(
        st.tuples(st.none() | FLOAT64, *(st.none() | st.binary(max_size=20) for _ in range(9))),
        max_size=8,
    )
)
def test_cells_with_a_tail_return_every_value(rows: list[tuple[float | bytes | None, ...]]) -> None:
    dtypes = ["float64", *["STRING"] * 9]
    for row in rows:
        cells = encode_row(dtypes, row)
        tail = sum(len(value) for value in row if isinstance(value, bytes))
        assert len(cells) == cells_width(10) + tail
        assert [repr(value) for value in decode_row(dtypes, cells)] == [repr(v) for v in row]


def test_numbers_keep_bits_that_no_number_needs() -> None:
    bits = [0x7FF80000DEADBEEF, 0xFFF0000000000001, 0x8000000000000000, 0x7FF0000000000000]
    words = np.array(bits, np.uint64)
    array = pa.Array.from_buffers(pa.float64(), 4, [None, pa.py_buffer(words)])
    cells = matrix_rows(cell_matrix(["float64"], [array]))
    assert [int.from_bytes(row[:8], "little") for row in cells] == bits
    (read,) = decode_cells(["float64"], cells)
    assert np.array_equal(read.to_numpy().view(np.uint64), words)
    for row in cells:
        assert encode_row(["float64"], decode_row(["float64"], row)) == row


def test_null_bytes_and_no_bytes_are_different() -> None:
    assert decode_row(["STRING", "STRING"], encode_row(["STRING", "STRING"], [None, b""])) == [
        None,
        b"",
    ]


def test_null_and_zero_are_different_bytes() -> None:
    assert encode_row(["int64"], [None]) == bytes(8) + b"\x01"
    assert encode_row(["int64"], [0]) == bytes(9)
    assert encode_row(["float64"], [1.5]) == struct.pack("<d", 1.5) + b"\x00"


def test_changed_definition_is_another_key_space() -> None:
    from tidemill import FeatureView, count
    from tidemill.serving.online.rows import KeySpace

    wider = FeatureView(
        "by_depot",
        entity=parcels.DEPOT,
        stream=parcels.SCANS,
        hop="1h",
        features={"scans_1d": count(over="2d")},
    )
    changed = KeySpace.of("parcels", wider)
    assert changed.columns == parcels.DEPOT_SPACE.columns
    assert changed.name != parcels.DEPOT_SPACE.name


def test_least_frontier_waits_for_every_shard() -> None:
    assert Frontiers(3, {0: 50, 2: 70}).least == TIME_MIN
    assert Frontiers(2, {0: 50, 1: 70}).least == 50
    assert Frontiers(2, {0: 50, 1: 70}).highest == 70
    assert Frontiers(0, {}).least == TIME_MIN


def test_row_of_unknown_shard_has_the_least_frontier() -> None:
    assert Frontiers(2, {0: 50, 1: 70}).of(None) == 50
    assert Frontiers(2, {0: 50, 1: 70}).of(1) == 70
    assert Frontiers(2, {0: 50}).of(1) == TIME_MIN


@pytest.mark.parametrize("clock_us", [TIME_MIN, 0, 10**15])
def test_row_without_a_frontier_has_no_age(clock_us: int) -> None:
    status = Frontiers(0, {}).status(TIME_MIN, TIME_MAX, clock_us, TIME_MAX)
    assert status is ReadStatus.OUTSIDE_MAX_AGE
