"""SavedModels to call, written by TensorFlow's own means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tidemill.serving.models.tensorflow_start import load_tensorflow


def save(folder: Path, function: Any, *specs: Any, name: str = "serving_default") -> Path:
    """Save a function of tensors as a SavedModel with one signature; return its folder."""
    tf = load_tensorflow()
    module = tf.Module()
    module.function = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures={name: module.function})
    return folder


def dense_model(folder: Path, width: int = 5, units: int = 7) -> Path:
    """Save a small network over ``x``, float32 ``(rows, width)``, and return its folder.

    Its outputs are ``score``, float32 ``(rows,)``, and ``hidden``, float32 ``(rows, units)``.
    """
    tf = load_tensorflow()
    chance = np.random.default_rng(1)
    weights = tf.constant(chance.normal(size=(width, units)), tf.float32)
    last = tf.constant(chance.normal(size=(units, 1)), tf.float32)

    def network(x: Any) -> dict[str, Any]:
        hidden = tf.nn.tanh(x @ weights)
        return {"score": tf.sigmoid(hidden @ last)[:, 0], "hidden": hidden}

    return save(folder, network, tf.TensorSpec([None, width], tf.float32, "x"))


def throwing_model(folder: Path) -> Path:
    """Save a model of ``x``, float64 ``(rows,)``, that throws on a row below zero."""
    tf = load_tensorflow()

    def root(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x is negative")]):
            return {"root": tf.sqrt(tf.identity(x)) * 1.1}

    return save(folder, root, tf.TensorSpec([None], tf.float64, "x"))
