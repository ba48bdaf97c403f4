"""The records that a stream rejects: requests that were given up, and how they are read back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.pipelines.io.log import POSITION, SENT
from tidemill.pipelines.stream.answer_parts import Unanswered
from tidemill.serving.files.read_files import read_table


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


def read_rejected(folder: Path, prefix: str = "") -> pa.Table:
    """Read the rejected records in a folder, of the files whose names begin with ``prefix``."""
    again = "run `tidemill stream` again"
    files = sorted(folder.glob(f"{prefix}*.parquet"))
    return pa.concat_tables([rejected.SCHEMA.empty_table(), *(read_table(p, again) for p in files)])
