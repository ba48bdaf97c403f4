"""Columns as tensors: the table of `signature`, every type, and memory that TensorFlow refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.called_models import save
from tidemill.features.errors import InputError
from tidemill.serving.models.feed import ALIGNMENT, Feed, aligned
from tidemill.serving.models.signature import Signature, TensorSpec
from tidemill.serving.models.tensorflow_start import load_tensorflow

ROWS = 8


def fed(column: pa.Array, *specs: TensorSpec, rows: int = ROWS, **how: Any) -> dict[str, Any]:
    """Return the tensors of a batch with the column ``x``."""
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    feed = Feed(Signature("s", specs, ()).bind(batch.schema), **how)
    assert not feed.unusable(batch)
    return feed.tensors(batch, rows)


def number(dtype: str) -> TensorSpec:
    return TensorSpec("x", dtype, (None,))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.float32()])
def test_a_number_goes_into_the_dtype_of_its_type(kind: pa.DataType) -> None:
    tensor = fed(pa.array([1, 0, 3], kind), number(np.dtype(kind.to_pandas_dtype()).name))[
        "x"
    ].numpy()
    assert tensor.dtype == kind.to_pandas_dtype()
    assert tensor.tolist() == [1, 0, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.int32(), "int64"), (pa.uint32(), "int64"), (pa.int32(), "float64"),
        (pa.int16(), "float32"), (pa.float32(), "float64"), (pa.float16(), "float32"),
        (pa.bool_(), "float32"), (pa.bool_(), "bool"), (pa.uint8(), "uint16"),
    ],
)  # fmt: skip
def test_a_number_goes_into_a_dtype_that_holds_all_its_values(
    kind: pa.DataType, dtype: str
) -> None:
    column = pa.array([1, 0, 1], pa.int8()).cast(kind)
    assert fed(column, number(dtype))["x"].numpy()[:3].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.int64(), "int32"), (pa.int64(), "float64"), (pa.float64(), "float32"),
        (pa.int32(), "float32"), (pa.uint64(), "int64"), (pa.int8(), "uint8"),
        (pa.float32(), "int64"), (pa.string(), "float32"), (pa.int64(), "string"),
        (pa.timestamp("us"), "int64"), (pa.decimal128(9, 2), "float64"), (pa.int64(), "bool"),
    ],
)  # fmt: skip
def test_no_number_is_changed_unasked(kind: pa.DataType, dtype: str) -> None:
    with pytest.raises(InputError, match=r"'x' is .* and the signature takes"):
        fed(pa.nulls(0, kind), number(dtype), rows=0)


def test_numbers_are_rounded_where_that_is_asked_for() -> None:
    exact = 0.1
    tensor = fed(pa.array([exact]), number("float32"), round_numbers=True)["x"]
    assert tensor.numpy()[0] == np.float32(exact)
    with pytest.raises(InputError, match="round_numbers=True"):
        fed(pa.array([exact]), number("float32"))
    with pytest.raises(InputError):
        fed(pa.array([1 << 40]), number("int32"), round_numbers=True)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_texts_are_bytes(kind: pa.DataType) -> None:
    texts = ["", "0\x00", "né", "e" * 100_000]
    column = pa.array(texts).cast(kind)
    tensor = fed(column, number("string"), rows=4)["x"]
    assert tensor.numpy().tolist() == [text.encode() for text in texts]


def test_fixed_size_lists_are_dimensions() -> None:
    inner = pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int64()), 3)
    column = pa.FixedSizeListArray.from_arrays(inner, 2)
    spec = TensorSpec("x", "int64", (None, 2, 3))
    assert fed(column, spec, rows=4)["x"].numpy().tolist() == [
        [[0, 1, 2], [3, 4, 5]], *[[[6, 7, 8], [9, 10, 11]]] * 3,
    ]  # fmt: skip
    assert fed(column.slice(1), spec, rows=1)["x"].numpy().tolist() == [[[6, 7, 8], [9, 10, 11]]]
    with pytest.raises(InputError, match=r"a tensor of shape \(rows, 2, 3\)"):
        fed(column, TensorSpec("x", "int64", (None, 2, 4)))


def test_a_number_is_a_dimension_of_one_where_the_signature_has_it() -> None:
    column = pa.array([1.5, 2.5])
    tensor = fed(column, TensorSpec("x", "float64", (None, 1)), rows=2)["x"]
    assert tensor.numpy().tolist() == [[1.5], [2.5]]
    assert fed(column, TensorSpec("x", "float64", None), rows=2)["x"].shape == (2,)


def test_lists_of_one_length_are_dense_without_row_splits() -> None:
    spec = TensorSpec("x", "int64", (None, None))
    column = pa.array([[9], [1, 2], [3, 4]])
    assert fed(column.slice(1), spec, rows=2)["x"].numpy().tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="lists of 1 to 2 elements"):
        fed(column, spec)


def test_lists_are_ragged_with_row_splits() -> None:
    column = pa.array([[[7]], [[1, 2], []], [[3]]]).slice(1)
    splits = [TensorSpec("x_1", "int64", (None,)), TensorSpec("x_2", "int32", (None,))]
    tensors = fed(column, number("int64"), *splits, rows=3)
    tf = load_tensorflow()
    offsets = [tensors["x_1"], tf.cast(tensors["x_2"], tf.int64)]
    ragged = tf.RaggedTensor.from_nested_row_splits(tensors["x"], offsets)
    assert ragged.to_list() == [[[1, 2], []], [[3]], [[3]]]


def test_maps_are_sparse() -> None:
    column = pa.array([[(9, 9.0)], [(4, 1.0), (0, 2.0)], []], pa.map_(pa.int64(), pa.float64()))
    specs = (
        TensorSpec("x", "int64", (None, 2)),
        TensorSpec("x_1", "float64", (None,)),
        TensorSpec("x_2", "int64", (2,)),
    )
    tensors = fed(column.slice(1), *specs, rows=3)
    tf = load_tensorflow()
    sparse = tf.SparseTensor(tensors["x"], tensors["x_1"], tensors["x_2"])
    dense = [[2.0, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert tf.sparse.to_dense(sparse).numpy().tolist() == dense
    twice = pa.array([[(1, 1.0), (1, 2.0)]], column.type)
    with pytest.raises(InputError, match="one twice"):
        fed(twice, *specs)


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        (pa.array([1, None, 3]), [1]),
        (pa.array([[1], [2, None], None, []]), [1, 2]),
        (pa.array([None, [1, None]], pa.list_(pa.int64(), 2)), [0, 1]),
        (pa.array([[9, 9], [1, None]], pa.list_(pa.int64(), 2)).slice(1), [0]),
        (pa.array([[], [(1, None)], None], pa.map_(pa.int64(), pa.int64())), [1, 2]),
        (pa.array(["a", None]).dictionary_encode(), [1]),
        (pa.nulls(2), [0, 1]),
    ],
)
def test_a_null_anywhere_in_a_row_is_that_row_s(column: pa.Array, rows: list[int]) -> None:
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    specs = [TensorSpec("x", "int64", None)]
    if pa.types.is_map(column.type):
        specs = [
            TensorSpec("x", "int64", (None, 2)),
            TensorSpec("x_1", "int64", (None,)),
            TensorSpec("x_2", "int64", (2,)),
        ]
    feed = Feed(Signature("s", tuple(specs), ()).bind(batch.schema))
    assert [one.row for one in feed.unusable(batch)] == rows


def test_a_signature_says_what_is_missing_and_what_is_near() -> None:
    with pytest.raises(InputError, match=r"takes 'amount', float32 .* did you mean 'amonut'"):
        Signature("s", (TensorSpec("amount", "float32", (None,)),), ()).bind(
            pa.schema([("amonut", pa.float32())])
        )
    with pytest.raises(InputError, match="2 columns 'x'"):
        Signature("s", (number("int64"),), ()).bind(
            pa.schema([("x", pa.int64()), ("x", pa.int64())])
        )


def test_memory_is_aligned() -> None:
    for dtype in (np.float64, np.int8, np.float16):
        for shape in ((0,), (3,), (5, 7)):
            array = aligned(shape, dtype)
            assert array.shape == shape
            assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


UNALIGNED = """
import numpy as np, pyarrow as pa
from tidemill.serving.models.feed import Feed
from tidemill.serving.models.signature import Signature, TensorSpec
signature = Signature("s", (TensorSpec("x", "float64", (None,)),), ())
whole = pa.array(np.arange(1000.0))
for start in range(64):
    batch = pa.RecordBatch.from_arrays([whole.slice(start, 512)], names=["x"])
    tensor = Feed(signature.bind(batch.schema)).tensors(batch, 512)["x"]
    assert (tensor.numpy() == np.arange(start, start + 512.0)).all()
print("all right")
"""


def test_slices_at_any_place_do_not_end_the_process(tmp_path: Path) -> None:
    # TensorFlow aborts when it gets memory that is not aligned: so in another process.
    command = [sys.executable, "-c", UNALIGNED]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout == "all right\n", done.stderr


def ragged_sum(tf: Any) -> tuple[Callable[..., Any], list[Any]]:
    def total(r: Any, s: Any, x: Any) -> dict[str, Any]:
        by_row = tf.reduce_sum(r, axis=1) + tf.sparse.reduce_sum(s, axis=1)
        return {"total": tf.ensure_shape(by_row, [None]) + x, "twice": r * 2, "same": s}

    return total, [
        tf.RaggedTensorSpec([None, None], tf.float32, 1, tf.int64),
        tf.SparseTensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.float32, "x"),
    ]


def test_what_tensorflow_makes_of_ragged_and_sparse_signatures(tmp_path: Path) -> None:
    tf = load_tensorflow()
    function, specs = ragged_sum(tf)
    folder = save(tmp_path / "model", function, *specs)
    loaded = tf.saved_model.load(str(folder)).signatures["serving_default"]
    signature = Signature.of("serving_default", loaded)
    assert [one.name for one in signature.inputs] == ["r", "r_1", "s", "s_1", "s_2", "x"]
    assert signature.outputs == ("same", "total", "twice")
