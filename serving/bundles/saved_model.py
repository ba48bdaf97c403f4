"""The SavedModel that serves: cast, transform graph and Keras model behind one signature.

It promises that the model gets the numbers in serving that it was trained on. Features arrive as
float64 and int64, exactly as the kernel computed them; the only cast to float32 is inside. Its
inputs are the four blocks of `serving.bundles.blocks`.

It has three signatures. ``serving_default`` returns ``score``, float32 ``(rows,)``. Its two parts
are ``transform``, from the blocks to the transformed tensors by name, and ``model``, from those to
``score``: one after the other they give the bytes that the whole gives for calls of equal shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tidemill.features.errors import BundleError, DefinitionError
from tidemill.features.models.preprocessing import (
    SMALLEST_NORMAL,
    ModelInput,
    ModelSpec,
)
from tidemill.serving.bundles.blocks import Layout
from tidemill.serving.bundles.content_hash import content_hash
from tidemill.serving.bundles.graph_hash import graph_hash
from tidemill.serving.files.read_files import read_json
from tidemill.serving.models.tensorflow_start import load_tensorflow

GRAPH_FILE: Final = "transform.json"
"""The file of the graph's inputs and outputs, beside tf.Transform's own files."""
SCORE: Final = "serving_default"
"""The signature that scores."""
SCORE_OUTPUT: Final = "score"
"""Its output."""
TRANSFORM: Final = "transform"
"""The signature that returns the model's inputs."""
MODEL: Final = "model"
"""The signature that scores those."""
_GRAPH: Final = "transform_fn"
"""tf.Transform's SavedModel, and its function."""
_FUNCTION: Final = "transform_fn"


@dataclass(frozen=True)
class TransformGraph:
    """An analysed transform graph in a directory (tf.Transform's layout plus `GRAPH_FILE`).

    Attributes:
        directory: Its directory.
        inputs: Its inputs in order.
        numeric: Output name to ``k``, float32 ``(rows, k)``.
        vocabularies: Output name to number of ids, int64 ``(rows,)``.
    """

    directory: Path
    inputs: tuple[ModelInput, ...]
    numeric: Mapping[str, int]
    vocabularies: Mapping[str, int]

    def save(self) -> None:
        """Write `GRAPH_FILE`."""
        content = {"inputs": [asdict(i) for i in self.inputs], **self.outputs()}
        (self.directory / GRAPH_FILE).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> TransformGraph:
        """Read the description of a saved graph.

        Raises:
            BundleError: The directory holds none.
        """
        path = directory / GRAPH_FILE
        if not path.is_file():
            raise BundleError(f"{directory} holds no transform graph: there is no {GRAPH_FILE}")

        def take(content: Any) -> TransformGraph:
            inputs = tuple(ModelInput(**i) for i in content["inputs"])
            return cls(directory, inputs, content["numeric"], content["vocabularies"])

        return read_json(path, take, "copy the bundle again or run `tidemill train` again")

    def outputs(self) -> dict[str, dict[str, int]]:
        """Return `numeric` and `vocabularies` for JSON."""
        return {"numeric": dict(self.numeric), "vocabularies": dict(self.vocabularies)}

    def model_spec(self, learning_rate: float, seed: int) -> ModelSpec:
        """Return the specification for building a model over its outputs."""
        return ModelSpec(dict(self.numeric), dict(self.vocabularies), learning_rate, seed)

    @property
    def hash(self) -> str:
        """Canonical hash of what it computes and of its inputs and outputs, 16 hexadecimal digits.

        Raises:
            BundleError: The graph holds something that has no canonical hash.
        """
        inputs = [[i.name, i.dtype] for i in self.inputs]
        computed = graph_hash(self.directory / _GRAPH, [_FUNCTION])
        return content_hash({"inputs": inputs, **self.outputs(), "graph": computed})

    def load(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Load the graph as a function over tensors.

        Returns:
            A function from input name to tensor (float32 or string, ``(rows,)``) to output name to
            tensor. Its attribute ``resources`` must be tracked by a module that is saved with it.
        """
        tf = load_tensorflow()
        loaded = tf.saved_model.load(str(self.directory / _GRAPH))
        shapes: dict[str, list[int | None]] = {n: [None, k] for n, k in self.numeric.items()}
        shapes |= {name: [None] for name in self.vocabularies}

        def transform(columns: Mapping[str, Any]) -> dict[str, Any]:
            # Lookup tables lose their static shape in a SavedModel.
            outputs = loaded.transform_fn(dict(columns))
            return {name: tf.ensure_shape(outputs[name], shape) for name, shape in shapes.items()}

        transform.resources = loaded  # type: ignore[attr-defined]
        return transform


def save_model(graph: TransformGraph, model: Any, directory: Path) -> None:
    """Save cast, transform graph and model as one SavedModel in a new directory.

    The keras.Model takes a dict of the graph's outputs and returns one number per row.

    Raises:
        DefinitionError: The model returns more or less than one number per row.
    """
    tf = load_tensorflow()
    shape = model.output_shape
    if not isinstance(shape, tuple) or tuple(shape[1:]) not in ((), (1,)):
        raise DefinitionError(
            f"the project's model must end in one sigmoid, shape (rows, 1); found {shape}"
        )
    layout = Layout.of(graph.inputs)
    floats, integers, texts = layout.floats, layout.integers, layout.texts
    transform = graph.load()
    signature = [
        tf.TensorSpec((None, len(floats)), tf.float64, "float64"),
        tf.TensorSpec((None, len(integers)), tf.int64, "int64"),
        tf.TensorSpec((None, len(integers)), tf.bool, "null"),
        tf.TensorSpec((None, len(texts)), tf.string, "text"),
    ]

    def transformed(float64: Any, int64: Any, null: Any, text: Any) -> dict[str, Any]:
        normal = tf.where(tf.abs(float64) < SMALLEST_NORMAL, tf.zeros((), tf.float64), float64)
        numbers = tf.cast(normal, tf.float32)
        whole = tf.where(null, tf.constant(np.nan, tf.float32), tf.cast(int64, tf.float32))
        columns = {i.name: numbers[:, j] for j, i in enumerate(floats)}
        columns |= {i.name: whole[:, j] for j, i in enumerate(integers)}
        columns |= {i.name: text[:, j] for j, i in enumerate(texts)}
        return transform(columns)

    def scored(columns: dict[str, Any]) -> dict[str, Any]:
        scores = model(columns, training=False)
        return {"score": tf.cast(tf.reshape(scores, [-1]), tf.float32)}

    def score(float64: Any, int64: Any, null: Any, text: Any) -> dict[str, Any]:
        return scored(transformed(float64, int64, null, text))

    parts = {n: tf.TensorSpec((None, k), tf.float32, n) for n, k in graph.numeric.items()}
    parts |= {name: tf.TensorSpec((None,), tf.int64, name) for name in graph.vocabularies}
    module = tf.Module()
    module.transform = transform.resources  # type: ignore[attr-defined]
    # The values alone: serving does not need the optimizer's slots.
    module.weights = [variable.value for variable in model.variables]
    module.score = tf.function(score, input_signature=signature)
    module.transformed = tf.function(transformed, input_signature=signature)
    module.scored = tf.function(scored, input_signature=[parts])
    signatures = {SCORE: module.score, TRANSFORM: module.transformed, MODEL: module.scored}
    tf.saved_model.save(module, str(directory), signatures=signatures)


def model_hash(directory: Path) -> str:
    """Return the canonical hash of what a saved model's signatures compute, 16 hexadecimal digits.

    Args:
        directory: The SavedModel, as `save_model` writes it.

    Raises:
        BundleError: The model holds something that has no canonical hash.
    """
    return content_hash(
        graph_hash(directory, [f"signatures/{name}" for name in (SCORE, TRANSFORM)])
    )
