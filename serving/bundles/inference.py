"""The inference engine: a bundle's SavedModel, loaded once, called in few shapes.

It promises: with equal stamps, equal inputs give equal bytes, for any number of concurrent callers.
TensorFlow's bytes depend on the shape of a batch, and on a row's place in it (oneDNN's kernels for
AVX2 compute the last rows of some shapes otherwise). So batches are padded to few shapes
(`serving.models.buckets`), and the padded shape and a row's place are stamps.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.errors import InputError
from tidemill.features.models.preprocessing import ModelInput, input_column
from tidemill.serving.bundles.blocks import BlockFeed, Blocks, Layout
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.device import device_stamp
from tidemill.serving.bundles.saved_model import SCORE, SCORE_OUTPUT, TRANSFORM
from tidemill.serving.models.saved_model import Limits, Outcome, SavedModel
from tidemill.serving.models.tensorflow_start import compiles_by_itself, load_tensorflow

Columns: TypeAlias = "pa.RecordBatch | pa.Table | Mapping[str, Any]"
"""Model inputs by name: Arrow, or numpy arrays (masked where an int64 or bool is null)."""


@dataclass(frozen=True)
class Stamps:
    """The conditions that a score's bytes depend on, besides its inputs and its place in a call.

    Attributes:
        bundle: The bundle's version.
        transform: The transform graph's hash.
        features: The feature-spec hash.
        device: The CPU, or ``GPU`` with the device's name (`device_stamp`).
        tensorflow: TensorFlow's version.
        xla: Whether TensorFlow compiled with XLA by itself; where it does, no model is loaded now.
    """

    bundle: str
    transform: str
    features: str
    device: str
    tensorflow: str
    xla: bool


class Scorer:
    """Scores batches with a bundle; may be called from many threads at once.

    Args:
        bundle: The bundle. A GPU is used if TensorFlow finds one.

    Attributes:
        bundle: The bundle.
        layout: How its inputs are divided among blocks.
        stamps: What the bytes of a score depend on.
    """

    def __init__(self, bundle: Bundle) -> None:
        tf = load_tensorflow()
        self.bundle = bundle
        self.layout = Layout.of(bundle.inputs)
        self._model = SavedModel(
            bundle.model_directory, SCORE, feed=BlockFeed(), limits=Limits(no_nan=(SCORE_OUTPUT,))
        )
        self._model.warm(self.layout.pack(self.layout.zeros()))
        self.stamps = Stamps(
            bundle=bundle.version,
            transform=bundle.transform_hash,
            features=bundle.feature_spec_hash,
            device=device_stamp(),
            tensorflow=tf.__version__,
            xla=compiles_by_itself(),
        )

    def score(
        self, columns: Columns | Blocks, parts: Sequence[int] | None = None
    ) -> npt.NDArray[np.float32]:
        """Score a batch.

        Args:
            columns: Every model input by name in its declared type (int64, float64, bool or
                string; nullable), further columns are ignored; or they as blocks.
            parts: The rows of each part of the batch, which is scored in calls of its own, as if it
                were alone: last bits may depend on a row's place in a call. None is one part.

        Returns:
            float32, ``(rows,)``.

        Raises:
            InputError: A column is missing, of another type or of another length; or the model
                fails on a row.
        """
        found = self.call(columns, parts)
        if found.rejected:
            first = found.rejected[0]
            raise InputError(
                f"the model fails on {len(found.rejected)} of {found.outputs.num_rows} rows; on "
                f"row {first.row}: {first.message}"
            )
        if not found.outputs.num_rows:
            return np.zeros(0, np.float32)
        scores: npt.NDArray[np.float32] = found.outputs.column(SCORE_OUTPUT).to_numpy()
        return scores

    def call(self, columns: Columns | Blocks, parts: Sequence[int] | None = None) -> Outcome:
        """Score a batch, and say which rows the model refuses.

        Args:
            columns: As for `score`.
            parts: As for `score`.

        Returns:
            The column ``score``, float32; the rows on which the model fails or gives NaN, which are
            null there; and of each row its place in the call that made its score.

        Raises:
            InputError: A column is missing, of another type or of another length.
        """
        return self._model.call(self._blocks(columns), parts)

    def transform(self, columns: Columns) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of the model inside the bundle for a batch.

        Args:
            columns: As for `score`; at least one row.

        Returns:
            The transformed columns by name: float32 ``(rows, k)`` or int64 ``(rows,)``.

        Raises:
            InputError: As for `score`.
        """
        found = self._transform.call(self._blocks(columns)).outputs
        return {name: _array(found.column(name)) for name in found.schema.names}

    @property
    def concrete_function(self) -> Any:
        """TensorFlow's function that scores blocks."""
        return self._model.concrete_function

    @functools.cached_property
    def _transform(self) -> SavedModel:
        return SavedModel(
            self.bundle.model_directory, TRANSFORM, feed=BlockFeed(), beside=self._model
        )

    def _blocks(self, columns: Columns | Blocks) -> Blocks:
        if isinstance(columns, Blocks):
            return columns
        inputs = self.bundle.inputs
        if not isinstance(columns, pa.RecordBatch):
            if isinstance(columns, pa.Table):
                arrays = [input_column(columns, wanted) for wanted in inputs]
            else:
                arrays = _from_mapping(columns, inputs)
            columns = pa.RecordBatch.from_arrays(arrays, names=[wanted.name for wanted in inputs])
        return self.layout.pack(columns)


def _array(column: pa.Array) -> npt.NDArray[Any]:
    """Return a transformed column as an array: ``(rows, k)`` of fixed-size lists."""
    is_wide = pa.types.is_fixed_size_list(column.type)
    values: npt.NDArray[Any] = (column.flatten() if is_wide else column).to_numpy()
    return values.reshape(len(column), column.type.list_size) if is_wide else values


_shared: dict[str, Scorer] = {}
_shared_lock = threading.Lock()


def shared_scorer(bundle: Bundle) -> Scorer:
    """Return this process's only scorer for a bundle; load it on first use.

    The scorers of the newest bundle and of the one before it are kept, for callers in between.
    """
    with _shared_lock:
        scorer = _shared.pop(bundle.version, None) or Scorer(bundle)
        _shared[bundle.version] = scorer
        while len(_shared) > 2:
            del _shared[next(iter(_shared))]
        return scorer


def _from_mapping(columns: Mapping[str, Any], inputs: tuple[ModelInput, ...]) -> list[pa.Array]:
    arrays: list[pa.Array] = []
    schema_names = [name for name in columns if name in {wanted.name for wanted in inputs}]
    for name in schema_names:
        values = columns[name]
        if isinstance(values, pa.Array):
            arrays.append(values)
            continue
        values = np.ma.asanyarray(values) if np.ma.isMaskedArray(values) else np.asarray(values)
        if values.ndim != 1:
            raise InputError(
                f"model input {name!r} must have the shape (rows,), found {values.shape}"
            )
        try:
            mask = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
            arrays.append(pa.array(np.ma.getdata(values), mask=mask, from_pandas=True))
        except pa.ArrowException as error:
            raise InputError(f"model input {name!r} is no column of one type: {error}") from error
    lengths = {name: len(array) for name, array in zip(schema_names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"model inputs have different numbers of rows: {lengths}")
    batch = pa.RecordBatch.from_arrays(arrays, names=schema_names)
    return [input_column(batch, wanted) for wanted in inputs]
