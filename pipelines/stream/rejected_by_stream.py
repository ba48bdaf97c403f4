"""The records that a stream rejects: requests that were given up, and how they are read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import Request
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.pipelines.io.log import POSITION, SENT
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.stream.answer_parts import Unanswered


def rejected_requests(request: str, lost: Unanswered) -> pa.RecordBatch:
    """Return given-up requests as rejected records (`features.rows.rejected.SCHEMA`).

    Args:
        request: The name of the request.
        lost: The requests.
    """
    positions = hashing.bits(lost.rows.column(POSITION))
    count = lost.rows.num_rows
    # When a poll read them is no part of the requests.
    rows = lost.rows.select([name for name in lost.rows.schema.names if name != SENT])
    return rejected.batch(
        rejected.Stage.ANSWER,
        stream=request,
        partition=lost.partition,
        positions=positions,
        reasons=[rejected.Reason.NO_ANSWER] * count,
        details=[f"views {', '.join(lost.views)} did not answer in time"] * count,
        origins=[f"{request}/{lost.partition}:{at}" for at in positions.tolist()],
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


def read_rejected(folder: Path, since: int = 0, until: int | None = None) -> pa.Table:
    """Read the rejected records in a folder of a stream's outputs.

    Args:
        folder: The folder.
        since: The first segment.
        until: The last one; None for all.
    """
    found = OutputFolder(folder).read(since=since, until=until)
    return pa.concat_tables([rejected.SCHEMA.empty_table(), *([] if found is None else [found])])
