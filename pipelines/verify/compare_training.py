"""Comparing the training table: every row, feature and label, computed again from the sources."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import column_arrays
from tidemill.pipelines.history.labels import find_labels
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import PARTITION, POSITION, one_batch
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.source_history import History
from tidemill.serving.files.read_files import read_table

_MEND: Final = "run `tidemill backfill` again"


def compare_training_table(
    history: History, build: Path, progress: Progress, findings: Findings
) -> int:
    """Compute the training table of a build again, and compare it.

    Args:
        history: The history of the build.
        build: Its folder.
        progress: Where progress is shown.
        findings: Takes the mismatches.

    Returns:
        The number of rows compared.
    """
    project, requests = history.project, history.requests.rows
    files = sorted((build / paths.TRAINING_TABLE).glob("*.parquet"))
    if not files:
        if len(requests):
            cause = "it is gone"
            _note(findings, "training table", "", "no file", f"{len(requests)} rows", cause)
        return 0
    found = pa.concat_tables(read_table(path, _MEND) for path in files)
    with progress.stage("compute the training table again", len(requests), "requests") as stage:
        expected = training_table(history)
        stage.advance(len(requests))
    return _compare(project, one_batch(found), one_batch(expected), findings)


def training_table(history: History) -> pa.Table:
    """Compute the training table of a history.

    Returns:
        The columns of `pipelines.history.training_table.training_rows`, ``(requests,)``, in the
        order of the requests.
    """
    project, rows = history.project, history.requests.rows
    request = project.request
    batch = one_batch(rows)
    asked = hashing.bits(batch.column(request.request_time))
    columns: dict[str, pa.Array] = {
        "request_id": batch.column(request.request_id).cast(pa.string()),
        "request_time": batch.column(request.request_time),
    }
    columns |= {name: one.evaluate(batch) for name, one in request.inputs.items()}
    for view in project.views:
        keys = batch.column(request.key_column(view.entity))
        values, nulls = values_at(view, history.of(view).rows, keys, asked)
        columns |= column_arrays(view.columns, values, nulls)
    if project.label is not None:
        events = history.sources[project.label.stream.name].rows
        labels = find_labels(project.label, request, rows, events)
        columns |= {"label": labels.values, "label_time": labels.times}
    columns |= {name: batch.column(name) for name in (PARTITION, POSITION)}
    return pa.table(columns)


def _compare(
    project: Project, found: pa.RecordBatch, expected: pa.RecordBatch, findings: Findings
) -> int:
    seen_types = {field.name: field.type for field in found.schema}
    right_types = {field.name: field.type for field in expected.schema}
    if seen_types != right_types:
        cause = "it was made by other definitions, or was changed"
        seen, right = (
            ", ".join(f"{name} {kind}" for name, kind in types.items() - other.items())
            for types, other in ((seen_types, right_types), (right_types, seen_types))
        )
        _note(findings, "training table", "", seen or "nothing more", right or "nothing", cause)
        return 0
    places, wanted = (places_of(rows, PARTITION, POSITION) for rows in (found, expected))
    ids = found.column("request_id")
    unknown = ~np.isin(places, wanted)
    first = np.zeros(len(places), np.bool_)
    first[np.unique(places, return_index=True)[1]] = True
    for row in np.flatnonzero(unknown | ~first).tolist():
        cause = "no request has its place in the log, or another row has it too"
        _note(findings, str(ids[row].as_py()), "", "a row", "none", cause)
    kept = np.flatnonzero(first & ~unknown)
    kept = kept[np.argsort(places[kept], kind="stable")]
    order = np.argsort(wanted, kind="stable")
    there = np.isin(wanted[order], places[kept])
    for row in order[~there].tolist():
        id = str(expected.column("request_id")[row].as_py())
        _note(findings, id, "", "no row", "one", "the request has no row in the training table")
    mine, right = found.take(pa.array(kept)), expected.take(pa.array(order[there]))
    views = {column.name: view.name for view in project.views for column in view.columns}
    for name in right.schema.names:
        seen_column, right_column = mine.column(name), right.column(name)
        for row in np.flatnonzero(differing(seen_column, right_column)).tolist():
            _note(
                findings, str(right.column("request_id")[row].as_py()), name,
                shown(name, seen_column, row), shown(name, right_column, row),
                "the sources give another value", views.get(name, ""),
            )  # fmt: skip
    return len(mine)


def _note(
    findings: Findings,
    id: str,
    field: str,
    seen: str,
    expected: str,
    cause: str,
    view: str = "",
) -> None:
    findings.add(Mismatch("training", id, view, field, seen=seen, expected=expected, cause=cause))
