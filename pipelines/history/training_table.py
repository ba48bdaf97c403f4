"""The training table: requests with the answers of all views and their labels, by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import InputError
from tidemill.features.kernel.columns import UInt8Array, column_arrays
from tidemill.pipelines.history.history_plan import HistoryPlan, Span
from tidemill.pipelines.history.label_parts import read_labels
from tidemill.pipelines.history.labels import Labelled
from tidemill.pipelines.history.shard_answers import read_answers
from tidemill.pipelines.history.spill import SpillFile
from tidemill.pipelines.io.log import PARTITION, POSITION, Log
from tidemill.serving.files.atomic_write import atomic_write


def training_rows(
    project: Project,
    requests: pa.RecordBatch,
    partition: int,
    values: Int64Array,
    nulls: UInt8Array,
    labels: Labelled | None,
) -> pa.RecordBatch:
    """Make rows of the training table.

    Args:
        project: The project.
        requests: Rows of the log of one partition, ``(rows,)``.
        partition: The partition.
        values: int64, ``(rows, columns)``: 64-bit patterns of the features of all views.
        nulls: uint8, ``(rows, columns)``: 1 = null.
        labels: The labels, ``(rows,)``; None for a project without a label.

    Returns:
        ``request_id request_time``, the request's inputs, every feature column, ``label``,
        ``label_time``, and the place in the log; ``(rows,)``.
    """
    request = project.request
    asked = requests.select(list(request.schema))
    columns: dict[str, pa.Array] = {
        "request_id": asked.column(request.request_id).cast(pa.string()),
        "request_time": asked.column(request.request_time),
    }
    columns |= {name: e.evaluate(asked) for name, e in request.inputs.items()}
    columns |= column_arrays(project.columns, values, nulls)
    if labels is not None:
        columns |= {"label": labels.values, "label_time": labels.times}
    columns |= {
        PARTITION: pa.array(np.full(requests.num_rows, partition), pa.int64()),
        POSITION: requests.column(POSITION),
    }
    return pa.RecordBatch.from_pydict(columns)


def write_file(
    project: Project, plan: HistoryPlan, partition: int, start: int, stop: int, folder: Path
) -> tuple[int, int]:
    """Write a file of the training table, named by the place of its first request.

    Args:
        project: The project.
        plan: The plan; all answers are written.
        partition: The partition of the requests.
        start: The position of the first; a block begins there.
        stop: The position after the last.
        folder: The folder of the table.

    Returns:
        How many rows it has, and how many of them have a label.

    Raises:
        InputError: A view has not answered a request.
    """
    answers = [
        [plan.spilled(plan.answers_path(view.name, n)) for n in range(plan.pieces(view.name))]
        for view in project.views
    ]
    labels = [plan.spilled(plan.labels_path(piece)) for piece in range(plan.label_parts)]
    first = plan.blocks.index(
        Span(plan.request, partition, start, min(start + plan.block_requests, stop))
    )
    written = labelled = 0
    with atomic_write(folder / f"{partition:012d}-{start:012d}.parquet") as unfinished:
        writer: pq.ParquetWriter | None = None
        try:
            for block in range(first, first - (start - stop) // plan.block_requests):
                span = plan.blocks[block]
                values, nulls = _answers(project, plan, answers, block)
                found = read_labels(plan, labels, block) if project.label is not None else None
                requests = Log(Path(plan.build)).read_span(*span)
                rows = training_rows(project, requests, partition, values, nulls, found)
                if writer is None:
                    writer = pq.ParquetWriter(
                        unfinished,
                        rows.schema,
                        compression="zstd",
                        compression_level=1,
                        use_dictionary=_of_few_values(rows.schema),
                    )
                writer.write_batch(rows, row_group_size=rows.num_rows)
                written += rows.num_rows
                if found is not None:
                    labelled += rows.num_rows - found.values.null_count
        finally:
            if writer is not None:
                writer.close()
    return written, labelled


def _of_few_values(schema: pa.Schema) -> list[str]:
    """Return the columns that a dictionary makes smaller.

    Floats, times, ids and places are nearly all different: building dictionaries of them takes more
    time than all else, and they do not get smaller.
    """
    return [
        field.name
        for field in schema
        if field.name not in ("request_id", PARTITION, POSITION)
        and not (pa.types.is_floating(field.type) or pa.types.is_timestamp(field.type))
    ]


def _answers(
    project: Project, plan: HistoryPlan, files: Sequence[Sequence[SpillFile]], block: int
) -> tuple[Int64Array, UInt8Array]:
    """Return the answers of all views to the requests of a block, in order."""
    first, stop = plan.block_starts[block : block + 2].tolist()
    width = len(project.columns)
    values = np.empty((stop - first, width), np.int64)
    nulls = np.empty((stop - first, width), np.uint8)
    low = 0
    for view, parts in zip(project.views, files, strict=True):
        high = low + len(view.columns)
        answered = 0
        for part in parts:
            numbers, words, flags = read_answers(part, block, high - low)
            values[numbers - first, low:high] = words
            nulls[numbers - first, low:high] = flags
            answered += len(numbers)
        if answered != stop - first:
            raise InputError(
                f"view {view.name!r} answered {answered} of the {stop - first} requests from "
                f"{plan.blocks[block]} on; run `tidemill backfill` again"
            )
        low = high
    return values, nulls
