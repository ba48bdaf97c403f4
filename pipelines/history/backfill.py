"""Backfill: point-in-time features for every request in history, and the state to go on from.

On Beam: the log is read as polls, sharded like the stream's, grouped by (view, shard), and each
group goes through the kernel once, sorted; a worker holds one shard, not the history. The parts of
an answer meet by the same joiner as in the stream.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.contract import TIME_MAX, Int64Array
from tidemill.features.definitions.views import Project
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.compilation import compile_kernel
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import DIGEST, TIME, matrix_of, nulls_of
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import make_runner, run
from tidemill.pipelines.engines.options import batch_engine, pipeline_options
from tidemill.pipelines.history.labels import find_labels, leaks
from tidemill.pipelines.ingest.ingest import ingest
from tidemill.pipelines.ingest.validate import definition_of
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart, shard_poll
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.recovery.handoff import (
    RECORD,
    STATES,
    Handoff,
    file_hashes,
    remove_stops,
    write_handoff,
)
from tidemill.pipelines.recovery.republish import bootstrap
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.answer_join import AnswerJoiner, AnswerPart, feature_arrays
from tidemill.pipelines.stream.featurize import FeaturizeOptions, make_operator, operator_key
from tidemill.pipelines.stream.sequence import (
    GROUP,
    SequencedBatch,
    concat,
    decode_batches,
    sequenced_events_schema,
)
from tidemill.pipelines.stream.shard import Shard, is_batches, is_request
from tidemill.pipelines.stream.wire_format import decode_part, encode_part

CHUNK_ROWS: Final = 65_536
"""Rows of a partition that are read, and requests that are joined, together."""


@beam.typehints.with_input_types(tuple[str, int, int, int])
@beam.typehints.with_output_types(bytes)
class _ReadLog(beam.DoFn):
    """Reads a span of a log partition as a poll."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def process(self, element: tuple[str, int, int, int]) -> Iterator[bytes]:
        source, partition, start, stop = element
        table = Log(self._root).read(source, partition).slice(start, stop - start)
        part = PollPart(source, partition, start, stop, TIME_MAX, one_batch(table))
        yield Poll(0, (part,)).encode()


def spans(log: Log, project: Project) -> list[tuple[str, int, int, int]]:
    """Cut every partition of every source of the views and the request into spans."""
    out = []
    names = dict.fromkeys([*(view.stream.name for view in project.views), project.request.name])
    for name in names:
        for partition in range(log.partitions(name)):
            rows = log.read(name, partition, [POSITION]).num_rows
            out += [
                (name, partition, start, min(start + CHUNK_ROWS, rows))
                for start in range(0, rows, CHUNK_ROWS)
            ]
    return out


def answer_shard(
    project: Project, view_index: int, shard: int, elements: Iterable[bytes]
) -> Iterator[tuple[int, AnswerPart]]:
    """Put everything of one (view, shard) through the kernel.

    Args:
        project: The project.
        view_index: The view's place in it.
        shard: The shard.
        elements: Sequenced batches, in any order.

    Yields:
        The group of requests, and its answers.
    """
    plan = make_plan(project.views[view_index])
    schema = sequenced_events_schema(plan)
    events: list[pa.RecordBatch] = []
    requests: list[pa.RecordBatch] = []
    for data in elements:
        for batch in decode_batches(data, schema):
            if batch.rows is not None:
                (requests if batch.is_request else events).append(batch.rows)
    everything, asked = concat(events), concat(requests)
    if asked is None:
        return
    until = int(hashing.bits(asked.column(TIME)).max())
    if everything is not None:
        digests = matrix_of(everything.column(DIGEST)).view(np.uint64)
        everything = everything.take(pa.array(first_occurrences(digests)))
        until = max(until, int(hashing.bits(everything.column(TIME)).max()) + 1)
    gone = advance(State(plan, publishes=False), everything, asked, until, Publish.NOTHING)
    groups = hashing.bits(asked.column(GROUP))
    answers = pa.RecordBatch.from_arrays(
        [*gone.answers.columns, asked.column(GROUP)], names=[*gone.answers.schema.names, GROUP]
    )
    for group in np.unique(groups).tolist():
        rows = answers.filter(pa.array(groups == group))
        yield group, AnswerPart(view_index, shard, 0, until, rows)


@beam.typehints.with_input_types(tuple[str, Iterable[bytes]])
@beam.typehints.with_output_types(tuple[int, bytes])
class _Answer(beam.DoFn):
    def __init__(self, project: Project) -> None:
        self._project = project

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        key, elements = element
        name, _, shard, _ = key.split("/")
        view = [v.name for v in self._project.views].index(name)
        for group, part in answer_shard(self._project, view, int(shard), elements):
            yield group, encode_part(part)


def join_answers(project: Project, shards: int, parts: Iterable[bytes]) -> pa.RecordBatch:
    """Join all parts of one group of requests.

    Raises:
        InputError: A part is missing.
    """
    joiner = AnswerJoiner(project, shards, answer_within_us=0)
    answered, _ = joiner.receive(decode_part(data) for data in parts)
    if len(answered) != 1:
        lost = joiner.drain()
        views = sorted({view for part in lost for view in part.views})
        raise InputError(f"the engine lost parts of the answers of views {views}")
    return answered[0]


@beam.typehints.with_input_types(tuple[int, Iterable[bytes]])
@beam.typehints.with_output_types(pa.RecordBatch)
class _TrainingRows(beam.DoFn):
    """Joins the parts of a group, and adds the labels: rows of the training table."""

    def __init__(self, project: Project, shards: int, root: Path) -> None:
        self._project = project
        self._shards = shards
        self._root = root

    def setup(self) -> None:
        label = self._project.label
        self._labels = None if label is None else Log(self._root).read(label.stream.name)

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[pa.RecordBatch]:
        answered = join_answers(self._project, self._shards, element[1])
        yield training_rows(self._project, answered, self._labels)


def training_rows(
    project: Project, answered: pa.RecordBatch, label_events: pa.Table | None
) -> pa.RecordBatch:
    """Make rows of the training table.

    Args:
        project: The project.
        answered: Answered requests (`pipelines.stream.answer_join.answered_schema`), ``(rows,)``.
        label_events: Validated rows of the label's stream; None for a project without a label.

    Returns:
        ``request_id request_time``, the request's inputs, every feature column, ``label``,
        ``label_time``; ``(rows,)``.
    """
    request = project.request
    requests = answered.select(list(request.schema))
    columns: dict[str, pa.Array] = {
        "request_id": requests.column(request.request_id).cast(pa.string()),
        "request_time": requests.column(request.request_time),
    }
    columns |= {name: e.evaluate(requests) for name, e in request.inputs.items()}
    columns |= feature_arrays(
        project, matrix_of(answered.column("values")), nulls_of(answered.column("nulls"))
    )
    if project.label is not None and label_events is not None:
        found = find_labels(project.label, request, pa.Table.from_batches([requests]), label_events)
        columns |= {"label": found.values, "label_time": found.times}
    columns |= {
        "_partition": answered.column(PARTITION),
        "_position": answered.column(POSITION),
    }
    return pa.RecordBatch.from_pydict(columns)


def backfill(config: Configuration, progress: Progress, publish: bool = False) -> dict[str, Any]:
    """Ingest, compute the training table, and hand over the state as of the evaluation's end.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        publish: Fill the online store from the handed-over state, too.

    Returns:
        Counts and figures by step.

    Raises:
        InputError: A source cannot be read, or events of a label precede their own request.
    """
    compile_kernel(progress)
    summary: dict[str, Any] = {"sources": ingest(config, progress)}
    summary["training"] = point_in_time(config, progress)
    summary["handoff"] = hand_over(config, progress)
    if publish:
        summary["published"] = bootstrap(config, progress)
    return summary


def point_in_time(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Compute the training table from the log."""
    project, root = config.project, config.root
    log = Log(root)
    leaked = 0
    if project.label is not None:
        leaked = leaks(
            project.label,
            project.request,
            log.read(project.request.name),
            log.read(project.label.stream.name),
        )
        if leaked:
            raise InputError(
                f"label {project.label.name!r}: {leaked} of its events do not come after their "
                f"own request; a feature could see what it is to predict. Ask earlier "
                f"(request {project.request.name!r}), or drop those requests"
            )
    shutil.rmtree(root / "features", ignore_errors=True)
    choice = batch_engine()
    requests = log.read(project.request.name, columns=[POSITION]).num_rows
    with progress.stage("point-in-time features", total=requests, unit="requests") as stage:
        stage.note(choice.why)
        pipeline = beam.Pipeline(
            runner=make_runner(choice), options=pipeline_options(config, choice, "backfill")
        )
        polls = (
            pipeline
            | beam.Create(spans(log, project))
            | beam.Reshuffle()
            | "ReadLog" >> beam.ParDo(_ReadLog(root))
        )
        sharded = polls | Shard(project, config.shards)
        answers = (
            sharded
            | "Batches" >> beam.Filter(is_batches)
            | "GroupByShard" >> beam.GroupByKey()
            | "PointInTime" >> beam.ParDo(_Answer(project))
        )
        asked = (
            sharded
            | "Requests" >> beam.Filter(is_request)
            | "KeyByGroup" >> beam.Map(_by_group).with_output_types(tuple[int, bytes])
        )
        _ = (
            (answers, asked)
            | beam.Flatten()
            | "GroupByRequests" >> beam.GroupByKey()
            | "TrainingRows" >> beam.ParDo(_TrainingRows(project, config.shards, root))
            | WriteParquet(root / "features", ("_partition", "_position"))
        )
        run(pipeline, choice)
        rows = sum(
            pq.read_metadata(path).num_rows for path in (root / "features").glob("*.parquet")
        )
        stage.advance(rows)
    if rows != requests:
        raise InputError(f"{requests} requests went in and {rows} training rows came out")
    return {"requests": requests, "rows": rows, "label_leaks": leaked}


def _by_group(element: tuple[str, bytes]) -> tuple[int, bytes]:
    part = decode_part(element[1])
    return part.group, element[1]  # type: ignore[union-attr]


def hand_over(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Write every operator's state of all that was received before the stream begins."""
    project, root = config.project, config.root
    as_of = config.splits.evaluate_until_us
    log = Log(root)
    partitions = source_partitions(log, project)
    options = FeaturizeOptions(
        run="handoff", shards=config.shards, partitions=partitions, publish=False
    )
    folder = root / STATES
    # The record goes first: without it the folder does not count, whatever else is in it. The
    # cuts of a stream that began with other states mean nothing any more.
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    remove_stops(root)
    parts, positions = parts_before(log, project, partitions, as_of)
    events = 0
    frontiers: dict[str, list[int]] = {view.name: [] for view in project.views}
    total = len(project.views) * config.shards
    with progress.stage("hand over state", total=total, unit="shards") as stage:
        plans = {view.name: make_plan(view) for view in project.views}
        for view, shard, data in shard_poll(project, plans, config.shards, Poll(0, tuple(parts))):
            key = operator_key(project, view, shard, config.shards)
            operator = make_operator(project, key, options)
            operator.receive(_without_requests(decode_batches(data, operator.event_schema)))
            # The releases of a stream count from 1; those made here were never seen by anyone.
            operator.number = 0
            write_handoff(folder, operator)
            events += operator.counters.events
            frontiers[operator.key.view].append(operator.state.frontier_us)
            stage.advance(1)
    handoff = Handoff(
        kind="backfill",
        as_of_us=as_of,
        positions=positions,
        views={view.name: view.hash for view in project.views},
        shards=config.shards,
        segment=0,
        frontiers=frontiers,
        began=None,
        mode=None,
        files=file_hashes(folder),
    )
    handoff.write(folder)
    return {"as_of_us": as_of, "shards": total, "events": events}


def _without_requests(batches: Iterable[SequencedBatch]) -> Iterator[SequencedBatch]:
    """Keep the places and watermarks of requests, not the requests: they are answered already."""
    for batch in batches:
        yield dataclasses.replace(batch, rows=None) if batch.is_request else batch


def source_partitions(log: Log, project: Project) -> dict[str, int]:
    """Count the partitions of each source."""
    names = [*(stream.name for stream in project.streams), project.request.name]
    return {name: log.partitions(name) for name in names}


def parts_before(
    log: Log, project: Project, partitions: dict[str, int], as_of: int
) -> tuple[list[PollPart], dict[str, list[int]]]:
    """Return every partition's rows received before an instant, and where they end."""
    parts = []
    positions: dict[str, list[int]] = {}
    for name, count in partitions.items():
        # Rows received later may still lie this far below: the stream goes on waiting for them.
        definition = definition_of(project, name)
        for partition in range(count):
            table = log.read(name, partition)
            received: Int64Array = table.column(RECEIVED).to_numpy()
            stop = int(np.searchsorted(received, as_of, "left"))
            rows = one_batch(table.slice(0, stop)) if stop else None
            watermark = as_of - definition.out_of_orderness_us
            parts.append(PollPart(name, partition, 0, stop, watermark, rows))
            positions.setdefault(name, []).append(stop)
    return parts, positions
