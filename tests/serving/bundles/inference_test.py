from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support import trained_bundle as given
from tidemill.features.errors import InputError
from tidemill.pipelines.training.fit import predictor
from tidemill.pipelines.training.transform import Transformer
from tidemill.serving.bundles.blocks import BlockFeed, Blocks
from tidemill.serving.bundles.inference import Scorer, shared_scorer
from tidemill.serving.bundles.saved_model import MODEL
from tidemill.serving.models.buckets import BUCKETS, MAX_ROWS
from tidemill.serving.models.saved_model import Outcome, SavedModel


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return shared_scorer(given.bundle())


def _batch(rows: int, seed: int = 5) -> pa.RecordBatch:
    return given.rows(rows, seed).combine_chunks().to_batches()[0]


def _hard(rows: int) -> pa.RecordBatch:
    """Rows of values that show a cast in the wrong place or of the wrong kind."""
    batch = _batch(rows)
    random = np.random.default_rng(3)
    floats = random.normal(size=rows) * 10.0 ** random.integers(-50, 38, rows)
    whole = random.integers(-(2**63), 2**63 - 1, rows)
    whole[0] = 2**62 + 2**38 + 1
    schema = batch.schema
    return batch.set_column(
        schema.get_field_index("metres"), "metres", pa.array(floats, mask=random.random(rows) < 0.1)
    ).set_column(
        schema.get_field_index("grams"), "grams", pa.array(whole, mask=random.random(rows) < 0.1)
    )


@pytest.mark.parametrize("rows", [1, 3, 8, 100, 1000, MAX_ROWS + 5])
def test_batch_and_saved_model_transform_to_the_same_bytes(scorer: Scorer, rows: int) -> None:
    batch = _hard(rows)
    in_batch = Transformer(given.bundle().transform_graph)(batch)
    served = scorer.transform(batch)
    assert served.keys() == in_batch.keys()
    for name, array in in_batch.items():
        assert served[name].dtype == array.dtype
        assert served[name].tobytes() == array.tobytes(), name


def test_rows_transform_alike_alone_and_in_a_crowd(scorer: Scorer) -> None:
    batch = _hard(300)
    together = scorer.transform(batch)
    for row in (0, 7, 255, 299):
        alone = scorer.transform(batch.slice(row, 1))
        for name, array in together.items():
            assert alone[name].tobytes() == array[row : row + 1].tobytes(), name


def test_the_cast_to_float32_is_the_one_in_the_saved_model(scorer: Scorer) -> None:
    batch = _batch(8)
    metres = np.array([0.1, 1e-40, -1e-45, 5e-324, 2.0**-126, 3.4e38, 16777217.0, -0.0])
    batch = batch.set_column(batch.schema.get_field_index("metres"), "metres", pa.array(metres))
    found = scorer.transform(batch)["as_it_is"][:, 0]
    expected = np.array([0.1, 0, 0, 0, 2.0**-126, 3.4e38, 16777216.0, 0], np.float32)
    assert found.tolist() == expected.tolist()


def test_equal_shapes_give_equal_bytes_whatever_stands_beside(scorer: Scorer) -> None:
    batch = _batch(1000)
    scores = scorer.score(batch)
    assert scores.dtype == np.float32
    assert scores.shape == (1000,)
    assert ((scores > 0) & (scores < 1)).all()
    assert scorer.score(batch).tobytes() == scores.tobytes()
    # 513 rows are padded to the same 1,024.
    assert scorer.score(batch.slice(0, 513)).tobytes() == scores[:513].tobytes()
    assert scorer.score(batch.slice(999, 1)) == pytest.approx(scores[999:], rel=1e-5)


def test_scores_are_the_trained_models(scorer: Scorer) -> None:
    import keras

    batch = _batch(64)
    graph = given.bundle().transform_graph
    model = given.build_model(graph.model_spec(0.01, 1))
    restored = scorer._model._loaded.weights
    for variable, saved in zip(model.variables, restored, strict=True):
        variable.assign(keras.ops.convert_to_tensor(saved.numpy()))
    expected = predictor(model)(Transformer(graph)(batch))
    np.testing.assert_allclose(scorer.score(batch), expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [8, 64, 1024, MAX_ROWS])
def test_transform_then_model_give_the_bytes_of_the_whole(scorer: Scorer, rows: int) -> None:
    batch = _hard(rows)
    parts = pa.RecordBatch.from_pydict(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
            if array.ndim == 2
            else pa.array(array)
            for name, array in scorer.transform(batch).items()
        }
    )
    model = SavedModel(given.bundle().model_directory, MODEL)
    assert model.signature.outputs == ("score",)
    scores = model.call(parts).outputs.column("score").to_numpy()
    assert scores.tobytes() == scorer.score(batch).tobytes()


def test_every_shape_was_called_before_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    tensors = BlockFeed.tensors

    def seen(self: BlockFeed, batch: Blocks, rows: int) -> dict[str, Any]:
        shapes.append(rows)
        return tensors(self, batch, rows)

    monkeypatch.setattr(BlockFeed, "tensors", seen)
    fresh = Scorer(given.bundle())
    assert shapes == [*BUCKETS]
    fresh.score(_batch(3), [1, 2])
    assert shapes == [*BUCKETS, 8, 8]


def _called(scorer: Scorer, parts: tuple[int, ...]) -> Outcome:
    return scorer.call(_batch(sum(parts) or 1).slice(0, sum(parts)), parts)


def _padded_rows(scorer: Scorer, *parts: int) -> Any:
    return _called(scorer, parts).padded_rows


def _call_rows(scorer: Scorer, *parts: int) -> Any:
    return _called(scorer, parts).call_rows


def test_padded_shapes_are_powers_of_two_from_8_to_4096(scorer: Scorer) -> None:
    assert _padded_rows(scorer, 1).tolist() == [8]
    assert _padded_rows(scorer, 9).tolist() == [16] * 9
    long = _padded_rows(scorer, 2 * MAX_ROWS + 3)
    assert long.tolist() == [MAX_ROWS] * (2 * MAX_ROWS) + [8] * 3
    assert _padded_rows(scorer, 0).tolist() == []


def test_rows_of_calls_count_from_0_in_each_call(scorer: Scorer) -> None:
    assert _call_rows(scorer, 2, 0, 3).tolist() == [0, 1, 0, 1, 2]
    assert _call_rows(scorer, MAX_ROWS + 2).tolist() == [*range(MAX_ROWS), 0, 1]
    assert _call_rows(scorer, 0).tolist() == _call_rows(scorer).tolist() == []


def test_a_long_batch_is_scored_in_several_calls(scorer: Scorer) -> None:
    batch = _batch(MAX_ROWS + 100)
    scores = scorer.score(batch)
    assert scores[:MAX_ROWS].tobytes() == scorer.score(batch.slice(0, MAX_ROWS)).tobytes()
    assert scores[MAX_ROWS:].tobytes() == scorer.score(batch.slice(MAX_ROWS)).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_batch_are_scored_as_if_each_were_alone(scorer: Scorer, seed: int) -> None:
    chance = random.Random(seed)
    parts = [chance.choice([0, 1, 3, 7, 8, 9, 40, MAX_ROWS + 11][: 8 - seed]) for _ in range(12)]
    batch, start = _batch(sum(parts)), 0
    together, padded = scorer.score(batch, parts), _padded_rows(scorer, *parts)
    assert len(together) == len(padded) == batch.num_rows
    for rows in parts:
        alone = scorer.score(batch.slice(start, rows))
        assert together[start : start + rows].tobytes() == alone.tobytes()
        assert (padded[start : start + rows] == _padded_rows(scorer, rows)).all()
        start += rows


def test_an_empty_batch_has_no_scores(scorer: Scorer) -> None:
    assert scorer.score(_batch(8).slice(0, 0)).tolist() == []
    with pytest.raises(InputError, match="'grams' is not among the columns"):
        scorer.score(_batch(8).slice(0, 0).drop_columns(["grams"]))


def test_stamps_say_what_the_bytes_depend_on(scorer: Scorer) -> None:
    import tensorflow as tf

    bundle = given.bundle()
    stamps = scorer.stamps
    assert (stamps.bundle, stamps.transform) == (bundle.version, bundle.transform_hash)
    assert stamps.features == given.PROJECT.hash
    assert stamps.tensorflow == tf.__version__
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    assert stamps.device.startswith(f"{kind} ")
    assert stamps.xla is False


def test_numpy_columns_and_tables_score_like_arrow_batches(scorer: Scorer) -> None:
    batch = _batch(50)
    expected = scorer.score(batch).tobytes()
    assert scorer.score(pa.Table.from_batches([batch.slice(0, 20), batch.slice(20)])).tobytes() == (
        expected
    )
    columns: dict[str, Any] = {}
    for wanted in given.bundle().inputs:
        column = batch.column(wanted.name)
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        if wanted.dtype in ("int64", "bool"):
            filled = column.fill_null(False if wanted.dtype == "bool" else 0)
            columns[wanted.name] = np.ma.masked_array(filled.to_numpy(zero_copy_only=False), nulls)
        else:
            columns[wanted.name] = column.to_numpy(zero_copy_only=False)
    assert scorer.score(columns).tobytes() == expected


def test_a_bad_input_is_named(scorer: Scorer) -> None:
    batch = _batch(4)
    with pytest.raises(InputError, match="'metres' is not among the columns"):
        scorer.score(batch.drop_columns(["metres"]))
    place = batch.schema.get_field_index("grams")
    wrong = batch.set_column(place, "grams", pa.array([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(InputError, match="'grams' must be int64, found double"):
        scorer.score(wrong)
    columns = {name: batch.column(name) for name in batch.schema.names}
    with pytest.raises(InputError, match=r"different numbers of rows: .*'grams': 2"):
        scorer.score({**columns, "grams": columns["grams"][:2]})
    with pytest.raises(InputError, match=r"'metres' must have the shape \(rows,\)"):
        scorer.score({**columns, "metres": np.zeros((4, 1))})
    with pytest.raises(InputError, match="'metres' is no column of one type"):
        scorer.score({**columns, "metres": np.array([1, "x", 2, 3], dtype=object)})


def test_many_threads_get_the_bytes_that_one_gets(scorer: Scorer) -> None:
    batches = [_batch(rows, seed) for seed, rows in enumerate([1, 7, 40, 300, 1000] * 8)]
    expected = [scorer.score(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        found = [scores.tobytes() for scores in threads.map(scorer.score, batches)]
    assert found == expected


def test_a_process_has_one_scorer_per_bundle(scorer: Scorer) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: shared_scorer(given.bundle()), range(8)))
    assert all(one is scorer for one in found)
