"""Calls of SavedModels: shapes, bytes, rows that throw, calls that hang, memory that runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.called_models import dense_model, save, throwing_model
from tidemill.features.errors import InputError, ModelError
from tidemill.serving.models.saved_model import Limits, SavedModel
from tidemill.serving.models.tensorflow_start import load_tensorflow

WIDTH = 5


def features(rows: int) -> pa.RecordBatch:
    values = np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    return pa.RecordBatch.from_arrays([column], names=["x"])


def numbers(values: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"x": pa.array(values, pa.float64())})


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    return SavedModel(dense_model(tmp_path_factory.mktemp("dense") / "model"))


@pytest.fixture(scope="module")
def throwing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return throwing_model(tmp_path_factory.mktemp("throwing") / "model")


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1_000, 4_096, 4_097, 10_000])
def test_outputs_are_those_of_tensorflow_s_call_in_the_padded_shape(
    dense: SavedModel, rows: int
) -> None:
    batch = features(rows)
    found = dense.call(batch)
    values = batch.column("x").flatten().to_numpy().reshape(rows, WIDTH)
    tf = load_tensorflow()
    function = tf.saved_model.load(str(dense.directory)).signatures["serving_default"]
    scores, hidden = [], []
    for start in range(0, rows, 4_096):
        piece = values[start : start + 4_096]
        padded = dense.bucket(len(piece))
        full = piece[np.minimum(np.arange(padded), len(piece) - 1)]
        out = function(x=tf.constant(full))
        scores.append(out["score"].numpy()[: len(piece)])
        hidden.append(out["hidden"].numpy()[: len(piece)])
        assert (found.padded_rows[start : start + 4_096] == padded).all()
        assert (found.call_rows[start : start + 4_096] == np.arange(len(piece))).all()
    assert found.outputs.schema == dense.outputs
    assert found.outputs.column("score").to_numpy().tobytes() == np.concatenate(scores).tobytes()
    flat = found.outputs.column("hidden").flatten().to_numpy()
    assert flat.tobytes() == np.concatenate(hidden).tobytes()
    assert found.rejected == ()


def test_an_empty_batch_has_the_outputs_types(dense: SavedModel) -> None:
    found = dense.call(features(4).slice(4))
    assert found.outputs.schema == dense.outputs
    assert found.outputs.num_rows == 0


def test_nothing_is_traced_or_warmed_while_rows_wait(tmp_path: Path) -> None:
    tf = load_tensorflow()
    traced = []

    def twice(x: Any) -> dict[str, Any]:
        traced.append(x.shape)
        return {"y": x * 2.0}

    model = SavedModel(save(tmp_path / "model", twice, tf.TensorSpec([None], tf.float64, "x")))
    assert model.outputs == pa.schema([("y", pa.float64())])
    before = len(traced)
    for rows in (1, 9, 200, 5_000):
        model.call(numbers(np.zeros(rows)))
    assert len(traced) == before


def test_rows_that_throw_are_rejected_alone(throwing: Path) -> None:
    model = SavedModel(throwing)
    values = np.arange(5_000.0)
    bad = [0, 17, 18, 4_095, 4_096, 4_999]
    clean = model.call(numbers(values)).outputs.column("root").to_numpy().copy()
    values[bad] = -1.0
    found = model.call(numbers(values))
    assert [one.row for one in found.rejected] == bad
    assert {one.reason for one in found.rejected} == {"failed"}
    assert "x is negative" in found.rejected[0].message
    column = found.outputs.column("root")
    assert np.flatnonzero(column.is_null()).tolist() == bad
    good = np.setdiff1d(np.arange(5_000), bad)
    assert column.take(pa.array(good)).to_numpy().tobytes() == clean[good].tobytes()


def test_a_thousand_bad_rows_of_a_million(throwing: Path) -> None:
    model = SavedModel(throwing)
    values = np.random.default_rng(3).uniform(0, 9, 1_000_000)
    bad = np.sort(np.random.default_rng(4).choice(len(values), 1_000, replace=False))
    clean = model.call(numbers(values)).outputs.column("root").to_numpy().copy()
    values[bad] *= -1.0
    found = model.call(numbers(values))
    assert [one.row for one in found.rejected] == bad.tolist()
    good = np.setdiff1d(np.arange(len(values)), bad)
    column = found.outputs.column("root").take(pa.array(good))
    assert column.to_numpy().tobytes() == clean[good].tobytes()


def test_how_many_calls_it_takes_to_find_bad_rows(throwing: Path) -> None:
    model = SavedModel(throwing)
    made = []
    run = model._calls.run
    model._calls.run = lambda call: (made.append(1), run(call))[1]  # type: ignore[method-assign]
    values = np.ones(4_096)
    values[[5, 3_000]] = -1.0
    assert len(model.call(numbers(values)).rejected) == 2
    assert len(made) <= 2 * 2 * 12 + 2


def test_a_batch_in_which_every_row_throws(throwing: Path) -> None:
    found = SavedModel(throwing).call(numbers([-1.0, -2.0, -3.0]))
    assert [one.row for one in found.rejected] == [0, 1, 2]
    assert found.outputs.column("root").null_count == 3


def test_nulls_and_nans_are_rejected_by_mask(throwing: Path, tmp_path: Path) -> None:
    nan = float("nan")
    column = pa.array([1.0, None, nan, -1.0, 4.0])
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    model = SavedModel(throwing, limits=Limits(no_nan=("x",)))
    found = model.call(batch)
    assert [(one.row, one.reason) for one in found.rejected] == [
        (1, "null"), (2, "not_a_number"), (3, "failed"),
    ]  # fmt: skip
    tf = load_tensorflow()
    log = save(
        tmp_path / "log", lambda x: {"y": tf.math.log(x)}, tf.TensorSpec([None], tf.float64, "x")
    )
    model = SavedModel(log, limits=Limits(no_nan=("y",)), warm_up=numbers([1.0]))
    found = model.call(numbers([1.0, -1.0, 2.0]))
    assert [(one.row, one.reason) for one in found.rejected] == [(1, "not_a_number")]
    assert found.outputs.column("y").to_pylist()[1] is None


def test_a_wrong_type_is_the_batch_s_fault_and_no_row_s(dense: SavedModel) -> None:
    with pytest.raises(InputError, match="the batch has no such column"):
        dense.call(numbers([1.0]).rename_columns(["z"]))
    with pytest.raises(InputError, match="signature takes float32"):
        dense.call(numbers([1.0]))


class Hanging:
    """Replaces a model's function: calls with a value wait until the test ends."""

    def __init__(self, function: Callable[..., Any], value: float) -> None:
        self._function, self._value = function, value
        self.let_go = threading.Event()
        self.calls = 0

    def __call__(self, **tensors: Any) -> Any:
        self.calls += 1
        if (tensors["x"].numpy() == self._value).any():
            self.let_go.wait(60)
        return self._function(**tensors)


def test_a_row_that_hangs_is_found_and_rejected(throwing: Path) -> None:
    model = SavedModel(throwing, limits=Limits(timeout_s=0.5, tries=2))
    hanging = Hanging(model._function, 13.0)
    model._function = hanging
    try:
        found = model.call(numbers([1.0, 13.0, 4.0]))
    finally:
        hanging.let_go.set()
    assert [(one.row, one.reason) for one in found.rejected] == [(1, "timed_out")]
    assert "did not end within 0.5 s, 2 times" in found.rejected[0].message
    root = found.outputs.column("root").to_pylist()
    assert root == [pytest.approx(1.1), None, pytest.approx(2.2)]


def test_a_call_that_hangs_once_is_made_again(throwing: Path) -> None:
    model = SavedModel(throwing, limits=Limits(timeout_s=2.0, tries=2))
    function, first = model._function, threading.Event()
    let_go = threading.Event()

    def hangs_once(**tensors: Any) -> Any:
        if not first.is_set():
            first.set()
            let_go.wait(60)
        return function(**tensors)

    model._function = hangs_once
    found = model.call(numbers([4.0]))
    let_go.set()
    assert found.rejected == ()
    assert found.outputs.column("root").to_pylist() == [pytest.approx(2.2)]


def test_batches_are_halved_where_memory_runs_out(throwing: Path) -> None:
    tf = load_tensorflow()
    model = SavedModel(throwing)
    function = model._function

    def small(**tensors: Any) -> Any:
        if tensors["x"].shape[0] > 64:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return function(**tensors)

    model._function = small
    values = np.arange(300.0)
    values[100] = -1.0
    found = model.call(numbers(values))
    assert [one.row for one in found.rejected] == [100]
    assert found.padded_rows.tolist() == [64] * 300
    expected = np.sqrt(np.delete(np.arange(300.0), 100)) * 1.1
    assert found.outputs.column("root").drop_null().to_numpy() == pytest.approx(expected)

    def never(**tensors: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    model._function = never
    with pytest.raises(ModelError, match="8 rows, the fewest, runs out of memory"):
        model.call(numbers([1.0]))


def test_what_is_no_model_is_said(tmp_path: Path, throwing: Path) -> None:
    with pytest.raises(ModelError, match=r"no SavedModel: there is no saved_model\.pb"):
        SavedModel(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x00nonsense")
    with pytest.raises(ModelError, match="cannot be loaded"):
        SavedModel(tmp_path)
    with pytest.raises(ModelError, match="no signature 'serve'; "):
        SavedModel(throwing, "serve")
    with pytest.raises(ModelError, match="takes no row of warm_up"):
        SavedModel(throwing, warm_up=numbers([-1.0]))
    with pytest.raises(ModelError, match=r"no input or output 'rot', .* did you mean 'root'"):
        SavedModel(throwing, limits=Limits(no_nan=("rot",)))
    with pytest.raises(ModelError, match="ascending numbers of rows"):
        SavedModel(throwing, buckets=[8, 4])


def test_outputs_that_are_not_by_row_are_errors(tmp_path: Path) -> None:
    tf = load_tensorflow()
    spec = tf.TensorSpec([None], tf.float64, "x")
    whole = save(tmp_path / "whole", lambda x: {"sum": tf.reduce_sum(x)}, spec)
    with pytest.raises(ModelError, match="one value, and not one a row"):
        SavedModel(whole)
    less = save(tmp_path / "less", lambda x: {"first": x[:1]}, spec)
    with pytest.raises(ModelError, match="1 rows for a call of 8"):
        SavedModel(less)


def test_ragged_sparse_and_texts_go_in_and_come_out(tmp_path: Path) -> None:
    tf = load_tensorflow()

    def mixed(r: Any, s: Any, t: Any) -> dict[str, Any]:
        by_row = tf.reduce_sum(r, axis=1) + tf.sparse.reduce_sum(s, axis=1)
        return {
            "total": tf.ensure_shape(by_row, [None]),
            "twice": r * 2,
            "same": s,
            "upper": tf.strings.upper(t),
            "words": tf.strings.split(t),
            "is_long": tf.strings.length(t) > 3,
        }

    folder = save(
        tmp_path / "model",
        mixed,
        tf.RaggedTensorSpec([None, None], tf.float32, 1, tf.int64),
        tf.SparseTensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.string, "t"),
    )
    model = SavedModel(folder)
    assert model.outputs is None  # nobody can tell yet what its inputs are
    batch = pa.RecordBatch.from_pydict(
        {
            "r": pa.array([[1.0, 2.0], [], None, [3.0]], pa.list_(pa.float32())),
            "s": pa.array(
                [[(0, 1.0)], [(70, 2.0), (3, 1.0)], [], []], pa.map_(pa.int64(), pa.float32())
            ),
            "t": pa.array(["a b", "", "x", "long word é"]),
        }
    )
    found = model.call(batch)
    assert [(one.row, one.reason) for one in found.rejected] == [(2, "null")]
    assert found.outputs.to_pydict() == {
        "is_long": [False, False, None, True],
        "same": [[(0, 1.0)], [(3, 1.0), (70, 2.0)], None, []],
        "total": [4.0, 3.0, None, 3.0],
        "twice": [[2.0, 4.0], [], None, [6.0]],
        "upper": [b"A B", b"", None, "LONG WORD é".encode()],
        "words": [[b"a", b"b"], [], None, [b"long", b"word", "é".encode()]],
    }


def test_threads_share_a_model(dense: SavedModel) -> None:
    batches = [features(rows) for rows in range(1, 40)]
    alone = [dense.call(batch).outputs for batch in batches]
    found: list[pa.RecordBatch | None] = [None] * len(batches)

    def work(first: int) -> None:
        for n in range(first, len(batches), 4):
            found[n] = dense.call(batches[n]).outputs

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_xla_compiles_each_shape_once_and_differs_in_last_bits_alone(tmp_path: Path) -> None:
    folder = dense_model(tmp_path)
    plain = SavedModel(folder, buckets=(8, 64))
    compiled = SavedModel(folder, buckets=(8, 64), xla=True)
    assert compiled._function.experimental_get_tracing_count() == 2
    values = np.random.default_rng(4).normal(size=(100, 5)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 5)
    batch = pa.RecordBatch.from_pydict({"x": column})
    one, other = (model.call(batch).outputs for model in (plain, compiled))
    assert one.schema == other.schema
    for name in one.schema.names:
        first, second = (
            np.asarray(found.column(name).flatten() if name == "hidden" else found.column(name))
            for found in (one, other)
        )
        np.testing.assert_allclose(first, second, atol=1e-6, rtol=0)
    assert compiled.call(batch).outputs.equals(other)
    assert compiled._function.experimental_get_tracing_count() == 2


def test_what_xla_does_not_compile_is_said(tmp_path: Path) -> None:
    tf = load_tensorflow()

    def length(text: Any) -> dict[str, Any]:
        return {"length": tf.strings.length(text)}

    texts = save(tmp_path / "texts", length, tf.TensorSpec([None], tf.string, "text"))
    with pytest.raises(ModelError, match="XLA compiles no texts, and 'text' of the signature"):
        SavedModel(texts, xla=True)

    def digits(x: Any) -> dict[str, Any]:
        return {"digits": tf.strings.length(tf.strings.as_string(x))}

    inside = save(tmp_path / "inside", digits, tf.TensorSpec([None], tf.int64, "x"))
    assert SavedModel(inside).outputs is not None
    with pytest.raises(ModelError, match=r"XLA does not compile the signature .*: .*AsString"):
        SavedModel(inside, xla=True)


def test_no_model_is_loaded_where_tensorflow_compiles_by_itself(tmp_path: Path) -> None:
    tf = load_tensorflow()
    folder = dense_model(tmp_path)
    tf.config.optimizer.set_jit(True)
    try:
        with pytest.raises(ModelError, match="compiles with XLA by itself in this process"):
            SavedModel(folder)
    finally:
        tf.config.optimizer.set_jit(False)
    SavedModel(folder)
