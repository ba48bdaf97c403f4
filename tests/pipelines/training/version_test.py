"""The version of a bundle is a function of rows, definitions, settings and weights."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support import trained_bundle as given
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training import transform
from tidemill.pipelines.training.fit import fit
from tidemill.pipelines.training.splits import split_table
from tidemill.pipelines.training.train import train_bundle
from tidemill.pipelines.training.transform import Transformer, analyse
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.saved_model import TransformGraph, model_hash, save_model

INPUTS = model_inputs(given.PROJECT)
SHORT = replace(given.OPTIONS, epochs=1, seeds=1)
IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.pipelines.training import version_test
bundle = version_test.trained_again(Path(sys.argv[1]))
print(bundle.version, bundle.transform_hash, bundle.model_hash)
"""


def trained_again(folder: Path) -> Bundle:
    """Train with the files of ``folder/table`` into ``folder/bundles``."""
    return train_bundle(
        given.PROJECT,
        folder / "table",
        given.SPLITS,
        given.OPTIONS,
        work=folder / "work",
        bundles=folder / "bundles",
        created_at="another day",
        progress=QuietProgress(),
        lineage={"generation": "g2"},
    )


class Training(NamedTuple):
    """What another process said of its bundle, and its folder."""

    said: list[str]
    folder: Path


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Train in another process, with other hashes of texts and another temporary folder.

    It trains on other files of the same rows, where the bundle lies already.
    """
    folder = tmp_path_factory.mktemp("again")
    first = given.bundle()
    shutil.copytree(first.directory, folder / "bundles" / first.version)
    (folder / "table").mkdir()
    pq.write_table(given.rows(), folder / "table" / "whole.parquet")
    ended = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Training(ended.stdout.splitlines()[-1].split(), folder)


def test_two_processes_train_one_version(again: Training) -> None:
    bundle = given.bundle()
    assert again.said == [bundle.version, bundle.transform_hash, bundle.model_hash]


def test_training_again_on_other_files_of_the_same_rows_keeps_the_bundle(again: Training) -> None:
    first = given.bundle()
    bundles = again.folder / "bundles"
    assert [path.name for path in bundles.iterdir()] == [first.version]
    found = Bundle.load(bundles / first.version, given.PROJECT)
    assert found.version == first.version
    assert found.manifest == first.manifest


def test_a_row_in_neither_split_counts_in_the_digest_of_the_table(tmp_path: Path) -> None:
    pq.write_table(given.rows().slice(0, given.ROWS - 1), tmp_path / "a.parquet")
    whole, shorter = (
        split_table(given.PROJECT, table, given.TRAIN_UNTIL, given.EVALUATE_UNTIL)
        for table in (given.table(), tmp_path)
    )
    assert shorter.evaluate.columns.equals(whole.evaluate.columns)
    assert shorter.digest != whole.digest
    assert whole.digest == given.bundle().manifest["training"]["table"]


def _all_analyzers(inputs: dict[str, Any]) -> dict[str, Any]:
    """Vocabularies with ties, buckets, every scaling, and a projection."""
    import tensorflow as tf
    import tensorflow_transform as tft

    metres = tf.where(tf.math.is_nan(inputs["metres"]), 0.0, inputs["metres"])
    scans = tf.where(tf.math.is_nan(inputs["depot__scans_1d"]), 0.0, inputs["depot__scans_1d"])
    rare = tf.strings.as_string(tf.cast(scans, tf.int64))
    both = tf.stack([tf.math.log1p(metres), scans], axis=1)
    return {
        **given.preprocess(inputs),
        "buckets": tft.bucketize(metres, 10),
        "rare": tft.compute_and_apply_vocabulary(rare, top_k=12, num_oov_buckets=3),
        "to_0_1": tft.scale_to_0_1(metres),
        "gaussian": tft.scale_to_gaussian(tf.math.log1p(metres)),
        "by_size": tft.scale_to_z_score_per_key(metres, inputs["size"]),
        "projected": tf.matmul(both, tft.pca(both, 2, tf.float32)),
    }


def test_the_analysis_of_equal_rows_gives_an_equal_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many batches, which Beam gives to its combiners from a random one on."""
    monkeypatch.setattr(transform, "ANALYSIS_ROWS", 100)
    state = random.getstate()
    found = []
    try:
        for seed in (1, 2):
            random.seed(seed)
            directory = tmp_path / str(seed)
            found.append(analyse(_all_analyzers, INPUTS, given.rows(2_000), directory).hash)
    finally:
        random.setstate(state)
    assert found[0] == found[1]
    # One value more, in one row.
    rows = given.rows(2_000)
    metres = rows["metres"].to_pylist()
    metres[7] = 1e6
    rows = rows.set_column(rows.column_names.index("metres"), "metres", [metres])
    assert analyse(_all_analyzers, INPUTS, rows, tmp_path / "other").hash != found[0]


def test_what_preprocessing_computes_counts_and_not_how_it_is_written(tmp_path: Path) -> None:
    def with_names(inputs: dict[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        with tf.name_scope("some_other_names"):
            return given.preprocess(inputs)

    def with_another_constant(inputs: dict[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        outputs = given.preprocess(inputs)
        return {**outputs, "log_metres": outputs["log_metres"] * tf.constant(1.0000001)}

    rows = given.rows(500)
    plain, named, changed = (
        analyse(function, INPUTS, rows, tmp_path / name).hash
        for name, function in {
            "plain": given.preprocess,
            "named": with_names,
            "changed": with_another_constant,
        }.items()
    )
    assert plain == named != changed


def _many_layers(spec: Any) -> Any:
    """A model with random and stateful layers: dropout, noise, normalization, lookups."""
    import keras

    inputs = {n: keras.Input((k,), name=n) for n, k in spec.numeric.items()}
    ids = {n: keras.Input((), dtype="int64", name=n) for n in spec.vocabularies}
    parts = [keras.layers.BatchNormalization()(x) for x in inputs.values()]
    for name, x in ids.items():
        size = spec.vocabularies[name]
        parts.append(keras.layers.Embedding(size, 3)(x))
        parts.append(keras.layers.CategoryEncoding(size, output_mode="one_hot")(x))
    x = keras.layers.GaussianNoise(0.1)(keras.layers.Concatenate()(parts))
    x = keras.layers.LayerNormalization()(keras.layers.Dense(16, activation="gelu")(x))
    x = keras.layers.Dropout(0.3)(x)
    model = keras.Model(inputs | ids, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile(keras.optimizers.AdamW(spec.learning_rate), "binary_crossentropy")
    return model


def _saved(folder: Path, graph: TransformGraph, seed: int) -> str:
    train = split_table(given.PROJECT, given.table(), given.TRAIN_UNTIL, given.EVALUATE_UNTIL).train
    project = replace(given.PROJECT, model=_many_layers)
    arrays = Transformer(graph)(train.columns)
    model = fit(project, graph, arrays, train.labels, SHORT, seed)
    save_model(graph, model, folder)
    return model_hash(folder)


def test_a_model_with_dropout_is_equal_for_an_equal_seed_alone(tmp_path: Path) -> None:
    graph = given.bundle().transform_graph
    one, again, other = (_saved(tmp_path / str(i), graph, seed) for i, seed in enumerate((1, 1, 2)))
    assert one == again != other


def test_a_weight_that_is_one_ulp_off_makes_another_model(tmp_path: Path) -> None:
    graph = given.bundle().transform_graph
    model = given.build_model(graph.model_spec(0.01, 1))
    save_model(graph, model, tmp_path / "one")
    weights = model.get_weights()
    weights[-1][0] = np.nextafter(weights[-1][0], np.float32(np.inf))
    model.set_weights(weights)
    save_model(graph, model, tmp_path / "other")
    assert model_hash(tmp_path / "one") != model_hash(tmp_path / "other")
