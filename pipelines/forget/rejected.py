"""Rejected records that name an entity: found in their bytes, since they could not be decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray
from tidemill.pipelines.forget.rewrite_outputs import rewrite_outputs, without
from tidemill.pipelines.forget.subject import Subject, is_text
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.rejected_by_stream import are_of_log
from tidemill.serving.files.read_files import read_table

_AGAIN = "restore it from a copy"


def names_subject(subject: Subject, records: pa.Table) -> tuple[BoolArray, int]:
    """Tell which records name a subject: in their bytes, their detail, or their message's key.

    Args:
        subject: The subject.
        records: Rejected or mended records: ``payload``, and what else they have.

    Returns:
        bool, ``(records,)``; and how many of the others have bytes that are no text, in which the
        key may stand in another form.
    """
    named = np.zeros(len(records), np.bool_)
    unread = 0
    for row, record in enumerate(records.to_pylist()):
        payload: bytes = record["payload"] or b""
        headers = record.get("message_headers") or ()
        others = (
            (record.get("detail") or "").encode(),
            record.get("message_key"),
            *(one["value"] for one in headers),
        )
        named[row] = subject.in_bytes(payload) or any(subject.in_bytes(one) for one in others)
        unread += not named[row] and not is_text(payload)
    return named, unread


def rewrite_records(root: Path, subject: Subject) -> tuple[int, int]:
    """Remove the rejected and the mended records of files and topics below a root.

    Returns:
        How many were removed, and how many could not be searched whole.
    """
    removed = unread = 0
    found = (root / paths.REJECTED).glob("*.parquet")
    for path in sorted([*found, *(root / paths.MENDED).glob("*/*.parquet")]):
        rows = read_table(path, _AGAIN)
        named, of_file = names_subject(subject, rows)
        unread += of_file
        if named.any():
            removed += int(named.sum())
            _write(path, rows.filter(pa.array(~named)))
    for path in sorted((root / paths.MENDED_LIVE).glob("*.parquet")):
        # The number of the next replay is that of the last file plus one: files stay, if empty.
        rows = read_table(path, _AGAIN)
        named, of_file = names_subject(subject, rows)
        unread += of_file
        if named.any():
            removed += int(named.sum())
            write_rows(path.parent, rows.filter(pa.array(~named)), path.stem)
    for path in sorted((root / paths.REJECTED / paths.EXPORT).glob("*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        left = [line for line in lines if not _exported(subject, line)]
        if len(left) < len(lines):
            removed += len(lines) - len(left)
            path.unlink()  # the other root may have a link to the same bytes
            path.write_bytes(b"".join(left))
    return removed, unread


def _exported(subject: Subject, line: bytes) -> bool:
    """Tell whether an exported line names the subject, also in its untouched bytes."""
    try:
        found = json.loads(line)
        texts = [str(value) for value in found.values()]
    except (ValueError, AttributeError):
        texts = []
    return subject.in_bytes(line) or any(subject.in_bytes(text.encode()) for text in texts)


def _write(path: Path, rows: pa.Table) -> None:
    """Replace a file of records; one without any is removed."""
    if len(rows):
        write_rows(path.parent, rows, path.stem)
    else:
        path.unlink()


def remove_of_stream(
    folder: Path, subject: Subject, source: str, positions: dict[int, set[int]]
) -> int:
    """Remove the records that a stream rejected: those of forgotten rows, and that name a subject.

    Args:
        folder: Their folder.
        subject: The subject.
        source: The name of the request.
        positions: The positions of forgotten requests by partition.

    Returns:
        How many were removed.
    """

    def change(rows: pa.Table) -> pa.Table:
        named, _ = names_subject(subject, rows)
        # Others have the place of a message, which may be that of a row, too.
        of_log = are_of_log(rows)
        for row, record in enumerate(rows.select(["stream", "partition", "position"]).to_pylist()):
            if record["stream"] == source and of_log[row]:
                named[row] |= record["position"] in positions.get(record["partition"], ())
        return without(rows, named)

    return rewrite_outputs(folder, change)
