"""The log as parts of a poll, to make states in batch."""

from __future__ import annotations

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.pipelines.io.log import RECEIVED, Log, one_batch
from tidemill.pipelines.io.poll import PollPart


def source_partitions(log: Log, project: Project) -> dict[str, int]:
    """Count the partitions of each source."""
    names = [*(stream.name for stream in project.streams), project.request.name]
    return {name: log.partitions(name) for name in names}


def parts_before(
    log: Log, project: Project, partitions: dict[str, int], as_of: int
) -> tuple[list[PollPart], dict[str, list[int]]]:
    """Return each partition's rows received before an instant, and the positions after them."""
    parts = []
    positions: dict[str, list[int]] = {}
    for name, count in partitions.items():
        # Rows received later may have times this far below: the stream still waits for them.
        definition = project.definition(name)
        for partition in range(count):
            table = log.read(name, partition)
            received: Int64Array = table.column(RECEIVED).to_numpy()
            stop = int(np.searchsorted(received, as_of, "left"))
            rows = one_batch(table.slice(0, stop)) if stop else None
            watermark = as_of - definition.out_of_orderness_us
            parts.append(PollPart(name, partition, 0, stop, watermark, rows))
            positions.setdefault(name, []).append(stop)
    return parts, positions
