"""A SavedModel as Beam's `RunInference` calls it: Arrow batches in, Arrow batches out.

>>> from apache_beam.ml.inference.base import RunInference
>>> scores = batches | RunInference(TensorFlowModelHandler("gs://..."))  # doctest: +SKIP

An element is a record batch, and so is what comes out for it: batches are neither joined nor cut,
so `RunInference` does not batch them. Rows that the model refuses are rows of the output with a
reason (`REJECTED`); `SplitRejected` parts them from the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelHandler

from tidemill.features.errors import InputError, ModelError
from tidemill.serving.models.buckets import BUCKETS
from tidemill.serving.models.saved_model import SERVING, Limits, Outcome, RowFeed, SavedModel
from tidemill.serving.models.shared_calls import SharedCalls

REJECTED: Final = "rejected"
"""The column that says why a row has no outputs: null if it has, else a reason and a sentence."""
REJECTION: Final = pa.struct([("reason", pa.string()), ("message", pa.string())])


class TensorFlowModelHandler(
    ModelHandler[pa.RecordBatch, pa.RecordBatch, SavedModel | SharedCalls]
):
    """Scores record batches with any SavedModel.

    Args:
        model: The directory of the SavedModel, on a disk that the workers see.
        signature: The name of the signature.
        keep: The columns of a batch that its output has, too, before the model's outputs.
        buckets: The numbers of rows that calls have, ascending: smaller batches are padded, larger
            ones are cut.
        limits: What is done about rows and calls that fail.
        warm_up: Rows of which one is called with in each bucket when the model is loaded; None for
            zeros and empty strings.
        feed: Makes tensors of batches; None for one that takes a column for each input.
        xla: Whether XLA compiles the signature when the model is loaded.
        max_latency_ms: How long a call waits at most for the batches of other threads of the
            process, to go together; 0 takes what came during the call before; None shares no calls.

    Elements are record batches, or lists of them, which are scored one by one. What comes out has a
    row for each row that came in: the columns `keep`, the outputs by name, and `REJECTED`.
    """

    def __init__(
        self,
        model: Path | str,
        signature: str = SERVING,
        *,
        keep: Sequence[str] = (),
        buckets: Sequence[int] = BUCKETS,
        limits: Limits | None = None,
        warm_up: pa.RecordBatch | None = None,
        feed: RowFeed | None = None,
        xla: bool = False,
        max_latency_ms: float | None = None,
    ) -> None:
        if max_latency_ms is not None and not 0 <= max_latency_ms < 60_000:
            raise ModelError(f"max_latency_ms must be 0 to 60,000, found {max_latency_ms:g}")
        super().__init__()
        self._model, self._signature, self._keep = str(model), signature, tuple(keep)
        self._buckets, self._limits = tuple(buckets), limits or Limits()
        self._warm_up, self._feed = warm_up, feed
        self._xla, self._max_latency_ms = xla, max_latency_ms

    def load_model(self) -> SavedModel | SharedCalls:
        """Load the model, and call it once in each bucket.

        Raises:
            ModelError: It is no SavedModel, or has no such signature, or takes no row of `warm_up`;
                or an output has the name of a column that is kept.
        """
        found = SavedModel(
            self._model,
            self._signature,
            buckets=self._buckets,
            limits=self._limits,
            warm_up=self._warm_up,
            feed=self._feed,
            xla=self._xla,
        )
        if twice := {*found.signature.outputs} & {*self._keep, REJECTED}:
            raise ModelError(
                f"the signature {self._signature!r} of {self._model} has outputs that have the "
                f"names of kept columns, or of the column of rejections: {', '.join(sorted(twice))}"
            )
        if self._max_latency_ms is None:
            return found
        return SharedCalls(found, self._max_latency_ms / 1_000, self._buckets[-1])

    def run_inference(
        self,
        batch: pa.RecordBatch | Sequence[pa.RecordBatch],
        model: SavedModel | SharedCalls,
        inference_args: dict[str, Any] | None = None,
    ) -> list[pa.RecordBatch]:
        """Score a batch, or several.

        Args:
            batch: What came in.
            model: From `load_model`.
            inference_args: None; there are none.

        Raises:
            InputError: A batch lacks a column, or has one that the signature does not take.
            ModelError: The model does not return one row for each.
        """
        batches = [batch] if isinstance(batch, pa.RecordBatch) else batch
        return [self._scored(one, model) for one in batches]

    def _scored(self, batch: pa.RecordBatch, model: SavedModel | SharedCalls) -> pa.RecordBatch:
        if lacking := [name for name in self._keep if name not in batch.schema.names]:
            raise InputError(f"columns that are to be kept are not there: {', '.join(lacking)}")
        found = model.call(batch)
        _count(found)
        return pa.RecordBatch.from_arrays(
            [
                *(batch.column(name) for name in self._keep),
                *found.outputs.columns,
                _reasons(found, batch.num_rows),
            ],
            names=[*self._keep, *found.outputs.schema.names, REJECTED],
        )

    def should_skip_batching(self) -> bool:
        """Return True: elements are batches."""
        return True

    def get_num_bytes(self, batch: pa.RecordBatch | Sequence[pa.RecordBatch]) -> int:
        """Return the bytes of a batch's buffers."""
        batches = [batch] if isinstance(batch, pa.RecordBatch) else batch
        return sum(one.get_total_buffer_size() for one in batches)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of the figures."""
        return _NAMESPACE

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """Return True: Beam's figures cost more than a small batch; there are own ones."""
        return True

    def update_model_path(self, model_path: str | None = None) -> None:
        """Load another model from now on, as a side input of `RunInference` says."""
        self._model = model_path or self._model

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Refuse arguments of a call.

        Raises:
            ModelError: There are some.
        """
        if inference_args:
            raise ModelError(f"a SavedModel takes no inference_args, found {[*inference_args]}")


@beam.typehints.with_input_types(pa.RecordBatch)
class SplitRejected(beam.PTransform):
    """Parts the rows that were rejected from those that have outputs.

    Expands to two collections: the rows with outputs, without the column `REJECTED`; and the
    rejected ones, with what was kept of them and `REJECTED`. Neither has empty batches.
    """

    def expand(self, pcoll: beam.PCollection[pa.RecordBatch]) -> tuple[Any, Any]:
        """Wire it."""
        found = pcoll | beam.ParDo(_Split()).with_outputs(REJECTED, main="scored")
        return found["scored"], found[REJECTED]


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class _Split(beam.DoFn):
    def process(self, element: pa.RecordBatch) -> Iterator[Any]:
        reasons = element.column(REJECTED)
        names = [name for name in element.schema.names if name != REJECTED]
        good = element.filter(pc.is_null(reasons)) if reasons.null_count < len(reasons) else element
        if good.num_rows:
            yield good.select(names)
        if reasons.null_count < len(reasons):
            yield beam.pvalue.TaggedOutput(REJECTED, element.filter(pc.is_valid(reasons)))


def _reasons(found: Outcome, rows: int) -> pa.Array:
    if not found.rejected:
        return pa.nulls(rows, REJECTION)
    said: list[dict[str, str] | None] = [None] * rows
    for one in found.rejected:
        said[one.row] = {"reason": one.reason, "message": one.message}
    return pa.array(said, REJECTION)


_NAMESPACE: Final = "tidemill.models"
_ROWS = Metrics.counter(_NAMESPACE, "rows")
_REJECTED_ROWS = Metrics.counter(_NAMESPACE, "rejected_rows")
_CALL_ROWS = Metrics.distribution(_NAMESPACE, "call_rows")


def _count(found: Outcome) -> None:
    _ROWS.inc(found.outputs.num_rows)
    if found.rejected:
        _REJECTED_ROWS.inc(len(found.rejected))
    if len(found.padded_rows):
        _CALL_ROWS.update(int(found.padded_rows[0]))
