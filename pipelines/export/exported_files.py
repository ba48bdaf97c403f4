"""The files of an exported table: copies of the archive's, under names that say what is in them.

A name has the partition, the positions and the first digits of the SHA-256: a file whose rows were
emptied is another file, and one that a killed process has copied is found again. Files of Delta
tables never change, which is what their readers rely on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.definitions import Project
from tidemill.features.definitions.schema import ARROW_TYPES
from tidemill.features.errors import InputError, StateMismatch, UnknownColumn
from tidemill.pipelines.archive.manifest import ArchiveFile, SourceArchive
from tidemill.pipelines.export.delta_table import DAY, AddedFile
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED
from tidemill.serving.files.atomic_write import wait_for_disk

Columns = Sequence[Sequence[str]]
"""The declared columns of a source, in order: name and dtype."""

_DIGITS: Final = 16
_WRITABLE: Final = tuple(
    int(np.datetime64(year, "us").astype(np.int64)) for year in ("0001", "10000")
)
_OURS: Final = re.compile(r"\d{5}-\d{12,}-\d{12,}-[0-9a-f]{16}\.parquet(\.[0-9a-f]+\.unfinished)?")


def exported_name(file: ArchiveFile) -> str:
    """Return the path of a file of the archive below the folder of the exported table."""
    return file.name.removesuffix(".parquet") + f"-{file.sha256[:_DIGITS]}.parquet"


def check_columns(name: str, columns: Columns) -> None:
    """Check that a Delta table can have the columns of a source.

    Raises:
        InputError: A column has the name of the day, or two differ by case alone: Delta takes names
            that differ by case for one.
    """
    seen = {DAY: "the day of receipt"}
    for column, _ in columns:
        if column.lower() in seen:
            raise InputError(
                f"{name!r} has the column {column!r}, and a Delta table cannot have that beside "
                f"{seen[column.lower()]}: give it another name with a transform"
            )
        seen[column.lower()] = repr(column)


def table_schema(columns: Columns) -> pa.Schema:
    """Return the columns of a table: those of the archive's files, then the day."""
    return pa.schema(
        [
            *(pa.field(column, ARROW_TYPES[dtype]) for column, dtype in columns),
            pa.field(PARTITION, pa.int64()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.timestamp("us", tz="UTC")),
            pa.field(DAY, pa.date32()),
        ]
    )


def time_column(project: Project, name: str, source: SourceArchive) -> str | None:
    """Return the column of a source's own time; None if the project has no such source now."""
    try:
        column = project.definition(name).time_column
    except UnknownColumn:
        return None
    return column if column in {one for one, _ in source.columns} else None


def added_file(folder: Path, file: ArchiveFile, time: str | None) -> AddedFile:
    """Return the entry of a copy in the log of its table.

    The statistics are those by which readers leave files out: of the position, of the receipt, and
    of the rows' own time, which stay when an entity is forgotten. Those of other columns would
    outlive it: the log keeps what was ever written into it.

    Args:
        folder: The folder of the table.
        file: The file of the archive that was copied.
        time: The column of the rows' own time.
    """
    path = folder / exported_name(file)
    least: dict[str, Any] = {PARTITION: file.partition, POSITION: file.first}
    most: dict[str, Any] = {PARTITION: file.partition, POSITION: file.stop - 1}
    nulls = {PARTITION: 0, POSITION: 0}
    with pq.ParquetFile(path) as opened:
        for column in (RECEIVED, *([] if time is None else [time])):
            if (found := _span(opened, column)) is not None:
                least[column], most[column] = map(_instant, found[:2])
                nulls[column] = found[2]
    stats = {
        "numRecords": file.stop - file.first,
        "minValues": least,
        "maxValues": most,
        "nullCount": nulls,
    }
    found_ms = path.stat().st_mtime_ns // 1_000_000
    return AddedFile(exported_name(file), file.day, file.size, found_ms, stats)


def _span(file: pq.ParquetFile, column: str) -> tuple[int, int, int] | None:
    """Return the least and the greatest time of a column, in microseconds, and its nulls.

    Returns:
        None if the file has none, or one that ISO 8601 has no four digits for the year of.
    """
    metadata, at = file.metadata, file.schema_arrow.get_field_index(column)
    groups = [metadata.row_group(n).column(at).statistics for n in range(metadata.num_row_groups)]
    if not groups or any(one is None or not one.has_null_count for one in groups):
        return None
    known = [one for one in groups if one.has_min_max]
    if not known:
        return None
    least, most = min(one.min_raw for one in known), max(one.max_raw for one in known)
    if not _WRITABLE[0] <= least <= most < _WRITABLE[1]:
        return None
    return least, most, sum(one.null_count for one in groups)


def _instant(time_us: int) -> str:
    return f"{np.datetime64(time_us, 'us')}Z"


def unnamed_files(folder: Path, named: Collection[str]) -> Iterator[Path]:
    """Yield the files of an export in the folder of a table that the table does not name.

    What somebody else has put there is not among them.
    """
    for path in sorted(folder.glob(f"{DAY}=*/*")):
        if _OURS.fullmatch(path.name) and str(path.relative_to(folder)) not in named:
            yield path


def remove_files(files: Sequence[Path]) -> None:
    """Remove files, and the folders that they leave empty; wait for the disk."""
    for path in files:
        path.unlink()
    for folder in sorted({path.parent for path in files}):
        if any(folder.iterdir()):
            wait_for_disk(folder)
        else:
            folder.rmdir()
            wait_for_disk(folder.parent)


def check_grown(folder: Path, before: pa.Schema, after: pa.Schema) -> None:
    """Check that a table can get other columns: added ones, and integers that become floats.

    Raises:
        StateMismatch: A column is gone, or has another type: programs that read the table would
            break.
    """
    for field in before:
        at = after.get_field_index(field.name)
        now = None if at < 0 else after.field(at).type
        if now != field.type and (field.type, now) != (pa.int64(), pa.float64()):
            raise StateMismatch(
                f"{folder} has the column {field.name!r} of type {field.type}, and the archive has "
                f"{'none of this name' if now is None else f'it as {now}'}: export to another "
                "folder (--to), or remove this one, and the next `tidemill export-archive` writes "
                "it anew"
            )
