"""The handler in Beam's `RunInference`, and by what it tells Beam."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from tests.support import trained_bundle as given
from tests.support.called_models import dense_model, save, throwing_model
from tidemill.features.errors import BundleError, InputError, ModelError
from tidemill.serving import bundle_handler
from tidemill.serving.bundles.inference import shared_scorer
from tidemill.serving.models.handler import REJECTED, SplitRejected, TensorFlowModelHandler
from tidemill.serving.models.saved_model import SavedModel
from tidemill.serving.models.tensorflow_start import load_tensorflow


def batch_of(values: Any) -> pa.RecordBatch:
    column = pa.array(values, pa.float64())
    return pa.RecordBatch.from_pydict(
        {"id": pa.array([f"r{n}" for n in range(len(column))]), "x": column}
    )


def test_run_inference_scores_batches(tmp_path: Path) -> None:
    folder = throwing_model(tmp_path / "model")
    batches = [batch_of([4.0, -1.0]), batch_of([]), batch_of(np.arange(5_000.0))]
    expected = [SavedModel(folder).call(one) for one in batches]

    def check(found: list[pa.RecordBatch]) -> None:
        by_rows = {one.num_rows: one for one in found}
        assert [by_rows[one.num_rows].column("id") for one in batches] == [
            one.column("id") for one in batches
        ]
        for batch, outcome in zip(batches, expected, strict=True):
            one = by_rows[batch.num_rows]
            assert one.schema.names == ["id", "root", REJECTED]
            assert one.column("root") == outcome.outputs.column("root")
            rows = np.flatnonzero(one.column(REJECTED).is_valid()).tolist()
            assert rows == [rejection.row for rejection in outcome.rejected]

    with beam.Pipeline(options=PipelineOptions()) as pipeline:
        found = (
            pipeline
            | beam.Create(batches)
            | RunInference(TensorFlowModelHandler(folder, keep=["id"]))
        )
        assert_that(found, check)


def test_rejected_rows_are_parted_from_the_others(tmp_path: Path) -> None:
    folder = throwing_model(tmp_path / "model")
    with beam.Pipeline(options=PipelineOptions()) as pipeline:
        scored, rejected = (
            pipeline
            | beam.Create([batch_of([4.0, -1.0, 9.0]), batch_of([-2.0]), batch_of([1.0])])
            | RunInference(TensorFlowModelHandler(folder, keep=["id", "x"]))
            | SplitRejected()
        )

        def is_scored(found: list[pa.RecordBatch]) -> None:
            rows = sorted(row["x"] for one in found for row in one.to_pylist())
            assert rows == [1.0, 4.0, 9.0]
            assert all(one.schema.names == ["id", "x", "root"] for one in found)

        def is_rejected(found: list[pa.RecordBatch]) -> None:
            rows = [row for one in found for row in one.to_pylist()]
            assert sorted(row["x"] for row in rows) == [-2.0, -1.0]
            assert all(row["root"] is None and row[REJECTED]["reason"] == "failed" for row in rows)

        assert_that(scored, is_scored, label="scored")
        assert_that(rejected, is_rejected, label="rejected")


def test_a_model_of_several_named_outputs(tmp_path: Path) -> None:
    handler = TensorFlowModelHandler(dense_model(tmp_path / "model"))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(10), pa.float32()), 5)
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    (found,) = handler.run_inference(batch, handler.load_model())
    assert found.schema.names == ["hidden", "score", REJECTED]
    assert found.schema.field("hidden").type == pa.list_(pa.float32(), 7)


def test_a_batch_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    handler = TensorFlowModelHandler(throwing_model(tmp_path / "model"), keep=["id"])
    model = handler.load_model()
    with pytest.raises(InputError, match="to be kept are not there: id"):
        handler.run_inference(batch_of([1.0]).select(["x"]), model)
    with pytest.raises(InputError, match="takes 'x'"):
        handler.run_inference(batch_of([1.0]).select(["id"]), model)
    with pytest.raises(ModelError, match="no inference_args"):
        handler.validate_inference_args({"training": False})


def test_outputs_may_not_hide_what_is_kept(tmp_path: Path) -> None:
    folder = throwing_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"names of kept columns.*: root"):
        TensorFlowModelHandler(folder, keep=["root"]).load_model()


def test_what_it_tells_beam(tmp_path: Path) -> None:
    handler = TensorFlowModelHandler(tmp_path)
    assert handler.should_skip_batching()
    assert handler.override_metrics()
    batch = batch_of([1.0, 2.0])
    assert handler.get_num_bytes(batch) == batch.get_total_buffer_size()
    assert handler.get_num_bytes([batch, batch]) == 2 * batch.get_total_buffer_size()
    again = pickle.loads(pickle.dumps(handler))
    assert again._model == str(tmp_path)


def test_another_model_by_a_side_input(tmp_path: Path) -> None:
    tf = load_tensorflow()
    spec = tf.TensorSpec([None], tf.float64, "x")
    folders = [
        save(tmp_path / str(factor), lambda x, by=factor: {"y": x * float(by)}, spec)
        for factor in (2, 3)
    ]
    handler = TensorFlowModelHandler(folders[0])
    assert handler.run_inference(batch_of([1.0]), handler.load_model())[0]["y"].to_pylist() == [2.0]
    handler.update_model_path(str(folders[1]))
    assert handler.run_inference(batch_of([1.0]), handler.load_model())[0]["y"].to_pylist() == [3.0]
    handler.update_model_path(None)
    assert handler._model == str(folders[1])


def test_a_bundle_takes_columns_and_gives_scores_or_what_its_transform_makes() -> None:
    bundle = given.bundle()
    scorer = shared_scorer(bundle)
    batch = given.rows(300, 6).combine_chunks().to_batches()[0]
    scores, transformed = scorer.score(batch), scorer.transform(batch)

    def check_scores(found: list[pa.RecordBatch]) -> None:
        (one,) = found
        assert one.schema.names == ["request_id", "score", REJECTED]
        assert one.column("request_id") == batch.column("request_id")
        assert one.column("score").to_numpy().tobytes() == scores.tobytes()

    def check_transformed(found: list[pa.RecordBatch]) -> None:
        (one,) = found
        assert {*one.schema.names} == {*transformed, REJECTED}
        for name, expected in transformed.items():
            column = one.column(name)
            values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
            assert values.to_numpy().tobytes() == expected.tobytes(), name

    with beam.Pipeline(options=PipelineOptions()) as pipeline:
        rows = pipeline | beam.Create([batch])
        handler = bundle_handler(bundle.directory, keep=["request_id"])
        assert_that(rows | "Score" >> RunInference(handler), check_scores, "scores")
        handler = bundle_handler(bundle.directory, "transform")
        assert_that(rows | "Transform" >> RunInference(handler), check_transformed, "transformed")


def test_what_a_bundle_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        bundle_handler(tmp_path)
    with pytest.raises(ModelError, match=r"has no signature 'transfrom'; did you mean 'transform'"):
        bundle_handler(given.bundle().directory, "transfrom").load_model()
    handler = bundle_handler(given.bundle().directory)
    batch = given.rows(3, 6).combine_chunks().to_batches()[0].drop_columns(["grams"])
    with pytest.raises(InputError, match="'grams' is not among the columns"):
        handler.run_inference(batch, handler.load_model())
