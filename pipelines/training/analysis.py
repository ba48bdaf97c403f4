"""The job that analyses a training split: a Beam pipeline around tf.Transform. Wiring only.

All batches come from one element, and nothing shuffles them, so they are analysed in their order,
in one bundle: sums of floats, which depend on the order, are the same on every engine.

Between its phases tf.Transform leaves graphs and vocabularies in a folder that all workers must
see, and TensorFlow opens it. So where workers are elsewhere, one of them does the whole of it, by a
pipeline inside of its own process: it is the work of one task anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import tensorflow_transform.beam as tft_beam

from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.io.exchange.task_place import TaskPlace
from tidemill.pipelines.io.steps import Elements, step

ROWS: Final = "rows"
"""The name of the list that has the Arrow file, for workers elsewhere."""
Preprocess = Callable[[dict[str, Any]], dict[str, Any]]


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
    preprocess: Preprocess,
    directory: Path,
    pipeline: beam.Pipeline,
    place: TaskPlace | None,
) -> None:
    """Wire the job.

    Args:
        source: The Arrow file of the training split.
        adapter: How tf.Transform reads its columns, a ``TensorAdapterConfig``.
        preprocess: The function that is analysed.
        directory: Where the transform graph is written.
        pipeline: An empty pipeline.
        place: Where the task meets this program, if workers do not share its disk.
    """
    rows = pipeline | "Rows" >> Elements([str(source)])
    if place is not None:
        _ = rows | step("Analyse", _AnalyseElsewhere(adapter, preprocess, directory, place))
        return
    _analyse(rows, adapter, preprocess, directory)


def _analyse(
    source: beam.PCollection, adapter: Any, preprocess: Preprocess, directory: Path
) -> None:
    rows = source | step("Read", _ReadBatches())
    graph = (rows, adapter) | "Analyse" >> tft_beam.AnalyzeDataset(preprocess)
    _ = graph | "Write" >> tft_beam.WriteTransformFn(str(directory))


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class _AnalyseElsewhere(beam.DoFn):
    """Analyses rows in a process that does not see the root; leaves the graph."""

    def __init__(
        self, adapter: Any, preprocess: Preprocess, directory: Path, place: TaskPlace
    ) -> None:
        self._adapter, self._preprocess = adapter, preprocess
        self._directory, self._place = directory, place

    def process(self, element: str) -> None:
        with self._place.task("analyse") as task, tempfile.TemporaryDirectory() as scratch:
            (source,) = task.take(ROWS).values()
            directory = task.at(self._directory)
            directory.parent.mkdir(parents=True, exist_ok=True)

            def wire_here(pipeline: beam.Pipeline, _: TaskPlace | None) -> None:
                rows = pipeline | "Rows" >> Elements([str(source)])
                _analyse(rows, self._adapter, self._preprocess, directory)

            with tft_beam.Context(temp_dir=scratch):
                BatchJobs.on(None, "analysis").run("analyse", wire_here)
            task.leave()
