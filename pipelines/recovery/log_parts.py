"""The log as parts of a poll, to make states in batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView, Project, has_grown
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.io.grown_columns import refused_columns
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import RECEIVED, Log, declared_columns, definitions_of, one_batch
from tidemill.pipelines.io.poll import PollPart
from tidemill.pipelines.recovery.handoff import Columns, StreamRun
from tidemill.serving.generations.current import Current


def stream_log(current: Current, project: Project) -> Log:
    """Return the log that the streams of a generation read: the build's, and the live rows.

    Args:
        current: The folders of the generation.
        project: The project, with whose columns the rows are read.
    """
    return Log(current.build_folder, current.folder / LIVE, declared_columns(project))


def log_of_run(current: Current, run: StreamRun | None) -> Log:
    """Return the same log, whose rows have the columns that a stream was begun with.

    Args:
        current: The folders of the stream.
        run: Its record; None for the columns that the log has.
    """
    columns = {} if run is None or run.columns is None else run.columns
    declared = {name: {one[0]: one[1] for one in of} for name, of in columns.items()}
    return Log(current.build_folder, current.folder / LIVE, declared)


def check_columns(run: StreamRun, project: Project, log: Log) -> None:
    """Check that a stream that resumes has the columns that it was begun with.

    Args:
        run: The record of the stream.
        project: The project.
        log: The log of the stream (`log_of_run`).

    Raises:
        StateMismatch: A source has others.
    """
    for definition in definitions_of(project):
        name, now = definition.name, list(definition.schema.items())
        known = list(log.columns(name).items())
        if run.columns is not None:
            known = [(column, dtype) for column, dtype in run.columns.get(name, ())]
        if now == known and not refused_columns(log, definition):
            continue
        others = sorted({*known} ^ {*now})
        which = f"such as {others[0][0]!r}" if others else "or in another order"
        raise StateMismatch(
            f"source {name!r}: the stream was begun with other columns than the project declares, "
            f"{which}: run the version of the project that it was begun with, or see `tidemill "
            "upgrade --plan`"
        )


def have_grown(columns: Columns, project: Project) -> bool:
    """Tell whether the sources of a project have the columns of a stream, or have grown since.

    What views of the same definitions make of rows is the same then.
    """
    for definition in definitions_of(project):
        before = {one[0]: one[1] for one in columns.get(definition.name, ())}
        has_base = before.keys() >= definition.origin.base.keys()
        if not (has_base and has_grown(before, definition.schema)):
            return False
    return True


def source_partitions(log: Log, project: Project) -> dict[str, int]:
    """Count the partitions of each source."""
    names = [*(stream.name for stream in project.streams), project.request.name]
    return {name: log.partitions(name) for name in names}


def wait_us(project: Project, view: FeatureView) -> int:
    """Return how far the frontier of a view's states is before their instant.

    Rows received from then on may be this much older, and the frontier waits for them.
    """
    return max(view.stream.out_of_orderness_us, project.request.out_of_orderness_us)


def watermarks_at(log: Log, project: Project, as_of_us: int) -> dict[str, list[int]]:
    """Return the watermark of each partition once all rows received before an instant are read.

    That of a file is the instant less the source's ``out_of_orderness``. That of a partition of a
    topic is never later than the reader knew when it had read these rows: what it reads of a
    backlog is received long after it happened.

    Args:
        log: The log, with its live rows.
        project: The project.
        as_of_us: The instant.

    Returns:
        Source to the watermark of each partition, in microseconds.
    """
    names = source_partitions(log, project)
    found = {
        name: [max(as_of_us - project.definition(name).out_of_orderness_us, TIME_MIN)] * count
        for name, count in names.items()
    }
    if log.live is None or not (live := LiveLog(log.live, project)).exists:
        return found
    cuts = live.cuts_before(as_of_us)
    begun_us = live.origin().as_of_us
    for name, topic in live.topics().items():
        # Before a partition is looked at, nothing older than the stream's beginning is expected.
        # Of one that the topic got later nothing is known; its first rows may come late.
        least_us = TIME_MIN
        if begun_us is not None:
            least_us = begun_us - project.definition(name).out_of_orderness_us
        known = [TIME_MIN] * (len(found[name]) - topic.first)
        if cuts is not None:
            known = cuts.watermarks[name][-1, : cuts.partitions[name]].tolist()
        for partition, at_us in enumerate(known, start=topic.first):
            found[name][partition] = min(found[name][partition], max(at_us, least_us))
    return found


def frontier_of(
    project: Project, view: FeatureView, watermarks: Mapping[str, Sequence[int]]
) -> int:
    """Return the frontier of a view's shards: the least watermark of its stream and requests."""
    return min(*watermarks[view.stream.name], *watermarks[project.request.name])


def begin_frontier(log: Log, project: Project, view: FeatureView, as_of_us: int) -> int:
    """Return the frontier of a view's states as of an instant."""
    return frontier_of(project, view, watermarks_at(log, project, as_of_us))


def instant_reaching(
    log: Log, project: Project, frontiers: Mapping[str, int], end_us: int
) -> int | None:
    """Return the first instant as of which no frontier of some views is earlier than given.

    Args:
        log: The log, with its live rows.
        project: The project.
        frontiers: View to its frontier.
        end_us: Rows received at this instant or later are never applied.

    Returns:
        The instant: with live rows, just after a poll. None if there is none before ``end_us``.
    """
    waits = max(
        frontier + wait_us(project, project.view(view)) for view, frontier in frontiers.items()
    )
    if log.live is None or not (live := LiveLog(log.live, project)).exists:
        return waits if waits <= end_us else None
    cuts, topics = live.cuts(), live.topics()
    instants = cuts.received_us + 1
    reached = instants >= waits
    for name, of_view in frontiers.items():
        view = project.view(name)
        for source in {view.stream.name, project.request.name} & topics.keys():
            known = cuts.watermarks[source][:, : cuts.partitions[source]]
            reached &= (known >= of_view).all(axis=1)
    return int(instants[reached.argmax()]) if reached.any() else None


def parts_before(
    log: Log,
    project: Project,
    partitions: dict[str, int],
    as_of: int,
    start: Mapping[str, Sequence[int]] | None = None,
    watermark_us: int = TIME_MIN,
    watermarks: Mapping[str, Sequence[int]] | None = None,
) -> tuple[list[PollPart], dict[str, list[int]]]:
    """Return each partition's rows received before an instant, and the positions after them.

    Args:
        log: The log.
        project: The project.
        partitions: Source to the number of its partitions.
        as_of: The instant.
        start: Source to the position of each partition to begin with; None for the beginning.
        watermark_us: No watermark is lower.
        watermarks: Source to the watermark of each partition; None for those of files.
    """
    parts = []
    positions: dict[str, list[int]] = {}
    for name, count in partitions.items():
        # Rows received later may have times this far below: the stream still waits for them.
        definition = project.definition(name)
        for partition in range(count):
            table = log.read(name, partition)
            received: Int64Array = table.column(RECEIVED).to_numpy()
            stop = int(np.searchsorted(received, as_of, "left"))
            first = 0 if start is None else start[name][partition]
            stop = max(stop, first)
            rows = one_batch(table.slice(first, stop - first)) if stop > first else None
            known = as_of - definition.out_of_orderness_us
            if watermarks is not None:
                known = watermarks[name][partition]
            watermark = max(known, watermark_us)
            parts.append(PollPart(name, partition, first, stop, watermark, rows))
            positions.setdefault(name, []).append(stop)
    return parts, positions
