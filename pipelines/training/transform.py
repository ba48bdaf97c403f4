"""The transform graph in batch: analysed once over the training split, then applied.

The analysis is a Beam pipeline over Arrow batches of thousands of rows (`training.analysis`). It
sees all rows that `analyse` gets, so the caller passes the training split only. Applying the graph
needs no Beam: it is a TensorFlow function that runs in this process on thousands of rows at a time,
in the batch shapes of serving.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.errors import DefinitionError, InputError, nearest
from tidemill.features.models.preprocessing import TEXT_KIND, ModelInput, to_arrow_feed
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.serving.bundles.saved_model import TransformGraph
from tidemill.serving.models.buckets import MAX_ROWS, padded_rows
from tidemill.serving.models.tensorflow_start import load_tensorflow

ANALYSIS_ROWS: Final = 8192
"""How many rows a batch of the analysis has."""

Arrays = dict[str, npt.NDArray[Any]]
"""Transformed columns by name: float32 ``(rows, k)`` or int64 ids ``(rows,)``."""


def analyse(
    preprocessing_fn: Callable[[dict[str, Any]], dict[str, Any]],
    inputs: Sequence[ModelInput],
    columns: pa.Table,
    directory: Path,
    jobs: BatchJobs | None = None,
) -> TransformGraph:
    """Run tf.Transform's analysis over a training split and save the transform graph.

    Args:
        preprocessing_fn: The user's ``preprocess`` (see `features.models.preprocessing`).
        inputs: Its model inputs.
        columns: The training split: the inputs by name in their declared types.
        directory: Where to save the graph; must be empty or missing.
        jobs: Runs the analysis; None for FnApiRunner.

    Returns:
        The saved graph.

    Raises:
        DefinitionError: The function's outputs break their contract.
        InputError: There are no rows, or a column is missing or of another type.
    """
    if columns.num_rows == 0:
        raise InputError("no rows to analyse: the training split is empty")
    if not inputs:
        raise DefinitionError("the transform graph has no inputs: no request inputs, no features")
    load_tensorflow()
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam

    from tidemill.pipelines.training.analysis import ROWS, wire

    _quieten_python_logs()
    feed = to_arrow_feed(columns, inputs)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the graph: workers see that folder, and may have another /tmp.
    with tempfile.TemporaryDirectory(prefix="analysis-", dir=directory.parent) as scratch:
        # Pass the rows in a file, since the description of a pipeline is no place for data.
        source = Path(scratch) / "rows.arrow"
        _write_batches(_as_lists(feed), source)
        jobs = BatchJobs.on(None, "analysis") if jobs is None else jobs
        with tft_beam.Context(temp_dir=scratch), jobs.meeting([directory.parent]) as jobs:
            jobs.run(
                "analyse",
                partial(
                    wire, source, _adapter_config(inputs), _checked(preprocessing_fn), directory
                ),
                partial(shutil.rmtree, directory, ignore_errors=True),
                {ROWS: [source]},
            )
    schema = tft.TFTransformOutput(str(directory)).transformed_metadata.schema
    numeric, vocabularies = _outputs(schema)
    found = TransformGraph(directory, tuple(inputs), numeric, vocabularies)
    found.save()
    return found


class Transformer:
    """A loaded transform graph, applied in chunks."""

    def __init__(self, graph: TransformGraph) -> None:
        self.graph = graph
        self._transform = graph.load()

    def __call__(self, columns: pa.Table | pa.RecordBatch) -> Arrays:
        """Apply the graph in batch.

        Args:
            columns: Its inputs by name in their declared types, any number of rows.

        Returns:
            The transformed columns, by output name.

        Raises:
            InputError: A column is missing or of another type.
        """
        graph = self.graph
        out: Arrays = {
            n: np.empty((columns.num_rows, k), np.float32) for n, k in graph.numeric.items()
        }
        out |= {name: np.empty(columns.num_rows, np.int64) for name in graph.vocabularies}
        start = 0
        for chunk in _tensors(to_arrow_feed(columns, graph.inputs), graph.inputs):
            stop = min(start + MAX_ROWS, columns.num_rows)
            for name, tensor in self._transform(chunk).items():
                out[name][start:stop] = tensor.numpy()[: stop - start]
            start = stop
        return out


def _tensors(feed: pa.RecordBatch, inputs: Sequence[ModelInput]) -> Iterator[dict[str, Any]]:
    """Yield a feed in chunks; pad the last one with its last row, as serving does."""
    tf = load_tensorflow()
    arrays = {i.name: feed.column(i.name).to_numpy(zero_copy_only=False) for i in inputs}
    for start in range(0, feed.num_rows, MAX_ROWS):
        rows = min(MAX_ROWS, feed.num_rows - start)
        index = start + np.minimum(np.arange(padded_rows(rows)), rows - 1)
        yield {
            i.name: tf.constant(
                arrays[i.name][index], tf.string if i.kind == TEXT_KIND else tf.float32
            )
            for i in inputs
        }


def _checked(
    preprocessing_fn: Callable[[dict[str, Any]], dict[str, Any]],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Wrap the user's function: check its outputs and give them their canonical shapes."""

    def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        try:
            outputs: Any = preprocessing_fn(dict(inputs))
        except KeyError as error:
            missing = str(error.args[0]) if error.args else ""
            raise DefinitionError(
                f"preprocessing_fn reads {missing!r}, which is not among its inputs; "
                f"{nearest(missing, inputs)}; it also runs without the windowed features, so it "
                "must take the inputs that are there"
            ) from error
        if not (isinstance(outputs, Mapping) and outputs):
            raise DefinitionError(
                "preprocessing_fn must return a dict of at least one output, "
                f"found {type(outputs).__name__}"
            )
        checked = {}
        for name, tensor in outputs.items():
            what = f"preprocessing_fn: output {name!r}"
            if not isinstance(tensor, tf.Tensor) or tensor.dtype not in (tf.float32, tf.int64):
                raise DefinitionError(
                    f"{what} must be a dense float32 or int64 tensor, found {tensor!r}"
                )
            rank = tensor.shape.rank
            if tensor.dtype == tf.float32 and rank == 1:
                tensor = tensor[:, tf.newaxis]
            elif tensor.dtype == tf.float32 and (rank != 2 or tensor.shape[1] is None):
                raise DefinitionError(
                    f"{what} must have the shape (rows,) or (rows, k) with k known, "
                    f"found {tensor.shape}"
                )
            elif tensor.dtype == tf.int64 and rank not in (1, None):
                raise DefinitionError(
                    f"{what}: ids must have the shape (rows,), found {tensor.shape}"
                )
            elif rank is None:
                tensor = tf.ensure_shape(tensor, [None])
            checked[name] = tensor
        return checked

    return preprocess


def _outputs(schema: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Read widths and vocabulary sizes from the schema of the transformed columns."""
    from tensorflow_metadata.proto.v0 import schema_pb2

    numeric, vocabularies = {}, {}
    for feature in schema.feature:
        if feature.type == schema_pb2.FLOAT:
            numeric[feature.name] = int(feature.shape.dim[0].size)
            continue
        domain = feature.int_domain
        if not feature.HasField("int_domain") or domain.min < 0:
            found = f"ids from {domain.min}" if feature.HasField("int_domain") else "no range"
            raise DefinitionError(
                f"preprocessing_fn: int64 output {feature.name!r} has {found}, so no model could "
                "size its embedding; use compute_and_apply_vocabulary(..., num_oov_buckets=1), "
                "bucketize, or tidemill.features.models.preprocessing.categories"
            )
        vocabularies[feature.name] = int(domain.max) + 1
    return numeric, vocabularies


def _as_lists(feed: pa.RecordBatch) -> pa.RecordBatch:
    """Wrap each value into a list of one, the form of a dense column in tf.Transform."""
    offsets = pa.array(np.arange(feed.num_rows + 1, dtype=np.int32))
    arrays = []
    for column in feed.columns:
        values = column.cast(pa.binary()) if pa.types.is_string(column.type) else column
        arrays.append(pa.ListArray.from_arrays(offsets, values))
    return pa.RecordBatch.from_arrays(arrays, names=feed.schema.names)


def _write_batches(feed: pa.RecordBatch, path: Path) -> None:
    """Write a batch in slices of `ANALYSIS_ROWS`."""
    with pa.ipc.new_file(str(path), feed.schema) as writer:
        for start in range(0, feed.num_rows, ANALYSIS_ROWS):
            writer.write_batch(feed.slice(start, ANALYSIS_ROWS))


def _adapter_config(inputs: Sequence[ModelInput]) -> Any:
    """Tell tf.Transform to read each column as a dense tensor of shape ``(rows,)``."""
    from tensorflow_metadata.proto.v0 import schema_pb2
    from tfx_bsl.tfxio import tensor_adapter

    fields, representations = [], {}
    for wanted in inputs:
        value_type = pa.binary() if wanted.kind == TEXT_KIND else pa.float32()
        fields.append(pa.field(wanted.name, pa.list_(value_type)))
        dense = schema_pb2.TensorRepresentation()
        dense.dense_tensor.column_name = wanted.name
        dense.dense_tensor.shape.SetInParent()  # no dimensions beside the rows
        representations[wanted.name] = dense
    return tensor_adapter.TensorAdapterConfig(pa.schema(fields), representations)


def _quieten_python_logs() -> None:
    """Silence the warnings of TensorFlow and tf.Transform about their own internals."""
    import logging

    for name in ("tensorflow", "absl", "tensorflow_transform"):
        logging.getLogger(name).setLevel(logging.ERROR)
