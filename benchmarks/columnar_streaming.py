"""The project's own streaming side: the replayed log through `Shard` and `Featurize`."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.workload import PAYMENTS, REQUEST, SPAN_US, START_US, TWELVE, Workload, make_view
from tidemill import Project
from tidemill.features.contract import HOUR
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.kernel.prepare import matrix_of, nulls_of
from tidemill.pipelines.engines import choosing
from tidemill.pipelines.io.log import POSITION, Log
from tidemill.pipelines.io.replay import Replay, ReplayOptions
from tidemill.pipelines.stream.featurize import ANSWERS, Featurize
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.shard import Shard

POLL_ROWS: Final = 65_536

_LOGS: dict[int, tempfile.TemporaryDirectory[str]] = {}
_ANSWERS: list[pa.RecordBatch] = []


def _collect(batch: pa.RecordBatch) -> int:
    _ANSWERS.append(batch)
    return batch.num_rows


def _log_of(workload: Workload) -> Path:
    """Write a workload's log, once."""
    if id(workload) not in _LOGS:
        folder = tempfile.TemporaryDirectory()
        for definition, batch in ((PAYMENTS, workload.events), (REQUEST, workload.requests)):
            table = pa.Table.from_batches([batch.select(list(definition.schema))])
            times = table.column(definition.time_column).cast(pa.int64()).to_numpy()
            Log(Path(folder.name)).write(definition, 0, table, times)
        _LOGS[id(workload)] = folder
    return Path(_LOGS[id(workload)].name)


def run_columnar(workload: Workload, engine: str) -> pa.Table:
    """Run the stream's own stages over a workload.

    Args:
        workload: Events and requests.
        engine: ``fnapi`` or ``prism``.

    Returns:
        The twelve features, and ``request``: the row of each; in the order of the requests.
    """
    project = Project("payments", REQUEST, [make_view(TWELVE)])
    choice = choosing.choose_engine(engine, streaming=True)
    replay = ReplayOptions(
        root=_log_of(workload),
        start_us=START_US - HOUR,
        stop_us=START_US + SPAN_US + HOUR,
        poll_rows=POLL_ROWS,
    )
    featurize = FeaturizeOptions(
        run=uuid.uuid4().hex,
        shards=1,
        partitions={PAYMENTS.name: 1, REQUEST.name: 1},
        publish=False,
    )
    _ANSWERS.clear()
    pipeline = beam.Pipeline(
        runner=choosing.make_runner(choice),
        options=PipelineOptions(choosing.engine_options(choice)),
    )
    sharded = pipeline | Replay(project, replay) | "Shard" >> beam.ParDo(Shard(project, 1))
    answered = (sharded | Featurize(project, featurize))[ANSWERS]
    _ = answered | "Collect" >> beam.Map(_collect)
    choosing.run(pipeline, choice)
    whole = pa.Table.from_batches(_ANSWERS).combine_chunks()
    batch = whole.to_batches()[0]
    positions = hashing.bits(batch.column(POSITION))
    columns = column_arrays(
        project.columns, matrix_of(batch.column("values")), nulls_of(batch.column("nulls"))
    )
    order = np.argsort(positions, kind="stable")
    named = {name.split("__", 1)[1]: array.take(pa.array(order)) for name, array in columns.items()}
    return pa.table({"request": pa.array(positions[order]), **named})
