"""The job that analyses a training split: a Beam pipeline around tf.Transform. Wiring only.

All batches come from one element, and nothing shuffles them, so they are analysed in their order,
in one bundle: sums of floats, which depend on the order, are the same on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import tensorflow_transform.beam as tft_beam

from tidemill.pipelines.io.steps import Elements, step


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(pa.RecordBatch)
class _ReadBatches(beam.DoFn):
    """Reads the batches of an Arrow file."""

    def process(self, element: str) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(element) as file:
            batches = pa.ipc.open_file(file)
            for index in range(batches.num_record_batches):
                yield batches.get_batch(index)


def wire(
    source: Path,
    adapter: Any,
    preprocess: Callable[[dict[str, Any]], dict[str, Any]],
    directory: Path,
    pipeline: beam.Pipeline,
) -> None:
    """Wire the job.

    Args:
        source: The Arrow file of the training split.
        adapter: How tf.Transform reads its columns, a ``TensorAdapterConfig``.
        preprocess: The function that is analysed.
        directory: Where the transform graph is written.
        pipeline: An empty pipeline.
    """
    rows = pipeline | "Rows" >> Elements([str(source)]) | step("Read", _ReadBatches())
    graph = (rows, adapter) | "Analyse" >> tft_beam.AnalyzeDataset(preprocess)
    _ = graph | "Write" >> tft_beam.WriteTransformFn(str(directory))
