"""The log as parts of a poll, to make states in batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.pipelines.io.live.live_log import LIVE
from tidemill.pipelines.io.log import RECEIVED, Log, one_batch
from tidemill.pipelines.io.poll import PollPart
from tidemill.serving.generations.current import Current


def stream_log(current: Current) -> Log:
    """Return the log that the streams of a generation read: the build's, and the live rows."""
    return Log(current.build_folder, current.folder / LIVE)


def source_partitions(log: Log, project: Project) -> dict[str, int]:
    """Count the partitions of each source."""
    names = [*(stream.name for stream in project.streams), project.request.name]
    return {name: log.partitions(name) for name in names}


def wait_us(project: Project, view: FeatureView) -> int:
    """Return how far the frontier of a view's states is before their instant.

    Rows received from then on may be this much older, and the frontier waits for them.
    """
    return max(view.stream.out_of_orderness_us, project.request.out_of_orderness_us)


def parts_before(
    log: Log,
    project: Project,
    partitions: dict[str, int],
    as_of: int,
    start: Mapping[str, Sequence[int]] | None = None,
    watermark_us: int = TIME_MIN,
) -> tuple[list[PollPart], dict[str, list[int]]]:
    """Return each partition's rows received before an instant, and the positions after them.

    Args:
        log: The log.
        project: The project.
        partitions: Source to the number of its partitions.
        as_of: The instant.
        start: Source to the position of each partition to begin with; None for the beginning.
        watermark_us: No watermark is lower.
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
            watermark = max(as_of - definition.out_of_orderness_us, watermark_us)
            parts.append(PollPart(name, partition, first, stop, watermark, rows))
            positions.setdefault(name, []).append(stop)
    return parts, positions
