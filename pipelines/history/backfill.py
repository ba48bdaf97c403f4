"""Backfill: point-in-time features for every past request, and the state for the stream.

On Beam: read the log as polls, shard it as the stream does, group it by (view, shard), and run each
group through the kernel once, sorted. A worker holds one shard in memory, not all history. The
stream's joiner joins the answers of the views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.columns import column_arrays, concat
from tidemill.features.kernel.compilation import compile_kernel
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import DIGEST, TIME, matrix_of, nulls_of
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import choose_engine, make_runner, run
from tidemill.pipelines.engines.options import pipeline_options
from tidemill.pipelines.history.bootstrap import bootstrap
from tidemill.pipelines.history.build_manifest import (
    BuildManifest,
    source_records,
    table_digests,
)
from tidemill.pipelines.history.builds import Build, building
from tidemill.pipelines.history.hand_over import hand_over
from tidemill.pipelines.history.labels import LabelIndex, check_leaks
from tidemill.pipelines.history.offline_views import views_to_log
from tidemill.pipelines.ingest.ingest import ingest, replace_rejected
from tidemill.pipelines.ingest.rejected_shares import too_many
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.recovery.handoff import Handoff
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import AnswerPart
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.sequence import GROUP, decode_batches, sequenced_events_schema
from tidemill.pipelines.stream.shard import Shard, is_batches, is_request
from tidemill.pipelines.stream.wire_format import decode_part, encode_part
from tidemill.serving.files.read_files import read_table, row_count

SPAN_ROWS: Final = 65_536
"""How many rows of a partition are read, and how many requests are joined, at once."""


@beam.typehints.with_input_types(tuple[str, int, int, int])
@beam.typehints.with_output_types(bytes)
class _ReadLog(beam.DoFn):
    """Reads a span of a log partition as a poll."""

    def __init__(self, build: Path) -> None:
        self._build = build

    def process(self, element: tuple[str, int, int, int]) -> Iterator[bytes]:
        source, partition, start, stop = element
        table = Log(self._build).read(source, partition).slice(start, stop - start)
        part = PollPart(source, partition, start, stop, TIME_MAX, one_batch(table))
        yield Poll(1, 0, (part,)).encode()


def spans(log: Log, project: Project) -> list[tuple[str, int, int, int]]:
    """Cut each partition of the sources of all views and of the request into spans."""
    out = []
    names = dict.fromkeys([*(view.stream.name for view in project.views), project.request.name])
    for name in names:
        for partition in range(log.partitions(name)):
            rows = log.read(name, partition, [POSITION]).num_rows
            out += [
                (name, partition, start, min(start + SPAN_ROWS, rows))
                for start in range(0, rows, SPAN_ROWS)
            ]
    return out


def answer_shard(
    view: FeatureView, shard: int, elements: Iterable[bytes]
) -> Iterator[tuple[int, AnswerPart]]:
    """Run all rows of one (view, shard) through the kernel.

    Yields:
        A group of requests, and its answers.
    """
    plan = make_plan(view)
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
    advanced = advance(State(plan, publishes=False), everything, asked, until, Publish.NOTHING)
    groups = hashing.bits(asked.column(GROUP))
    answers = pa.RecordBatch.from_arrays(
        [*advanced.answers.columns, asked.column(GROUP)],
        names=[*advanced.answers.schema.names, GROUP],
    )
    for group in np.unique(groups).tolist():
        rows = answers.filter(pa.array(groups == group))
        yield group, AnswerPart(view.name, shard, 0, until, rows)


@beam.typehints.with_input_types(tuple[str, Iterable[bytes]])
@beam.typehints.with_output_types(tuple[int, bytes])
class _Answer(beam.DoFn):
    def __init__(self, project: Project) -> None:
        self._project = project

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        key, elements = element
        parsed = OperatorKey.parse(key)
        view = self._project.view(parsed.view)
        for group, part in answer_shard(view, parsed.shard, elements):
            yield group, encode_part(part, key)


def join_answers(project: Project, shards: int, parts: Iterable[bytes]) -> pa.RecordBatch:
    """Join all parts of one group of requests.

    Raises:
        InputError: A part is missing.
    """
    joiner = AnswerJoiner(project, shards, answer_within_us=0)
    answered, _ = joiner.receive(decode_part(data, project) for data in parts)
    if len(answered) != 1:
        lost = joiner.drain()
        views = sorted({view for part in lost for view in part.views})
        raise InputError(f"the engine lost parts of the answers of views {views}")
    return answered[0]


@beam.typehints.with_input_types(tuple[int, Iterable[bytes]])
@beam.typehints.with_output_types(pa.RecordBatch)
class _TrainingRows(beam.DoFn):
    """Joins the answers of a group of requests and adds the labels."""

    def __init__(self, project: Project, shards: int, build: Path) -> None:
        self._project = project
        self._shards = shards
        self._build = build

    def setup(self) -> None:
        self._labels = label_index(self._project, Log(self._build))

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[pa.RecordBatch]:
        answered = join_answers(self._project, self._shards, element[1])
        yield training_rows(self._project, answered, self._labels)


def label_index(project: Project, log: Log) -> LabelIndex | None:
    """Return the index of the label's events in a log; None for a project without a label."""
    if (label := project.label) is None:
        return None
    return LabelIndex(label, project.request, log.read(label.stream.name))


def training_rows(
    project: Project, answered: pa.RecordBatch, labels: LabelIndex | None
) -> pa.RecordBatch:
    """Make rows of the training table from answered requests.

    Args:
        project: The project.
        answered: Answered requests (`pipelines.stream.answer_join.answered_schema`), ``(rows,)``.
        labels: The events of the label; None for a project without one.

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
    columns |= column_arrays(
        project.columns, matrix_of(answered.column("values")), nulls_of(answered.column("nulls"))
    )
    if labels is not None:
        found = labels.find(requests)
        columns |= {"label": found.values, "label_time": found.times}
    columns |= {
        "_partition": answered.column(PARTITION),
        "_position": answered.column(POSITION),
    }
    return pa.RecordBatch.from_pydict(columns)


def backfill(
    config: Configuration, progress: Progress, publish: bool = False, wait: bool = False
) -> dict[str, Any]:
    """Make a build: ingest, training table, and the states as of the end of the evaluation.

    Nothing that others read changes before the build is complete; then it becomes the current one
    in one step (`pipelines.history.builds`).

    Args:
        config: The configuration.
        progress: Where progress is shown.
        publish: Whether to fill the online store and the offline log, too.
        wait: Whether to wait for another build of the root; else it is an error.

    Returns:
        Counts and figures by step.

    Raises:
        TooManyRejected: More of a source's rows are rejected than it allows.
        InputError: A source cannot be read, or events of a label precede their request.
        Locked: Another process makes a build of the root.
    """
    compile_kernel(progress)
    with building(config.root, wait=wait) as build:
        summary: dict[str, Any] = {}
        sources = ingest(config, progress, work=build.work, build=build.folder)
        files = {name: row.pop("files") for name, row in sources.items()}
        summary["sources"] = sources
        if (error := too_many(config, sources)) is not None:
            # The records are what the user needs now; the current build stays as it is.
            replace_rejected(build.work, config.root)
            raise error
        build.settle()
        for divergence in build.because:
            progress.say(f"history was corrected, so a new generation begins: {divergence}")
        summary["training"] = point_in_time(config, progress, build.folder)
        handoff, summary["handoff"] = hand_over(config, progress, build.folder, build.generation)
        change_points = _log_history(config, progress, build, handoff, publish=publish)
        _manifest(config, build, handoff, files).write(build.folder)
        build.finish()
        replace_rejected(build.work, config.root)
    summary["generation"] = build.generation
    if publish:
        published = bootstrap(config.pin(), progress)
        summary["published"] = {**published, "change_points": change_points}
    return summary


def _log_history(
    config: Configuration, progress: Progress, build: Build, handoff: Handoff, *, publish: bool
) -> int:
    """Write the offline logs that the build needs; return the number of change points."""
    until_us = {view: min(frontiers) for view, frontiers in handoff.frontiers.items()}
    views = views_to_log(config.project, build, until_us, publish=publish)
    if not views:
        return 0
    total = len(views) * config.shards
    with progress.stage("write the offline log", total=total, unit="shards") as stage:

        def done(view: str, _: int) -> None:
            stage.note(view)
            stage.advance(1)

        rows = log_history(
            views,
            Log(build.folder),
            build.offline_root,
            shards=config.shards,
            until_us=until_us,
            positions=handoff.positions,
            done=done,
        )
    return sum(rows.values())


def _manifest(
    config: Configuration,
    build: Build,
    handoff: Handoff,
    files: Mapping[str, Sequence[Mapping[str, Any]]],
) -> BuildManifest:
    return BuildManifest(
        generation=build.generation,
        parent=build.parent,
        because=build.reasons,
        sources=source_records(Log(build.folder), files),
        project=config.project.hash,
        views={view.name: view.hash for view in config.project.views},
        shards=config.shards,
        as_of_us=handoff.as_of_us,
        training_table=table_digests(build.folder),
        handoff=handoff.id,
    )


def point_in_time(config: Configuration, progress: Progress, build: Path) -> dict[str, Any]:
    """Compute the training table from the log of a build.

    Returns:
        The numbers of requests and of rows of the table and, of a project with a label, how many of
        them are labelled.

    Raises:
        InputError: Events of the label do not come after their request.
    """
    project, table = config.project, build / paths.TRAINING_TABLE
    log = Log(build)
    if project.label is not None:
        check_leaks(
            project.label,
            project.request,
            log.read(project.request.name),
            log.read(project.label.stream.name),
        )
    choice = choose_engine(None, streaming=False)
    requests = log.read(project.request.name, columns=[POSITION]).num_rows
    with progress.stage("point-in-time features", total=requests, unit="requests") as stage:
        stage.note(choice.why)
        pipeline = beam.Pipeline(
            runner=make_runner(choice), options=pipeline_options(project.name, choice, "backfill")
        )
        polls = (
            pipeline
            | beam.Create(spans(log, project))
            | beam.Reshuffle()
            | "ReadLog" >> beam.ParDo(_ReadLog(build))
        )
        sharded = polls | "Shard" >> beam.ParDo(Shard(project, config.shards))
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
            | "TrainingRows" >> beam.ParDo(_TrainingRows(project, config.shards, build))
            | "WriteTable" >> beam.ParDo(WriteParquet(table, ("_partition", "_position")))
        )
        run(pipeline, choice)
        rows = sum(
            row_count(path, "run `tidemill backfill` again") for path in table.glob("*.parquet")
        )
        stage.advance(rows)
    if rows != requests:
        raise InputError(f"{requests} requests went in and {rows} training rows came out")
    figures = {"requests": requests, "rows": rows, "label_leaks": 0}
    if project.label is None:
        return figures
    labelled = count_labelled(table)
    if requests and not labelled:
        progress.say(
            f"no request has a label: no event of {project.label.stream.name!r} has the "
            f"{' and '.join(project.label.on.values())} of a request within the "
            f"{project.label.horizon} after it, so there is nothing to train on"
        )
    return figures | {"labelled": labelled}


def count_labelled(table: Path) -> int:
    """Return how many requests of a training table have a label.

    Args:
        table: The folder of its Parquet files.

    Raises:
        DamagedFile: A file is not Parquet, or has no labels.
    """
    files = (
        read_table(path, "run `tidemill backfill` again", columns=["label"])
        for path in table.glob("*.parquet")
    )
    return sum(file.num_rows - file["label"].null_count for file in files)


def _by_group(element: tuple[str, bytes]) -> tuple[int, bytes]:
    part = decode_part(element[1])
    return part.group, element[1]  # type: ignore[union-attr]
