"""The rejected records below a root: read them by id, and update them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import PAST_THE_LOG
from tidemill.pipelines.ingest.repaired_records import record_id
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run import paths
from tidemill.serving.files.read_files import read_table

Record = Mapping[str, Any]
"""A row of `features.rows.rejected.SCHEMA`."""


def read_rejected(root: Path, sources: Collection[str]) -> dict[str, Record]:
    """Return the rejected records that can be mended, by id, in the order of their sources."""
    files = (root / paths.REJECTED).glob("*.parquet")
    records = [record for path in files for record in read_records(path)]
    records.sort(key=lambda record: (record["stream"], record["partition"], record["position"]))
    return {
        record_id(record): record
        for record in records
        if record["stage"] not in PAST_THE_LOG and record["stream"] in sources
    }


def read_records(path: Path) -> list[Record]:
    """Read a file of rejected records."""
    again = "run `tidemill backfill` again, which rejects the same records"
    records: list[Record] = read_table(path, again, schema=rejected.SCHEMA).to_pylist()
    return records


def update_rejected(root: Path, settled: set[str], still: Mapping[str, Record]) -> None:
    """Remove settled records from the files in ``root/rejected``; replace the ones in ``still``."""
    for path in sorted((root / paths.REJECTED).glob("*.parquet")):
        records = read_records(path)
        left = [
            record if record["stage"] in PAST_THE_LOG else still.get(record_id(record), record)
            for record in records
            if record["stage"] in PAST_THE_LOG or record_id(record) not in settled
        ]
        if not left:
            path.unlink()
        elif left != records:
            write_rows(path.parent, pa.Table.from_pylist(left, schema=rejected.SCHEMA), path.stem)


def as_text(payload: bytes) -> str:
    """Return bytes as a text; a byte that is not UTF-8 becomes a backslash, x and two digits."""
    return payload.decode("utf-8", "backslashreplace")
