"""The inputs and outputs of the transform graph: the contract with the user's two functions.

A user who wants a model writes two functions:

* ``preprocess(inputs) -> outputs``, a tf.Transform ``preprocessing_fn``. ``inputs`` holds one
  dense tensor of shape ``(rows,)`` per model input: float32 with NaN for null (numbers, and
  booleans as 0 and 1), or string with ``""`` for null. Each output is float32 of shape ``(rows,)``
  or ``(rows, k)``, or int64 ids of shape ``(rows,)`` whose range tf.Transform knows (from
  ``compute_and_apply_vocabulary(..., num_oov_buckets=1)``, ``bucketize``, or `categories`).
  tf.Transform keeps ``""`` out of vocabularies, so a null text gets the id of unseen texts.
* ``model(spec) -> keras.Model``, compiled, over a dict of those outputs (float32 always as
  ``(rows, k)``), ending in one sigmoid. `ModelSpec` says what the outputs are.

``preprocess`` is also run on the request's own inputs alone (the baseline without windowed
features), where the dict has no features: it must not name one that may be missing.

>>> def preprocess(inputs):
...     numbers = tf.stack([x for x in inputs.values() if x.dtype == tf.float32], axis=1)
...     scaled = tft.scale_to_z_score(numbers, elementwise=True)  # one analyzer for all columns
...     return {"numbers": tf.concat([fill(scaled, 0.0), missing(numbers)], axis=1)}

This is the only module of ``features`` that touches TensorFlow, and only inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import ARROW_TYPES, STRING, Project
from tidemill.features.errors import InputError, nearest

NUMERIC_KIND: Final = "numeric"
TEXT_KIND: Final = "text"

SMALLEST_NORMAL: Final = 2.0**-126
"""The least positive normal float32. TensorFlow's kernels flush smaller magnitudes to zero and
numpy does not, so training and serving both flush them before they cast."""


@dataclass(frozen=True)
class ModelInput:
    """One model input.

    Attributes:
        name: The request input's or the feature column's name.
        dtype: Its dtype before the cast: ``int64``, ``float64``, ``bool`` or ``string``.
    """

    name: str
    dtype: str

    @property
    def kind(self) -> str:
        """``numeric`` (float32 in the transform graph) or ``text`` (string there)."""
        return TEXT_KIND if self.dtype == STRING else NUMERIC_KIND


@dataclass(frozen=True)
class ModelSpec:
    """What the user's ``model`` function builds a model for.

    Attributes:
        numeric: Output name to ``k``: float32 tensors of shape ``(rows, k)``.
        vocabularies: Output name to size: int64 tensors of shape ``(rows,)``, ids from 0 to
            size - 1 (an ``Embedding``'s or ``CategoryEncoding``'s number of rows).
        learning_rate: As configured.
        seed: The seed of this training; the random generators are seeded with it already.
    """

    numeric: Mapping[str, int]
    vocabularies: Mapping[str, int]
    learning_rate: float
    seed: int


def model_inputs(project: Project, *, only_request: bool = False) -> tuple[ModelInput, ...]:
    """Return a project's model inputs: the request's, then the feature columns, in order.

    Args:
        project: The project.
        only_request: Leave the windowed features out (the baseline).
    """
    inputs = [
        ModelInput(name, expression.dtype(project.request.schema))
        for name, expression in project.request.inputs.items()
    ]
    if not only_request:
        inputs += [ModelInput(column.name, column.dtype) for column in project.columns]
    return tuple(inputs)


def missing(x: Any) -> Any:
    """Return float32 of the same shape: 1.0 where ``x`` (float32) is null, else 0.0."""
    import tensorflow as tf

    return tf.cast(tf.math.is_nan(x), tf.float32)


def fill(x: Any, value: float) -> Any:
    """Return ``x`` (float32) with ``value`` where it is null."""
    import tensorflow as tf

    return tf.where(tf.math.is_nan(x), tf.constant(value, tf.float32), x)


def categories(x: Any, size: int) -> Any:
    """Turn whole numbers from 0 to ``size - 1`` into ids, for an embedding.

    Args:
        x: float32, ``(rows,)``; an hour of the day, for example.
        size: How many there are.

    Returns:
        int64, ``(rows,)``: the number, or ``size`` where it is null or anything else; the
        vocabulary has ``size + 1`` ids.
    """
    import tensorflow as tf
    from tensorflow_transform import schema_inference

    whole = (x >= 0) & (x < size) & (tf.floor(x) == x)
    found = tf.where(whole, tf.cast(tf.where(whole, x, 0.0), tf.int64), tf.cast(size, tf.int64))
    if not tf.executing_eagerly():
        schema_inference.set_tensor_schema_override(
            found, tf.constant(0, tf.int64), tf.constant(size, tf.int64)
        )
    return found


def as_float32(array: pa.Array) -> npt.NDArray[np.float32]:
    """Cast a numeric column to what the transform graph takes.

    The serving SavedModel does the same inside; both round to nearest even, once.

    Args:
        array: int64, float64 or bool, nullable.

    Returns:
        float32, ``(rows,)``: NaN where null, 0 for magnitudes below `SMALLEST_NORMAL`, infinity
        past float32's range.
    """
    if pa.types.is_float64(array.type):
        values = array.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            return np.where(np.abs(values) < SMALLEST_NORMAL, 0.0, values).astype(np.float32)
    whole = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    out: npt.NDArray[np.float32] = whole.astype(np.float32)
    if array.null_count:
        out[pc.is_null(array).to_numpy(zero_copy_only=False)] = np.nan
    return out


def input_column(columns: pa.Table | pa.RecordBatch, wanted: ModelInput) -> pa.Array:
    """Return an input's column as one array of its declared type.

    Raises:
        InputError: There is no such column, or its type is another.
    """
    index = columns.schema.get_field_index(wanted.name)
    if index < 0:
        raise InputError(
            f"model input {wanted.name!r} is not among the columns; "
            f"{nearest(wanted.name, columns.schema.names)}"
        )
    column = columns.column(index)
    expected = ARROW_TYPES[wanted.dtype]
    if column.type != expected:
        raise InputError(
            f"model input {wanted.name!r} must be {expected}, found {column.type}; cast it first"
        )
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def to_arrow_feed(
    columns: pa.Table | pa.RecordBatch, inputs: Sequence[ModelInput]
) -> pa.RecordBatch:
    """Cast model inputs to what the transform graph takes, in batch.

    Args:
        columns: Has every input by name in its declared type; more columns do no harm.
        inputs: Which to take, in order.

    Returns:
        A batch of the inputs in order: float32 (null is NaN) and string (null is ``""``).

    Raises:
        InputError: A column is missing or of another type.
    """
    arrays = []
    for wanted in inputs:
        column = input_column(columns, wanted)
        if wanted.kind == TEXT_KIND:
            arrays.append(pc.fill_null(column, ""))
        else:
            arrays.append(pa.array(as_float32(column)))
    return pa.RecordBatch.from_arrays(arrays, names=[wanted.name for wanted in inputs])
