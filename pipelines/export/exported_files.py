"""The files of an exported table: copies of the archive's, under names that say what is in them.

A name has the partition, the positions and the first digits of the SHA-256: a file whose rows were
emptied is another file, and one that a killed process has copied is found again. Files of Delta
tables never change, which is what their readers rely on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.features.definitions.schema import ARROW_TYPES
from tidemill.features.errors import InputError, StateMismatch
from tidemill.pipelines.archive.manifest import ArchiveFile
from tidemill.pipelines.export.delta_table import DAY, AddedFile
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED
from tidemill.serving.files.atomic_write import wait_for_disk

Columns = Sequence[Sequence[str]]
"""The declared columns of a source, in order: name and dtype."""

_DIGITS: Final = 16
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


def added_file(folder: Path, file: ArchiveFile) -> AddedFile:
    """Return the entry of a copy in the log of its table.

    It says how many rows the file has, and nothing of their values: the log keeps what was ever
    written into it, also when an entity is forgotten. Statistics of some columns only would be
    worse: delta-rs 1.6.6 leaves a file out when rows are asked for by a column that has none.

    Args:
        folder: The folder of the table.
        file: The file of the archive that was copied.
    """
    path = exported_name(file)
    modified_ms = (folder / path).stat().st_mtime_ns // 1_000_000
    return AddedFile(path, file.day, file.size, modified_ms, file.stop - file.first)


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
