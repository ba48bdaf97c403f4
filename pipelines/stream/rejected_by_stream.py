"""The records that a stream rejects, requests without an answer or score; reading them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import Request
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, SENT
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.answer_parts import Unanswered
from tidemill.serving.models.calls import FAILED, TIMED_OUT
from tidemill.serving.models.feed import NOT_A_NUMBER, Rejection


def rejected_requests(request: str, lost: Unanswered) -> pa.RecordBatch:
    """Return given-up requests as rejected records (`features.rows.rejected.SCHEMA`).

    Args:
        request: The name of the request.
        lost: The requests.
    """
    count = lost.rows.num_rows
    reasons = [rejected.Reason.NO_ANSWER] * count
    details = [f"views {', '.join(lost.views)} did not answer in time"] * count
    return _of_log(rejected.Stage.ANSWER, request, lost.partition, lost.rows, reasons, details)


def unscored_requests(
    request: Request, answered: pa.RecordBatch, refused: Sequence[Rejection], bundle: str
) -> list[pa.RecordBatch]:
    """Return answered requests that a model refuses as rejected records, a batch a partition.

    Args:
        request: The request.
        answered: Answered requests (`pipelines.stream.answer_join.answered_schema`), ``(rows,)``.
        refused: Those that the model refuses.
        bundle: The version of the bundle.
    """
    names = [*request.schema, POSITION, RECEIVED]
    by_partition: dict[int, list[Rejection]] = {}
    partitions = hashing.bits(answered.column(PARTITION))
    for one in refused:
        by_partition.setdefault(int(partitions[one.row]), []).append(one)
    return [
        _of_log(
            rejected.Stage.SCORE,
            request.name,
            partition,
            answered.select(names).take(pa.array([one.row for one in mine])),
            [_REASONS[one.reason] for one in mine],
            [f"bundle {bundle}: {one.message}" for one in mine],
        )
        for partition, mine in sorted(by_partition.items())
    ]


def bundle_of(detail: str) -> str:
    """Return the version of the bundle that has refused a request, from what its record says."""
    return detail.removeprefix("bundle ").partition(": ")[0]


_REASONS: Final = {
    FAILED: rejected.Reason.MODEL_FAILED,
    TIMED_OUT: rejected.Reason.MODEL_TIMED_OUT,
    NOT_A_NUMBER: rejected.Reason.SCORE_NAN,
}


def _of_log(
    stage: rejected.Stage,
    request: str,
    partition: int,
    rows: pa.RecordBatch,
    reasons: Sequence[str],
    details: Sequence[str],
) -> pa.RecordBatch:
    """Return requests of the log as rejected records."""
    positions = hashing.bits(rows.column(POSITION))
    # When a poll read them is no part of the requests.
    rows = rows.select([name for name in rows.schema.names if name != SENT])
    return rejected.batch(
        stage,
        stream=request,
        partition=partition,
        positions=positions,
        reasons=reasons,
        details=details,
        origins=[f"{request}/{partition}:{at}" for at in positions.tolist()],
        payloads=[json.dumps(row, default=str).encode() for row in rows.to_pylist()],
    )


PLACE: Final = ("stage", "stream", "partition", "position")
"""The columns whose values in the first of some records name their output."""


def are_of_log(records: pa.Table | pa.RecordBatch) -> BoolArray:
    """Tell which rejected records are rows of the log, bool ``(records,)``.

    The others were refused while a topic was read, and never were in the log: their origin is
    ``topic/partition@offset``, and their position is that offset.
    """
    of_topic = pc.match_substring(records.column("origin"), "@")
    found: BoolArray = pc.invert(of_topic).to_numpy(zero_copy_only=False)
    return found


def unanswered(refused: pa.Table, request: Request) -> int:
    """Count the requests of the log, among rejected records, that were not answered."""
    of_request = pc.equal(refused.column("stream"), request.name).to_numpy(zero_copy_only=False)
    return int((of_request & are_of_log(refused)).sum())


def rejected_with_id(stream: Path, request: Request, id: str) -> dict[str, Any] | None:
    """Return the rejected record of a request of the log with an id; None if there is none.

    Args:
        stream: The folder of the stream.
        request: The request.
        id: The id of one.
    """
    records = read_rejected(stream / paths.REJECTED_BY_STREAM)
    is_past = pc.is_in(records.column("stage"), pa.array(sorted(rejected.PAST_THE_LOG)))
    for record in records.filter(is_past).to_pylist():
        payload = json.loads(record["payload"])
        if str(payload.get(request.request_id)) == id:
            return dict(record)
    return None


def read_rejected(folder: Path, since: int = 0, until: int | None = None) -> pa.Table:
    """Read the rejected records in a folder of a stream's outputs.

    Args:
        folder: The folder.
        since: The first segment.
        until: The last one; None for all.
    """
    found = OutputFolder(folder).read(since=since, until=until)
    return pa.concat_tables([rejected.SCHEMA.empty_table(), *([] if found is None else [found])])
