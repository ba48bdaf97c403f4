"""The labels of a part of the requests: those whose keys have one hash, and their events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Label, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.labels import LabelIndex, Labelled, check_leaks
from tidemill.pipelines.history.spill import SpillFile, spill_file
from tidemill.pipelines.history.split import (
    LABEL_EVENTS,
    LABEL_REQUESTS,
    NUMBER,
    asked_schema,
    known_schema,
)


def label_part(
    project: Project, label: Label, plan: HistoryPlan, piece: int
) -> tuple[int, int, int]:
    """Write the labels of a part.

    Returns:
        How many requests the part has; how many events of their labels are at or before them
        (`LabelIndex.before`); and the number of the first request with such an event. The last two
        are 0 if the label's key recurs.
    """
    asked, events = read_part(project, label, plan, piece)
    index = LabelIndex(label, project.request, events)
    numbers: Int64Array = asked.column(NUMBER).to_numpy()
    leaked, first = 0, 0
    if not label.recurring and (before := index.before(asked)).any():
        leaked, first = int(before.sum()), int(numbers[before.argmax()])
    found = index.find(asked)
    labelled = found.values.is_valid().to_numpy(zero_copy_only=False)
    numbers, values = numbers[labelled], hashing.bits(found.values)[labelled]
    times = hashing.bits(found.times)[labelled]
    with spill_file(plan.labels_path(piece)) as out:
        for rows in plan.by_block(numbers):
            out.write("labels", [numbers[rows], values[rows], times[rows]])
    return len(asked), leaked, first


def check_part_leaks(
    project: Project, label: Label, plan: HistoryPlan, leaked: Sequence[tuple[int, int]]
) -> None:
    """Check that no event of a label is at or before its request.

    Args:
        project: The project.
        label: Its label.
        plan: The plan.
        leaked: What `label_part` has counted in each part: such events, and the first request.

    Raises:
        InputError: Some are.
    """
    found = [(first, piece) for piece, (count, first) in enumerate(leaked) if count]
    if found:
        _, piece = min(found)
        more = sum(count for count, _ in leaked) - leaked[piece][0]
        check_leaks(label, project.request, *read_part(project, label, plan, piece), more)


def read_part(
    project: Project, label: Label, plan: HistoryPlan, piece: int
) -> tuple[pa.Table, pa.Table]:
    """Read the requests and the events of a part."""
    events = _read(plan, label.stream.name, LABEL_EVENTS, known_schema(label), piece)
    asked = _read(plan, plan.request, LABEL_REQUESTS, asked_schema(project, label), piece)
    return asked, events


def _read(plan: HistoryPlan, source: str, section: str, schema: pa.Schema, piece: int) -> pa.Table:
    found = (
        plan.spilled(plan.split_path(span)).read_rows(section, schema, piece)
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
