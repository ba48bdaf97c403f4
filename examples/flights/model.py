"""How the inputs are prepared and which model learns from them.

`preprocess` is analysed once over the training table and becomes the transform graph that
training and serving both run. TensorFlow is imported inside the functions, so that importing the
definitions is fast.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tidemill.features.models.preprocessing import categories, fill, missing

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tidemill.features.models.preprocessing import ModelSpec

CATEGORIES: Final = ("origin", "dest", "carrier")
"""Inputs that are words: each becomes an id of its vocabulary."""
CLOCKS: Final = {"hour": 24, "weekday": 7}
"""Cyclic inputs with the length of their cycle: each value has an id, as a word has."""
CLIP: Final = 5.0
"""Numbers are clipped at this many standard deviations."""


def preprocess(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Prepare the model inputs (a tf.Transform ``preprocessing_fn``).

    Args:
        inputs: Request inputs and feature columns by name, ``(rows,)``: numbers float32 with null
            as NaN, words string with null as "".

    Returns:
        ``numbers`` float32 ``(rows, n)``: every other number, in the order of their names;
        ``missing`` float32 ``(rows, n)``: 1 where it was null; and int64 ids ``(rows,)`` for each
        of `CATEGORIES` and `CLOCKS`, the last id for words that training has not seen and for
        hours that are null.
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    outputs: dict[str, tf.Tensor] = {
        name: tft.compute_and_apply_vocabulary(inputs[name], num_oov_buckets=1, vocab_filename=name)
        for name in CATEGORIES
    }
    outputs |= {name: categories(inputs[name], size) for name, size in CLOCKS.items()}

    names = sorted(name for name in inputs if name not in outputs)
    raw = tf.stack([inputs[name] for name in names], axis=1)
    # Delays, distances and counts have long tails on one or both sides; the logarithm shortens
    # the tails and hardly changes small numbers such as rates.
    bent = tf.sign(raw) * tf.math.log1p(tf.abs(raw))
    # The analysis ignores NaN, so 0 is the mean of the other values. A null becomes 0, and so does
    # every value of a column that was always null in training, which has no mean.
    scaled = tft.scale_to_z_score(bent, elementwise=True)
    outputs["numbers"] = fill(tf.clip_by_value(scaled, -CLIP, CLIP), 0.0)
    outputs["missing"] = missing(raw)
    return outputs


def build_model(spec: ModelSpec) -> keras.Model:
    """Build a small perceptron with an embedding for each category.

    Args:
        spec: The outputs of `preprocess` (widths of the numeric ones, sizes of vocabularies) and
            the learning rate.

    Returns:
        A compiled model from a dict of those outputs to ``late``, float32 ``(rows, 1)``: the
        probability of arriving more than 15 minutes late.
    """
    import keras

    inputs = {
        name: keras.Input(shape=(width,), dtype="float32", name=name)
        for name, width in spec.numeric.items()
    }
    parts = [inputs[name] for name in spec.numeric]
    for name, size in spec.vocabularies.items():
        inputs[name] = keras.Input(shape=(), dtype="int64", name=name)
        # A common rule for the width: the fourth root of the vocabulary's size; here doubled.
        width = 2 * math.ceil(size**0.25)
        parts.append(keras.layers.Embedding(size, width, name=f"{name}_embedding")(inputs[name]))
    hidden = keras.layers.Concatenate(name="inputs")(parts)
    for index, units in enumerate((128, 64)):
        hidden = keras.layers.Dense(units, activation="relu", name=f"hidden_{index}")(hidden)
    late = keras.layers.Dense(1, activation="sigmoid", name="late")(hidden)
    model = keras.Model(inputs=inputs, outputs=late, name="flights")
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=spec.learning_rate),
        loss="binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    return model
