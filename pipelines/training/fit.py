"""Fitting one Keras model to transformed columns, and scoring with it.

Promise: the same columns, options and seed give the same weights, byte for byte, on the same
processor with the same number of cores (TensorFlow splits sums among its threads).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tidemill.features.definitions import Project
from tidemill.features.errors import DefinitionError
from tidemill.pipelines.config.configuration import Training
from tidemill.pipelines.training.transform import Arrays
from tidemill.serving.bundles.saved_model import TransformGraph
from tidemill.serving.models.tensorflow_start import load_tensorflow

_STEPS_PER_EXECUTION: Final = 16
_PREDICT_ROWS: Final = 4096


def fit(
    project: Project,
    graph: TransformGraph,
    arrays: Arrays,
    labels: npt.NDArray[np.float32],
    options: Training,
    seed: int,
    on_steps: Callable[[int], None] | None = None,
) -> Any:
    """Train one model.

    This sets the seeds of the process's random generators and enables TensorFlow's deterministic
    kernels, both for the process.

    Args:
        project: The project, whose ``model`` function builds the model.
        graph: The transform graph, which describes the columns.
        arrays: The transformed training split.
        labels: float32, ``(rows,)``.
        options: Epochs, batch size, learning rate.
        seed: The seed of the weights and of the order of rows.
        on_steps: Called with the number of new steps, as they are done.

    Returns:
        The trained keras.Model.

    Raises:
        DefinitionError: The ``model`` function did not return a compiled Keras model.
    """
    tf = load_tensorflow()
    import keras

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    build: Any = project.model
    model = build(graph.model_spec(options.learning_rate, seed))
    if not isinstance(model, keras.Model) or not model.compiled:
        raise DefinitionError(
            f"project {project.name!r}: model(spec) must return a compiled keras.Model, found "
            f"{type(model).__name__}{' that is not compiled' * isinstance(model, keras.Model)}"
        )
    if model.steps_per_execution == 1:
        # A call of the graph costs more than a small model's step: run several steps a call.
        model.steps_per_execution = _STEPS_PER_EXECUTION
    if model.built:
        # Where the first step makes the optimizer's variables, TensorFlow traces it a second time,
        # which takes longer than a small training.
        model.optimizer.build(model.trainable_variables)
    batches = _batches(arrays, labels, options, seed)
    # Show Keras all passes as one epoch: with several steps a call, it would read past the end of
    # each pass into the next.
    callbacks = [] if on_steps is None else [_progress(on_steps, int(batches.cardinality()))]
    model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def _batches(arrays: Arrays, labels: npt.NDArray[np.float32], options: Training, seed: int) -> Any:
    """Return a tf.data.Dataset of the batches of all epochs, each in its own seeded order."""
    tf = load_tensorflow()
    rows, size = len(labels), options.batch_size
    steps = -(-rows // size)
    columns = {name: tf.constant(array) for name, array in arrays.items()}
    targets = tf.constant(labels)

    def batch(step: Any) -> tuple[dict[str, Any], Any]:
        epoch, place = step // steps, step % steps
        positions = tf.range(
            place * size, tf.minimum((place + 1) * size, tf.constant(rows, tf.int64))
        )
        # Compute the permutation for these positions only: no buffer of rows and no state.
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        last = tf.constant(rows - 1, tf.int64)
        order = tf.random.experimental.index_shuffle(positions, key, last)
        return {n: tf.gather(c, order) for n, c in columns.items()}, tf.gather(targets, order)

    plain = tf.autograph.experimental.do_not_convert(batch)
    return tf.data.Dataset.range(options.epochs * steps).map(plain).prefetch(2)


def _progress(on_steps: Callable[[int], None], steps: int) -> Any:
    import keras

    class Progress(keras.callbacks.Callback):
        done = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            before, self.done = self.done, min(batch + 1, steps)
            on_steps(self.done - before)

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
