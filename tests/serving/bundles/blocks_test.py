from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tidemill.features.definitions import BOOL, FLOAT64, INT64
from tidemill.features.kernel.columns import typed_array
from tidemill.features.models.preprocessing import ModelInput
from tidemill.serving.bundles.blocks import BlockFeed, Blocks, Layout, MatrixPacking

INPUTS = (
    ModelInput("shop", "string"),
    ModelInput("grams", INT64),
    ModelInput("metres", FLOAT64),
    ModelInput("a__mean", FLOAT64),
    ModelInput("a__count", INT64),
    ModelInput("a__any", BOOL),
    ModelInput("is_new", BOOL),
    ModelInput("a__sum", FLOAT64),
)
LAYOUT = Layout.of(INPUTS)
# The matrix has a column that is no input, and another order than the inputs have.
MATRIX = {
    "a__sum": FLOAT64,
    "a__until": "timestamp",
    "a__any": BOOL,
    "a__mean": FLOAT64,
    "a__count": INT64,
}


def _matrix(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    words = random.integers(-(2**63), 2**63 - 1, (rows, len(MATRIX)))
    words[:, [*MATRIX].index("a__any")] &= 1
    floats = words.view(np.float64)
    for name in ("a__sum", "a__mean"):
        column = [*MATRIX].index(name)
        floats[:, column] = random.choice([0.0, -0.0, 1e-310, np.nan, np.inf, 0.1], rows)
    return words, (random.random((rows, len(MATRIX))) < 0.3).astype(np.uint8)


def _own(rows: int, seed: int) -> dict[str, pa.Array]:
    random = np.random.default_rng(seed)

    def null() -> np.ndarray:
        return random.random(rows) < 0.3

    return {
        "shop": pa.array(random.choice(["", "süd", "x"], rows), pa.string(), mask=null()),
        "grams": pa.array(random.integers(-(2**63), 2**63 - 1, rows), mask=null()),
        "metres": pa.array(random.normal(size=rows), mask=null()),
        "is_new": pa.array(random.random(rows) < 0.5, mask=null()),
    }


def _columns(words: np.ndarray, nulls: np.ndarray) -> dict[str, pa.Array]:
    return {
        name: typed_array(
            dtype, np.ascontiguousarray(words[:, index]), nulls[:, index].astype(np.bool_)
        )
        for index, (name, dtype) in enumerate(MATRIX.items())
    }


def _assert_equal(found: Blocks, expected: Blocks) -> None:
    for name in ("float64", "int64", "null"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if name == "float64":
            assert np.isnan(one).tolist() == np.isnan(other).tolist()
            one, other = np.nan_to_num(one, nan=0.0), np.nan_to_num(other, nan=0.0)
        assert one.tobytes() == other.tobytes(), name
    assert found.text.tolist() == expected.text.tolist()


@pytest.mark.parametrize("rows", [0, 1, 9, 500])
def test_a_matrix_gives_what_its_columns_give(rows: int) -> None:
    words, nulls = _matrix(rows, seed=rows)
    own = _own(rows, seed=rows)
    packed = MatrixPacking(LAYOUT, [*MATRIX]).pack(words, nulls, own)
    _assert_equal(packed, LAYOUT.pack(pa.RecordBatch.from_pydict(own | _columns(words, nulls))))


def test_inputs_may_all_be_of_the_request_or_all_features() -> None:
    words, nulls = _matrix(5, seed=1)
    own = {name: _own(5, seed=1)[name] for name in ("grams", "shop")}
    none = Layout.of([one for one in INPUTS if one.name in own])
    blocks = MatrixPacking(none, [*MATRIX]).pack(words, nulls, own)
    assert (blocks.float64.shape, blocks.int64.shape, blocks.text.shape) == ((5, 0), (5, 1), (5, 1))
    features = Layout.of([one for one in INPUTS if one.name in MATRIX])
    blocks = MatrixPacking(features, [*MATRIX]).pack(words, nulls, {})
    assert (blocks.float64.shape, blocks.int64.shape, blocks.text.shape) == ((5, 2), (5, 2), (5, 0))


def test_the_last_row_is_repeated_and_the_rows_stay() -> None:
    blocks = LAYOUT.pack(pa.RecordBatch.from_pydict(_own(3, 2) | _columns(*_matrix(3, 2))))
    tensors = BlockFeed().tensors(blocks, 8)
    for name, tensor in tensors.items():
        found, given = tensor.numpy(), getattr(blocks, name)
        if name == "text":
            given = np.vectorize(str.encode, otypes=[object])(given)
        expected = np.concatenate([given, *[given[-1:]] * 5])
        np.testing.assert_array_equal(found, expected)
    assert [*tensors] == ["float64", "int64", "null", "text"]


def test_rows_are_cut_and_taken() -> None:
    blocks = LAYOUT.pack(pa.RecordBatch.from_pydict(_own(9, 3) | _columns(*_matrix(9, 3))))
    _assert_equal(blocks.slice(2, 4), blocks.take(pa.array([2, 3, 4, 5])))
    assert blocks.slice(2, 4).num_rows == 4


def test_a_row_of_zeros_is_of_every_block() -> None:
    zeros = LAYOUT.pack(LAYOUT.zeros())
    assert zeros.num_rows == 1
    assert zeros.float64.tolist() == [[0.0] * 3]
    assert zeros.int64.tolist() == [[0] * 4]
    assert zeros.null.tolist() == [[False] * 4]
    assert zeros.text.tolist() == [[""]]
