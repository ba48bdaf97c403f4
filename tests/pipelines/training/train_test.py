from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import trained_bundle as given
from tidemill.features.contract import HOUR
from tidemill.features.errors import ConfigurationError, DefinitionError, InputError
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.config.configuration import Training
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training.evaluation import Evaluation
from tidemill.pipelines.training.fit import fit
from tidemill.pipelines.training.splits import split_table
from tidemill.pipelines.training.train import WITH_WINDOWS, WITHOUT_WINDOWS, train_bundle
from tidemill.pipelines.training.transform import Transformer, analyse

INPUTS = model_inputs(given.PROJECT)


def _split(table: Path) -> Any:
    return split_table(given.PROJECT, table, given.TRAIN_UNTIL, given.EVALUATE_UNTIL)


def test_a_training_row_needs_its_whole_horizon_before_the_split(tmp_path: Path) -> None:
    split = 100 * HOUR
    offsets = [-HOUR - 1, -HOUR, -HOUR + 1, -1, 0, 9 * HOUR, 9 * HOUR + 1]
    rows = given.rows(len(offsets)).drop_columns(["request_time", "label"])
    times = pa.array([split + offset for offset in offsets], pa.timestamp("us", tz="UTC"))
    rows = rows.append_column("request_time", times)
    pq.write_table(
        rows.append_column("label", pa.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])),
        tmp_path / "a.parquet",
    )
    splits = split_table(given.PROJECT, tmp_path, split, split + 10 * HOUR)
    assert splits.train.labels.tolist() == [1.0, 0.0]
    assert splits.evaluate.labels.tolist() == [0.0, 1.0]
    assert (splits.counts.straddling, splits.counts.after) == (2, 1)


def test_unlabelled_rows_are_dropped_and_counted_not_negative() -> None:
    counts = _split(given.table()).counts
    assert counts.train_unlabelled > 50
    assert counts.evaluate_unlabelled > 20
    assert counts.rows == given.ROWS == (
        counts.train + counts.train_unlabelled + counts.straddling
        + counts.evaluate + counts.evaluate_unlabelled + counts.after
    )  # fmt: skip


def test_rows_are_in_order_of_time_however_the_files_lie(tmp_path: Path) -> None:
    pq.write_table(given.rows(), tmp_path / "whole.parquet")
    one, two = _split(given.table()), _split(tmp_path)
    assert one.train.columns.equals(two.train.columns)
    assert one.train.labels.tobytes() == two.train.labels.tobytes()


def test_a_label_that_is_no_truth_value_is_refused(tmp_path: Path) -> None:
    rows = given.rows().drop_columns(["label"])
    pq.write_table(
        rows.append_column("label", pa.array([2.5] * given.ROWS)), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match=r"'label' must be 0 or 1, found 2\.5"):
        _split(tmp_path)


def test_a_missing_column_and_an_empty_split_are_named(tmp_path: Path) -> None:
    pq.write_table(given.rows().drop_columns(["grams"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column 'grams'"):
        _split(tmp_path)
    with pytest.raises(InputError, match="the training split is empty"):
        split_table(given.PROJECT, given.table(), given.START, given.EVALUATE_UNTIL)


def test_the_transform_graph_saw_the_training_split_only() -> None:
    graph = given.bundle().transform_graph
    train = _split(given.table()).train
    metres = np.log1p(np.abs(train.columns["metres"].fill_null(0.0).to_numpy()))
    grams = train.columns["grams"].drop_null().to_numpy().astype(np.float32).astype(np.float64)
    found = Transformer(graph)(train.columns)
    known = train.columns["grams"].is_valid().to_numpy()
    expected = ((grams - grams.mean()) / grams.std()).astype(np.float32)
    np.testing.assert_allclose(found["numbers"][known, 0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["log_metres"][:, 0], metres, rtol=1e-5)
    # The scaling is not fitted again: over the evaluation split, mean and deviation are others.
    held_out = _split(given.table()).evaluate.columns.filter(
        _split(given.table()).evaluate.columns["grams"].is_valid()
    )
    assert abs(Transformer(graph)(held_out)["numbers"][:, 0].astype(np.float64).mean()) > 1e-3


def test_outputs_have_their_declared_shapes_and_vocabularies() -> None:
    graph = given.bundle().transform_graph
    assert graph.numeric == {"numbers": 10, "log_metres": 1, "as_it_is": 1}
    # Three places, and one id for null and unseen places; 24 hours and one more.
    assert graph.vocabularies == {"size": 4, "hour": 25}
    table = given.rows(10)
    unseen = table.set_column(2, "size", pa.array(["elsewhere", None] * 5))
    found = Transformer(graph)(unseen)
    assert found["size"].tolist() == [3] * 10
    assert found["hour"].tolist() == [0] * 10


def test_a_batch_of_no_rows_transforms_to_none() -> None:
    found = Transformer(given.bundle().transform_graph)(given.rows(0))
    assert found["numbers"].shape == (0, 10)


def _fit(seed: int) -> list[Any]:
    train = _split(given.table()).train
    graph = given.bundle().transform_graph
    options = replace(given.OPTIONS, epochs=1)
    model = fit(
        given.PROJECT, graph, Transformer(graph)(train.columns), train.labels, options, seed
    )
    return list(model.get_weights())


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    once, again, other = _fit(1), _fit(1), _fit(2)
    assert [w.tobytes() for w in once] == [w.tobytes() for w in again]
    assert [w.tobytes() for w in once] != [w.tobytes() for w in other]


def test_the_first_declared_seed_is_in_the_bundle_and_every_seed_is_reported() -> None:
    bundle = given.bundle()
    evaluation = Evaluation.from_json(bundle.evaluation)
    assert evaluation.chosen_seed == given.SEEDS[0]
    assert evaluation.model.seeds == given.SEEDS
    assert len(evaluation.model.metrics) == len(given.SEEDS)
    assert bundle.manifest["training"]["seeds"] == list(given.SEEDS)
    # The calibration covers the rows of the chosen seed's scores.
    rows = sum(b.rows for b in evaluation.calibration)
    assert rows == evaluation.model.metrics[0].rows == _split(given.table()).counts.evaluate


def test_windowed_features_beat_both_baselines_on_every_seed() -> None:
    evaluation = Evaluation.from_json(given.bundle().evaluation)
    assert [b.name for b in evaluation.baselines] == ["rate by size and hour", WITHOUT_WINDOWS]
    assert evaluation.beats_baselines, evaluation.verdicts()
    assert evaluation.effects[0].name == "depot__minutes_1d"


def test_progress_names_each_stage_and_ends_each_at_its_total() -> None:
    given.bundle()
    last = given.progress.stages
    assert list(last) == [
        "read",
        f"analyse {WITH_WINDOWS}",
        f"train {WITH_WINDOWS}",
        f"analyse {WITHOUT_WINDOWS}",
        f"train {WITHOUT_WINDOWS}",
        "measure effects",
        "write",
    ]
    assert all(done == total for done, total in last.values()), last
    epochs_times_steps = 8 * -(-_split(given.table()).counts.train // 128)
    assert last[f"train {WITH_WINDOWS}"][1] == len(given.SEEDS) * epochs_times_steps


def test_statistics_describe_the_training_split() -> None:
    train = _split(given.table()).train
    statistics = given.bundle().statistics
    assert statistics["rows"] == len(train.labels)
    assert statistics["inputs"]["fragile"]["mean"] == pytest.approx(0.3, abs=0.05)
    assert statistics["inputs"]["size"]["distinct"] == 3
    assert statistics["inputs"]["metres"]["null_rate"] == pytest.approx(
        train.columns["metres"].null_count / len(train.labels)
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inputs: {"x": inputs["gram"]}, "reads 'gram'.*did you mean 'grams'"),
        (lambda inputs: {}, "must return a dict of at least one output"),
        (lambda inputs: {"x": inputs["size"]}, "output 'x' must be a dense float32 or int64"),
    ],
)
def test_a_wrong_preprocessing_function_is_told_what_is_wrong(
    function: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DefinitionError, match=message):
        analyse(function, INPUTS, given.rows(20), tmp_path / "graph")


def test_ids_without_a_known_range_are_refused(tmp_path: Path) -> None:
    def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        return {"hour": tf.cast(inputs["hour"], tf.int64)}

    with pytest.raises(DefinitionError, match="'hour' has no range"):
        analyse(preprocess, INPUTS, given.rows(20), tmp_path / "graph")


def test_no_rows_to_analyse_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows to analyse"):
        analyse(given.preprocess, INPUTS, given.rows(0), tmp_path / "graph")


def test_a_model_that_is_not_compiled_is_refused() -> None:
    def build(spec: Any) -> Any:
        import keras

        given.build_model(spec)
        return keras.Sequential([keras.layers.Dense(1)])

    graph = given.bundle().transform_graph
    train = _split(given.table()).train
    with pytest.raises(DefinitionError, match="found Sequential that is not compiled"):
        fit(replace(given.PROJECT, model=build), graph, Transformer(graph)(train.columns),
            train.labels, given.OPTIONS, 1)  # fmt: skip


def test_training_without_a_model_or_a_label_is_refused(tmp_path: Path) -> None:
    for what in ("model", "preprocessing_fn", "label"):
        changes: dict[str, Any] = {what: None}
        project = replace(given.PROJECT, **changes)
        with pytest.raises(DefinitionError, match=f"has no {what}"):
            train_bundle(
                project, given.table(), given.SPLITS, given.OPTIONS, work=tmp_path,
                bundles=tmp_path, created_at="", progress=QuietProgress(),
            )  # fmt: skip


def test_training_that_trains_nothing_is_refused() -> None:
    for nothing in ({"epochs": 0}, {"batch_size": 0}, {"seeds": 0}):
        with pytest.raises(ConfigurationError, match="at least one epoch"):
            Training(**nothing)
    assert len(set(given.OPTIONS.seed_values)) == given.OPTIONS.seeds
