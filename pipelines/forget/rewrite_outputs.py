"""Changing rows of a stream's outputs, in whatever files they are: parts, and what is joined.

Files keep their names, and each row its output and segment, so outputs that come later are still
known (`pipelines.io.outputs`). An output of which no row is left is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.contract import BoolArray
from tidemill.pipelines.io.output_parts import JOINING, PART, Output, encode_outputs, read_part
from tidemill.pipelines.io.outputs import OUTPUT
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

_REMEDY: Final = "restore it from a copy"

Change: TypeAlias = Callable[[pa.Table], pa.Table]
"""Returns rows of outputs changed, or the same table if nothing changes."""


def without(table: pa.Table, gone: BoolArray) -> pa.Table:
    """Return a table without some rows; the same one if these are none."""
    return table.filter(pa.array(~gone)) if gone.any() else table


def rewrite_outputs(folder: Path, change: Change) -> int:
    """Change the outputs in a folder, which is a copy; return how many rows were removed.

    Args:
        folder: The folder; it need not exist.
        change: What is done to the rows of a file, or of one append.

    Raises:
        DamagedFile, DamagedState: A file does not hold what was written.
    """
    removed = 0
    for path in sorted(folder.glob("*")):
        if path.suffix == ".parquet":
            removed += _rewrite_joined(path, change)
        elif path.suffix in (PART, JOINING):
            removed += _rewrite_part(path, change)
    return removed


def _rewrite_joined(path: Path, change: Change) -> int:
    with reading(path, _REMEDY), pq.ParquetFile(path) as file:
        table = file.read()
    changed = change(table)
    if changed is table:
        return 0
    if not len(changed) and OUTPUT not in table.column_names:
        path.unlink()  # a version without parts wrote a file for each output
        return len(table)
    with atomic_write(path) as unfinished:
        told = changed.replace_schema_metadata(table.schema.metadata)
        pq.write_table(told, unfinished, compression="zstd")
    return len(table) - len(changed)


def _rewrite_part(path: Path, change: Change) -> int:
    frames, removed, is_changed = [], 0, False
    for appended in read_part(path):
        left: list[Output] = []
        for output in appended.outputs():
            table = pa.Table.from_batches([output.rows])
            rows = change(table)
            is_changed |= rows is not table
            removed += len(table) - len(rows)
            if len(rows) or not len(table):
                batch = rows.combine_chunks().to_batches()[0] if len(rows) else output.rows
                left.append(Output(output.name, batch))
        if left:
            frames.append(encode_outputs(left))
    if is_changed:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(b"".join(frames))
    return removed


def replaced(table: pa.Table, column: str, texts: list[str]) -> pa.Table:
    """Return a table with other texts in a column; the same one if they are the same."""
    place = table.schema.get_field_index(column)
    new = pa.chunked_array([pa.array(texts, table.schema.field(place).type)])
    if pc.all(pc.equal(new, table.column(place))).as_py() or not len(table):
        return table
    return table.set_column(place, table.schema.field(place), new)
