"""What a row costs, against partitions, shards, entities and views, and a state against its size.

Each axis is varied alone; all runs are whole runs of a stream's own stages over a log, on
FnApiRunner, in polls of as many rows as a stream reads by default. Answers do not depend on
partitions and shards, and are compared. A row's cost is CPU time, of one process.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.kernel import SLICE_ROWS, OneView, cut
from benchmarks.measure import AnswersDiffer, Effort, Figure, Run, Side, alternate, spread
from benchmarks.workload import (
    PAYMENTS,
    REQUEST,
    SPAN_US,
    START_US,
    TWELVE,
    Workload,
    make_view,
    make_workload,
)
from tidemill import Project
from tidemill.features.contract import HOUR
from tidemill.features.kernel.encoding import decode, encode
from tidemill.pipelines.engines import choosing
from tidemill.pipelines.io.log import PARTITION, POSITION, Log
from tidemill.pipelines.io.replay import Replay, ReplayOptions
from tidemill.pipelines.stream.featurize import ANSWERS, Featurize
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.shard import Shard

ROWS: Final = 400_000
MANY_ROWS: Final = 1_000_000
POLL_ROWS: Final = 4_096
STATES: Final = (100_000, 400_000, 1_600_000)
"""Rows of the states that are written and read."""

_ANSWERS: list[pa.RecordBatch] = []


@dataclass(frozen=True)
class Case:
    """What a stream has.

    Attributes:
        partitions: Of events, and of requests.
        shards: Of each view.
        entities: How many keys there are.
        views: How many views of twelve features.
    """

    partitions: int = 1
    shards: int = 2
    entities: int = 20_000
    views: int = 1


BASE: Final = Case()
AXES: Final[Mapping[str, tuple[int, ...]]] = {
    "partitions": (1, 4, 16, 64),
    "shards": (1, 2, 4, 8, 16),
    "entities": (1_000, 10_000, 100_000, 1_000_000),
    "views": (1, 2, 4, 8, 16),
}
_SAME_ANSWERS: Final = ("partitions", "shards")


def _collect(batch: pa.RecordBatch) -> int:
    _ANSWERS.append(batch)
    return batch.num_rows


def write_log(folder: Path, workload: Workload, partitions: int) -> None:
    """Write the rows of a workload as a log; row N goes to partition N modulo their number."""
    log = Log(folder)
    for definition, batch in ((PAYMENTS, workload.events), (REQUEST, workload.requests)):
        table = pa.Table.from_batches([batch.select(list(definition.schema))])
        times = table.column(definition.time_column).cast(pa.int64()).to_numpy()
        for partition in range(partitions):
            rows = np.arange(partition, table.num_rows, partitions)
            log.write(definition, partition, table.take(pa.array(rows)), times[rows])


def stream_over(folder: Path, case: Case) -> None:
    """Run a stream's stages over a log; the answers are in `_ANSWERS`."""
    view = make_view(TWELVE)
    views = [replace(view, name=f"card_{number}") for number in range(case.views)]
    project = Project("payments", REQUEST, views)
    choice = choosing.choose_engine("fnapi", streaming=True)
    replay = ReplayOptions(
        root=folder,
        start_us=START_US - HOUR,
        stop_us=START_US + SPAN_US + HOUR,
        poll_rows=POLL_ROWS,
    )
    featurize = FeaturizeOptions(
        run=uuid.uuid4().hex,
        shards=case.shards,
        partitions={PAYMENTS.name: case.partitions, REQUEST.name: case.partitions},
        publish=False,
    )
    _ANSWERS.clear()
    pipeline = beam.Pipeline(
        runner=choosing.make_runner(choice),
        options=PipelineOptions(choosing.engine_options(choice)),
    )
    sharded = (
        pipeline | Replay(project, replay) | "Shard" >> beam.ParDo(Shard(project, case.shards))
    )
    answered = (sharded | Featurize(project, featurize))[ANSWERS]
    _ = answered | "Collect" >> beam.Map(_collect)
    choosing.run(pipeline, choice)


def answers(partitions: int) -> pa.Table:
    """Return the answers of the last run, in the order of the requests."""
    table = pa.Table.from_batches(_ANSWERS)
    places = table.column(POSITION).to_numpy() * partitions + table.column(PARTITION).to_numpy()
    order = np.argsort(places, kind="stable")
    return table.select(["values", "nulls"]).take(pa.array(order)).combine_chunks()


def measure_axis(
    folder: Path, axis: str, values: Sequence[int], rows: int, effort: Effort
) -> list[Figure]:
    """Measure a row's cost along an axis.

    Args:
        folder: Where logs are written.
        axis: The attribute of `Case` that is varied.
        values: What it is.
        rows: Events and requests together.
        effort: How hard to measure.

    Raises:
        AnswersDiffer: Answers are missing, or depend on what they must not depend on.
    """
    sides, first, compared = {}, None, 0
    for value in values:
        case = replace(BASE, **{axis: value})
        workload = make_workload(rows, case.entities)
        place = folder / f"{axis}-{value}"
        write_log(place, workload, case.partitions)
        stream_over(place, case)
        found = answers(case.partitions)
        if found.num_rows != workload.requests.num_rows:
            raise AnswersDiffer(f"{axis} {value}: {found.num_rows:,} answers")
        if axis in _SAME_ANSWERS:
            first = found if first is None else first
            if not found.equals(first):
                raise AnswersDiffer(f"the answers depend on {axis}: {value}")
            compared += found.num_rows * len(TWELVE)
        sides[str(value)] = Side(partial(_counted, rows, partial(stream_over, place, case)))
    out = _costs(axis, alternate(sides, effort))
    if compared:
        out.append(Figure(f"{axis}: values that are the same at each", compared, "values"))
    return out


def _costs(axis: str, runs: Mapping[str, list[Run]]) -> list[Figure]:
    """Return what a row costs at each value, and against the first one."""
    out = []
    base, of_base = next(iter(runs.items()))
    for value, of_value in runs.items():
        costs = [1e6 / run.per_cpu_s for run in of_value]
        out.append(spread(f"{axis} {int(value):,}: CPU time of a row", costs, "us"))
        if value != base:
            against = [
                one.cpu_s / other.cpu_s for one, other in zip(of_value, of_base, strict=True)
            ]
            linear = f"linear: {int(value) / int(base):,.0f}"
            out.append(spread(f"{axis} {int(value):,}: against {base}", against, "x", linear))
    return out


def measure_states(sizes: tuple[int, ...], effort: Effort) -> list[Figure]:
    """Measure writing and reading states of different sizes."""
    out: list[Figure] = []
    for rows in sizes:
        one = OneView(TWELVE)
        slices = [one.prepare(part) for part in cut(make_workload(rows), SLICE_ROWS)]
        state, _ = one.advance_over(slices)
        data = encode(state)
        sides = {
            "written": Side(partial(_counted, rows, partial(encode, state))),
            "read": Side(partial(_counted, rows, partial(decode, data, one.plan))),
        }
        out.append(Figure(f"state of {rows:,} rows: size", len(data) / 2**20, "MiB"))
        for name, runs in alternate(sides, effort).items():
            took = [1_000 * run.cpu_s / run.repetitions for run in runs]
            out.append(spread(f"state of {rows:,} rows: {name}", took, "ms"))
    return out


def _counted(rows: int, work: Callable[[], object]) -> int:
    work()
    return rows


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    out: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-scaling-") as folder:
        for axis, values in AXES.items():
            rows = MANY_ROWS if axis == "entities" else ROWS
            if quick:
                values, rows = values[:2], 3_000
            out += measure_axis(Path(folder), axis, values, rows, effort)
    return out + measure_states((2_000, 4_000) if quick else STATES, effort)
