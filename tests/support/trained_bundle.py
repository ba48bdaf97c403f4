"""A small project with a model, its training table, and one bundle trained for all tests."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.shared_folder import shared_folder
from tidemill import Entity, EventStream, FeatureView, Label, Project, Request, col, count, mean
from tidemill.features.contract import HOUR
from tidemill.features.models.preprocessing import categories, fill, missing
from tidemill.pipelines.config.configuration import Splits, Training
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training.train import train_bundle
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.files.folder_lock import folder_lock

START = 1_600_000_000_000_000
STEP = HOUR // 10
ROWS = 4_000
TRAIN_UNTIL = START + 3_000 * STEP
EVALUATE_UNTIL = START + 3_900 * STEP
SEEDS = (7, 8)

SCANS = EventStream(
    "scans",
    schema={"at": "timestamp", "scan": "string", "parcel": "string", "depot": "string",
            "minutes": "float64"},
    event_time="at",
    event_id="scan",
)  # fmt: skip
DEPOT = FeatureView(
    "depot",
    entity=Entity("depot"),
    stream=SCANS,
    hop="1h",
    features={"minutes_1d": mean(col("minutes"), over="1d"), "scans_1d": count(over="1d")},
)
REQUEST = Request(
    "pickups",
    schema={"at": "timestamp", "parcel": "string", "depot": "string", "grams": "int64",
            "metres": "float64", "fragile": "bool"},
    request_time="at",
    request_id="parcel",
    inputs={
        "size": col("depot"),
        "hour": col("at").hour_of_day("UTC"),
        "grams": col("grams"),
        "metres": col("metres"),
        "fragile": col("fragile"),
    },
)  # fmt: skip


def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf
    import tensorflow_transform as tft

    plain = [inputs[name] for name in ("grams", "metres", "fragile")]
    plain += [inputs[name] for name in ("depot__minutes_1d", "depot__scans_1d") if name in inputs]
    numbers = tf.stack(plain, axis=1)
    scaled = tft.scale_to_z_score(numbers, elementwise=True)
    return {
        "numbers": tf.concat([fill(scaled, 0.0), missing(numbers)], axis=1),
        "log_metres": tf.math.log1p(tf.abs(fill(inputs["metres"], 0.0))),
        "as_it_is": fill(inputs["metres"], -1.0),
        "size": tft.compute_and_apply_vocabulary(inputs["size"], num_oov_buckets=1),
        "hour": categories(inputs["hour"], 24),
    }


def build_model(spec: Any) -> Any:
    import keras

    inputs = {n: keras.Input((k,), name=n) for n, k in spec.numeric.items() if n != "as_it_is"}
    ids = {n: keras.Input((), dtype="int64", name=n) for n in spec.vocabularies}
    parts = list(inputs.values())
    parts += [keras.layers.Embedding(spec.vocabularies[n], 3)(x) for n, x in ids.items()]
    unused = keras.Input((spec.numeric["as_it_is"],), name="as_it_is")
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()(parts))
    score = keras.layers.Dense(1, activation="sigmoid")(hidden)
    model = keras.Model(inputs | ids | {"as_it_is": unused}, score)
    model.compile(keras.optimizers.Adam(spec.learning_rate), "binary_crossentropy")
    return model


PROJECT = Project(
    "parcels",
    request=REQUEST,
    views=[DEPOT],
    label=Label("late", SCANS, col("minutes") > 15, on={"parcel": "parcel"}, horizon="1h"),
    preprocessing_fn=preprocess,
    model=build_model,
)


def with_window(over: str) -> Project:
    """The same project with another window of one feature."""
    view = replace(
        DEPOT, features={**DEPOT.features, "minutes_1d": mean(col("minutes"), over=over)}
    )
    return replace(PROJECT, views=(view,))


def rows(count: int = ROWS, seed: int = 1) -> pa.Table:
    """A training table: the label follows a windowed feature, with noise; some are null."""
    random = np.random.default_rng(seed)

    def null(share: float) -> Any:
        return random.random(count) < share

    minutes = random.normal(10.0, 5.0, count)
    hidden = null(0.1)
    signal = np.where(hidden, 10.0, minutes) + random.normal(0.0, 3.0, count)
    times = pa.array(START + STEP * np.arange(count), pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "request_id": pa.array([f"p{i:06d}" for i in range(count)]),
            "request_time": times,
            "size": pa.array(random.choice(["north", "süd", "west"], count), mask=null(0.1)),
            "hour": pa.array(np.arange(count) // 10 % 24, pa.int64()),
            "grams": pa.array(random.integers(0, 2**60, count), pa.int64(), mask=null(0.1)),
            "metres": pa.array(random.lognormal(3.0, 2.0, count), mask=null(0.1)),
            "fragile": pa.array(random.random(count) < 0.3, mask=null(0.1)),
            "depot__minutes_1d": pa.array(minutes, mask=hidden),
            "depot__scans_1d": pa.array(random.poisson(30.0, count), pa.int64(), mask=null(0.1)),
            "label": pa.array((signal > 12.0).astype(np.float64), mask=null(0.05)),
            "label_time": times,
        }
    )


SPLITS = Splits(TRAIN_UNTIL, EVALUATE_UNTIL, EVALUATE_UNTIL)
OPTIONS = Training(
    epochs=8,
    batch_size=128,
    learning_rate=0.01,
    seeds=len(SEEDS),
    seed=SEEDS[0],
    rate_groups=("size", "hour"),
)
LINEAGE = {"generation": "g1", "sources": {"scans": {"cut": [4_000], "digest": "0" * 64}}}


@functools.cache
def directory() -> Path:
    """The directory of the table and the bundle, which all processes of a test run share."""
    path = shared_folder() / "trained"
    path.mkdir(exist_ok=True)
    return path


@functools.cache
def table() -> Path:
    """The training table, in two files that are out of order."""
    path = directory() / "table"
    with folder_lock(directory()):
        if not path.exists():
            unfinished = directory() / "unfinished"
            unfinished.mkdir()
            whole = rows()
            pq.write_table(whole.slice(2_500), unfinished / "a.parquet")
            pq.write_table(whole.slice(0, 2_500), unfinished / "b.parquet")
            unfinished.rename(path)
    return path


class RecordedProgress(QuietProgress):
    """Keeps how far each stage came and how far it was to come, by name."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int | None]] = {}

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Any]:
        self.stages[name] = counts = [0, total]

        class Counted:
            def advance(self, count: int = 1) -> None:
                counts[0] = (counts[0] or 0) + count

        yield Counted()


progress = RecordedProgress()
"""The progress that training reported."""


@functools.cache
def bundle() -> Bundle:
    """The bundle; trained at its first use (about 20 s), then shared."""
    source, bundles, stages = table(), directory() / "bundles", directory() / "stages.json"
    with folder_lock(directory()):
        if stages.exists():
            progress.stages = json.loads(stages.read_text())
            return Bundle.load(next(bundles.iterdir()), PROJECT)
        trained = train_bundle(
            PROJECT,
            source,
            SPLITS,
            OPTIONS,
            work=directory() / "work",
            bundles=bundles,
            created_at="2026-11-20T12:00:00Z",
            progress=progress,
            lineage=LINEAGE,
        )
        stages.write_text(json.dumps(progress.stages))
        return trained
