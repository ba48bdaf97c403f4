"""The labels of a part of the requests: those whose keys have one hash, and their events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Label, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.labels import Labelled, find_labels, leaks
from tidemill.pipelines.history.spill import SpillFile, spill_file
from tidemill.pipelines.history.split import (
    LABEL_EVENTS,
    LABEL_REQUESTS,
    NUMBER,
    asked_schema,
    known_schema,
)


def label_part(project: Project, label: Label, plan: HistoryPlan, piece: int) -> tuple[int, int]:
    """Write the labels of a part.

    Returns:
        How many requests the part has, and how many pairs of a request and an event of its label
        at or before it (`pipelines.history.labels.leaks`).
    """
    stream = label.stream.name
    events = _read(plan, stream, LABEL_EVENTS, known_schema(label), piece)
    asked = _read(plan, plan.request, LABEL_REQUESTS, asked_schema(project, label), piece)
    numbers: Int64Array = asked.column(NUMBER).to_numpy()
    found = find_labels(label, project.request, asked, events)
    labelled = found.values.is_valid().to_numpy(zero_copy_only=False)
    numbers, values = numbers[labelled], hashing.bits(found.values)[labelled]
    times = hashing.bits(found.times)[labelled]
    with spill_file(plan.labels_path(piece)) as out:
        for rows in plan.by_block(numbers):
            out.write("labels", [numbers[rows], values[rows], times[rows]])
    return len(asked), leaks(label, project.request, asked, events)


def _read(plan: HistoryPlan, source: str, section: str, schema: pa.Schema, piece: int) -> pa.Table:
    found = (
        SpillFile(plan.split_path(span)).read_rows(section, schema, piece)
        for span in plan.spans(source)
    )
    return pa.Table.from_batches([rows for rows in found if rows is not None], schema=schema)


def read_labels(plan: HistoryPlan, files: list[SpillFile], block: int) -> Labelled:
    """Return the labels of the requests of a block."""
    first, stop = plan.block_starts[block : block + 2].tolist()
    missing = np.ones(stop - first, np.bool_)
    values, times = np.zeros(stop - first, np.int64), np.zeros(stop - first, np.int64)
    for file in files:
        numbers, mine, at = file.read_array("labels", np.int64, block).reshape(3, -1)
        missing[numbers - first] = False
        values[numbers - first] = mine
        times[numbers - first] = at
    return Labelled(
        pa.array(values.view(np.float64), mask=missing),
        pa.array(times, pa.int64(), mask=missing).cast(pa.timestamp("us", tz="UTC")),
    )
