"""Matching predictions with requests: none lost, extra or doubled, each with the right inputs.

Every request of the original history that the stream has answered must have a prediction, unless
its polls reject it: without one it is lost. A lost, extra or doubled prediction counts as one
mismatch per feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import Project
from tidemill.features.errors import InputError
from tidemill.pipelines.io.log import PARTITION, POSITION, one_batch
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.verify.findings import LOST, Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text
from tidemill.pipelines.verify.outputs.call_rows import with_call_rows
from tidemill.pipelines.verify.outputs.extent import Answerable
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.serving.files.read_files import reading
from tidemill.serving.generations.current import Current, streams_of

_MEND: Final = "run `tidemill stream` again"


@dataclass(frozen=True, eq=False)
class Served:
    """Predictions with their requests from the original history.

    Attributes:
        predictions: The predictions whose request is known, ``(rows,)``.
        requests: The request of each, ``(rows,)``.
        count: The number of all predictions.
        expected: The number of requests that must have a prediction.
        unanswered: The number of requests that were rejected instead.
        waiting: The number of requests that the stream has yet to answer.
    """

    predictions: pa.RecordBatch
    requests: pa.RecordBatch
    count: int
    expected: int
    unanswered: int
    waiting: int = 0


def find_prediction(root: Path, request_id: str) -> tuple[Current, Path, dict[str, Any]] | None:
    """Find the prediction for a request: the folders of its stream, its file, and its row.

    Returns:
        None if no stream has answered the request.
    """
    for current in streams_of(root):
        folder = predictions_of(current.stream_folder)
        for file, ids in folder.tables(["request_id"]):
            if not pc.any(pc.equal(ids.column(0), request_id)).as_py():
                continue
            for _, table in folder.tables(since=file.first, until=file.last):
                mine = table.filter(pc.equal(table["request_id"], request_id))
                if len(mine):
                    return current, file.path, mine.slice(0, 1).to_pylist()[0]
    return None


def read_predictions(root: Path, project: Project) -> pa.Table:
    """Read the predictions of a run.

    Raises:
        InputError: There are none, or they were made by other definitions.
    """
    found = predictions_between(root, project)
    if found is None:
        raise InputError(
            f"there are no predictions in {root / paths.PREDICTIONS}; run `tidemill stream`"
        )
    return found


def predictions_between(
    root: Path, project: Project, since: int = 0, until: int | None = None
) -> pa.Table | None:
    """Read the predictions of segments of a run; None if there are none.

    Those of earlier versions, which do not say which row of its call each was, have `UNKNOWN_ROW`
    there.

    Args:
        root: The run's folder.
        project: The project.
        since: The first segment.
        until: The last one; None for all.

    Raises:
        InputError: They were made by other definitions.
        DamagedFile: A file does not hold what the stream wrote.
    """
    needed = {"request_id", "request_time", "partition", "position", "received_us", "score"}
    for view in project.views:
        needed |= {f"{stamp}__{view.name}" for stamp in ("as_of", "shard", "release")}
    tables = []
    for file, table in predictions_of(root).tables(since=since, until=until):
        tables.append(with_call_rows(table))
        if lacking := sorted(needed - set(table.column_names)):
            raise InputError(
                f"{file.path}: there is no column {lacking[0]!r}; it was made by other "
                "definitions: run `tidemill stream` again"
            )
    with reading(root / paths.PREDICTIONS, _MEND):
        return pa.concat_tables(tables) if tables else None


def serve_beside_requests(
    asked: pa.Table,
    predictions: pa.Table,
    outputs: Answerable,
    project: Project,
    findings: Findings,
) -> Served:
    """Find the request of each prediction; note lost, extra and doubled predictions.

    Args:
        asked: The requests that were received in the period of the stream.
        predictions: Its predictions.
        outputs: Which of the requests must, or may, have one.
        project: The project.
        findings: Takes the mismatches.
    """
    request = project.request
    features = len(project.columns)
    asked_places = places_of(asked, PARTITION, POSITION)
    refused = np.isin(asked_places, outputs.refused)
    order = np.argsort(asked_places, kind="stable")
    places = places_of(predictions, "partition", "position")
    found = np.searchsorted(asked_places[order], places)
    row = order[np.minimum(found, max(len(order) - 1, 0))] if len(order) else found * 0
    known = (asked_places[row] == places) if len(order) else np.zeros(len(places), np.bool_)
    ids = one_batch(predictions.select(["request_id"])).column(0)
    asked_ids = one_batch(asked.select([request.request_id])).column(0).cast(pa.string())
    if known.any():
        same = pc.equal(ids, asked_ids.take(pa.array(np.where(known, row, 0))))
        known &= same.fill_null(False).to_numpy(zero_copy_only=False) & ~refused[row]
    known &= np.isin(places, outputs.possible)
    for id in ids.filter(pa.array(~known)).to_pylist():
        cause = "no request that the stream has answered has its position"
        findings.add(
            Mismatch("extra", id, seen="a prediction", expected="none", cause=cause), features
        )
    first = np.zeros(len(places), np.bool_)
    first[np.unique(places, return_index=True)[1]] = True
    for id in ids.filter(pa.array(known & ~first)).to_pylist():
        findings.add(
            Mismatch("doubled", id, seen="more than one prediction", expected="one"), features
        )
    answered = np.zeros(len(asked), np.bool_)
    answered[row[known]] = True
    lacking = ~answered & ~refused
    missing = lacking & np.isin(asked_places, outputs.answered)
    for id in asked_ids.filter(pa.array(missing)).to_pylist():
        cause = "the releases have its answer"
        findings.add(
            Mismatch(LOST, id, seen="no answer", expected="an answer", cause=cause), features
        )
    waiting = int((lacking & ~missing).sum())
    kept = np.flatnonzero(known & first)
    return Served(
        predictions=one_batch(predictions.take(pa.array(kept))),
        requests=one_batch(asked.take(pa.array(row[kept]))),
        count=len(predictions),
        expected=int((~refused).sum()) - waiting,
        unanswered=int(refused.sum()),
        waiting=waiting,
    )


def check_requests(project: Project, served: Served, findings: Findings) -> None:
    """Compare the time and the inputs of predictions with those of their requests."""
    requests = served.requests.select(list(project.request.schema))
    expected = {
        "request_time": requests.column(project.request.request_time),
        **{name: e.evaluate(requests) for name, e in project.request.inputs.items()},
    }
    ids = served.predictions.column("request_id")
    for name, column in expected.items():
        seen = column_of(served.predictions, name)
        if seen.type != column.type:
            raise InputError(
                f"predictions: column {name!r} is {seen.type}, the project says {column.type}; "
                "they were made by other definitions: run `tidemill stream` again"
            )
        both_null = pc.and_(pc.is_null(seen), pc.is_null(column))
        same = pc.or_(pc.fill_null(pc.equal(seen, column), False), both_null)
        for row in np.flatnonzero(~same.to_numpy(zero_copy_only=False)).tolist():
            findings.add(
                Mismatch(
                    "request",
                    ids[row].as_py(),
                    feature=name,
                    seen=field_text(name, seen[row].as_py()),
                    expected=field_text(name, column[row].as_py()),
                    cause="the prediction was made with another input than the request's",
                )
            )


def column_of(predictions: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of predictions.

    Raises:
        InputError: It is missing: the predictions were made by other definitions.
    """
    if name not in predictions.schema.names:
        raise InputError(
            f"predictions: there is no column {name!r}; they were made by other definitions: "
            "run `tidemill stream` again"
        )
    return predictions.column(name)
