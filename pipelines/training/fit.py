"""Training: from a table of point-in-time rows to a bundle.

What is promised: the transform graph and the model see the training split alone; the same table,
plan and seed give the same weights, byte for byte, on the same machine; and the model in the
bundle is the first declared seed's, whatever the evaluation says.

The table's model inputs are held in memory as float32, once per variant (with and without the
windowed features).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import Project
from tidemill.features.errors import DefinitionError, InputError
from tidemill.features.models.preprocessing import (
    NUMERIC_KIND,
    ModelInput,
    as_float32,
    input_column,
    model_inputs,
)
from tidemill.pipelines.training.evaluation import (
    Evaluation,
    Runs,
    calibration,
    measure,
    permutation_effects,
    rate_scores,
    roc_points,
)
from tidemill.pipelines.training.splits import Splits, split_table
from tidemill.pipelines.training.transform import Arrays, Transformer, analyse
from tidemill.serving.bundles.bundle import Bundle, write_bundle
from tidemill.serving.bundles.saved_model import TransformGraph, load_tensorflow

OnStep = Callable[[str, int, int], None]
"""Told (stage, done, total) as the work goes on."""

WITH_WINDOWS: Final = "with windowed features"
WITHOUT_WINDOWS: Final = "without windowed features"

_STEPS_PER_EXECUTION: Final = 16
_PREDICT_ROWS: Final = 4096
_TOP_VALUES: Final = 20


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        train_until_us: Where the training split ends (UTC, microseconds).
        evaluate_until_us: Where the evaluation split, which begins there, ends.
        epochs: Passes over the training split.
        batch_size: Rows of a step.
        learning_rate: Given to the user's ``model`` function.
        seeds: One training each, with and without windowed features; the first is the bundle's.
        rate_groups: Columns of the rate baseline, the coarsest first; none: the overall rate.
    """

    train_until_us: int
    evaluate_until_us: int
    epochs: int = 4
    batch_size: int = 1024
    learning_rate: float = 0.001
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    rate_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.seeds:
            raise InputError(
                "training takes at least one epoch, one row a batch and one seed, found "
                f"{self.epochs}, {self.batch_size} and {len(self.seeds)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"the seeds must differ, found {self.seeds}")


def fit(
    project: Project,
    graph: TransformGraph,
    arrays: Arrays,
    labels: npt.NDArray[np.float32],
    plan: TrainingPlan,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> Any:
    """Train one model.

    Seeds the process's random generators and turns TensorFlow's deterministic kernels on, both
    for the whole process.

    Args:
        project: Whose ``model`` function builds it.
        graph: Says what the transformed columns are.
        arrays: The transformed training split.
        labels: float32, ``(rows,)``.
        plan: Epochs, batch size, learning rate.
        seed: Of weights and of the order of rows.
        on_step: Told (steps done, steps).

    Returns:
        The trained keras.Model.

    Raises:
        DefinitionError: The user's ``model`` function returned no compiled Keras model.
    """
    tf = load_tensorflow()
    import keras

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    build: Any = project.model
    model = build(graph.model_spec(plan.learning_rate, seed))
    if not isinstance(model, keras.Model) or not model.compiled:
        raise DefinitionError(
            f"project {project.name!r}: model(spec) must return a compiled keras.Model, found "
            f"{type(model).__name__}{' that is not compiled' * isinstance(model, keras.Model)}"
        )
    if model.steps_per_execution == 1:
        # Several steps a call of the graph: a small model's step costs less than the call.
        model.steps_per_execution = _STEPS_PER_EXECUTION
    batches = _batches(arrays, labels, plan, seed)
    # To Keras all passes are one: with several steps an execution it would read past the end of
    # each pass into the next.
    callbacks = [] if on_step is None else [_progress(on_step, int(batches.cardinality()))]
    model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def _batches(arrays: Arrays, labels: npt.NDArray[np.float32], plan: TrainingPlan, seed: int) -> Any:
    """Return a tf.data.Dataset of the batches of all epochs, each in its own seeded order."""
    tf = load_tensorflow()
    rows, size = len(labels), plan.batch_size
    steps = -(-rows // size)
    columns = {name: tf.constant(array) for name, array in arrays.items()}
    targets = tf.constant(labels)

    def batch(step: Any) -> tuple[dict[str, Any], Any]:
        epoch, place = step // steps, step % steps
        positions = tf.range(
            place * size, tf.minimum((place + 1) * size, tf.constant(rows, tf.int64))
        )
        # A permutation computed position by position: no buffer of rows, no state to carry.
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        last = tf.constant(rows - 1, tf.int64)
        order = tf.random.experimental.index_shuffle(positions, key, last)
        return {n: tf.gather(c, order) for n, c in columns.items()}, tf.gather(targets, order)

    plain = tf.autograph.experimental.do_not_convert(batch)
    return tf.data.Dataset.range(plan.epochs * steps).map(plain).prefetch(2)


def _progress(on_step: Callable[[int, int], None], steps: int) -> Any:
    import keras

    class Progress(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            on_step(min(batch + 1, steps), steps)

    return Progress()


def predictor(model: Any) -> Callable[[Arrays], npt.NDArray[np.float32]]:
    """Return a function from transformed columns to a Keras model's scores, float32 ``(rows,)``."""
    tf = load_tensorflow()
    call = tf.function(lambda columns: model(columns, training=False), reduce_retracing=True)

    def predict(arrays: Arrays) -> npt.NDArray[np.float32]:
        rows = len(next(iter(arrays.values())))
        scores = np.empty(rows, np.float32)
        for start in range(0, rows, _PREDICT_ROWS):
            part = {n: tf.constant(a[start : start + _PREDICT_ROWS]) for n, a in arrays.items()}
            scores[start : start + _PREDICT_ROWS] = call(part).numpy().reshape(-1)
        return scores

    return predict


@dataclass(frozen=True)
class _Trained:
    """One variant, trained over all seeds: what evaluation and bundle need of it."""

    transformer: Transformer
    model: Any
    scores: npt.NDArray[np.float32]
    runs: Runs


def _train_variant(
    project: Project,
    splits: Splits,
    plan: TrainingPlan,
    inputs: Sequence[ModelInput],
    directory: Path,
    name: str,
    tell: OnStep,
) -> _Trained:
    """Analyse, transform and train one variant; the first seed's model and scores are kept."""
    function: Any = project.preprocessing_fn
    tell(f"analyse {name}", 0, 1)
    transformer = Transformer(analyse(function, inputs, splits.train.columns, directory))
    arrays = transformer(splits.train.columns)
    held_out = transformer(splits.evaluate.columns)
    tell(f"analyse {name}", 1, 1)
    kept: tuple[Any, npt.NDArray[np.float32]] | None = None
    measured = []
    for index, seed in enumerate(plan.seeds):

        def on_step(done: int, steps: int, index: int = index) -> None:
            tell(f"train {name}", index * steps + done, len(plan.seeds) * steps)

        model = fit(project, transformer.graph, arrays, splits.train.labels, plan, seed, on_step)
        scores = predictor(model)(held_out)
        measured.append(measure(splits.evaluate.labels, scores))
        kept = kept or (model, scores)
    assert kept is not None  # a plan has at least one seed
    return _Trained(transformer, *kept, Runs(name, plan.seeds, tuple(measured)))


def train_bundle(
    project: Project,
    table: Path,
    plan: TrainingPlan,
    *,
    work: Path,
    bundles: Path,
    created_at: str,
    on_step: OnStep | None = None,
) -> Bundle:
    """Train, evaluate and write a bundle.

    Args:
        project: The definitions, with label, preprocessing_fn and model.
        table: The training table (a directory of Parquet files).
        plan: How to train.
        work: A directory for scratch files; made if need be.
        bundles: The directory of bundles.
        created_at: When, for the manifest.
        on_step: Told how far each stage is.

    Returns:
        The bundle, loaded; its ``evaluation`` is an `Evaluation`'s JSON.

    Raises:
        DefinitionError: Label, preprocessing_fn or model are missing or not of the contract.
        InputError: The table lacks columns or rows.
    """
    for what in ("preprocessing_fn", "model"):
        if getattr(project, what) is None:
            raise DefinitionError(f"project {project.name!r} has no {what}; training needs one")
    tell = on_step or _tell_nobody
    tell("read", 0, 1)
    splits = split_table(project, table, plan.train_until_us, plan.evaluate_until_us)
    tell("read", 1, 1)
    inputs = model_inputs(project)
    request_only = model_inputs(project, only_request=True)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=work) as scratch:
        place = Path(scratch)
        trained = _train_variant(project, splits, plan, inputs, place / "with", WITH_WINDOWS, tell)
        baselines = [_rate_baseline(splits, plan)]
        if request_only:
            plain = _train_variant(
                project, splits, plan, request_only, place / "without", WITHOUT_WINDOWS, tell
            )
            baselines.append(plain.runs)
        evaluation = _evaluate(splits, plan, inputs, trained, baselines, tell)
        tell("write", 0, 1)
        bundle = write_bundle(
            bundles,
            project=project,
            graph=trained.transformer.graph,
            model=trained.model,
            created_at=created_at,
            training={**asdict(plan), "rows": asdict(splits.counts)},
            evaluation=evaluation.to_json(),
            statistics=input_statistics(splits.train.columns, inputs),
        )
        tell("write", 1, 1)
    return bundle


def _tell_nobody(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def _rate_baseline(splits: Splits, plan: TrainingPlan) -> Runs:
    train, held_out = splits.train, splits.evaluate
    scores = rate_scores(plan.rate_groups, train.columns, train.labels, held_out.columns)
    name = f"rate by {' and '.join(plan.rate_groups)}" if plan.rate_groups else "overall rate"
    return Runs(name, (), (measure(held_out.labels, scores),))


def _evaluate(
    splits: Splits,
    plan: TrainingPlan,
    inputs: Sequence[ModelInput],
    trained: _Trained,
    baselines: Sequence[Runs],
    tell: OnStep,
) -> Evaluation:
    labels = splits.evaluate.labels
    call = predictor(trained.model)
    effects = permutation_effects(
        lambda columns: call(trained.transformer(columns)),
        splits.evaluate.columns,
        labels,
        [i.name for i in inputs],
        seed=plan.seeds[0],
        on_column=functools.partial(tell, "measure effects"),
    )
    return Evaluation(
        model=trained.runs,
        baselines=tuple(baselines),
        chosen_seed=plan.seeds[0],
        calibration=calibration(labels, trained.scores),
        roc=roc_points(labels, trained.scores),
        effects=effects,
    )


def input_statistics(columns: pa.Table, inputs: Sequence[ModelInput]) -> dict[str, Any]:
    """Describe the model inputs of the training split, to compare later data with.

    Args:
        columns: The inputs by name in their declared types.
        inputs: Which.

    Returns:
        A JSON value: rows, and per input the share of nulls; for numbers mean, std, least and
        greatest value and quartiles of the float32 values; for texts how many values and the most
        frequent ones.
    """
    described: dict[str, Any] = {}
    for wanted in inputs:
        column = input_column(columns, wanted)
        entry: dict[str, Any] = {"null_rate": column.null_count / max(len(column), 1)}
        if wanted.kind == NUMERIC_KIND:
            values = as_float32(column).astype(np.float64)
            values = values[np.isfinite(values)]
            if len(values):
                low, lower, middle, upper, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
                entry |= {"mean": float(values.mean()), "std": float(values.std())}
                entry |= {"min": float(low), "max": float(high)}
                entry |= {"quartiles": [float(lower), float(middle), float(upper)]}
        else:
            counts = pc.value_counts(column.drop_null())
            pairs = [(str(c["values"]), int(c["counts"])) for c in counts.to_pylist()]
            pairs.sort(key=lambda pair: (-pair[1], pair[0]))
            entry |= {"distinct": len(pairs), "top": [list(p) for p in pairs[:_TOP_VALUES]]}
        described[wanted.name] = entry
    return {"rows": columns.num_rows, "inputs": described}
