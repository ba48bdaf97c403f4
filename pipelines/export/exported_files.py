"""The files of an exported table: copies of the archive's, under names that say what is in them.

A name has the partition, the positions and the first digits of the SHA-256: a file whose rows were
emptied is another file, and one that a killed process has copied is found again. Files of Delta
tables never change, which is what their readers rely on. A file that was written before its source
got a column, or a wider one, is copied with the columns of today: no reader of Delta takes integers
for floats.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.definitions.schema import ARROW_TYPES
from tidemill.features.errors import InputError, StateMismatch
from tidemill.pipelines.archive.manifest import ArchiveFile
from tidemill.pipelines.archive.parquet_files import GROUP_ROWS, read_file
from tidemill.pipelines.export.delta_table import DAY, AddedFile
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, conformed
from tidemill.serving.files.atomic_write import atomic_write, wait_for_disk

Columns = Sequence[Sequence[str]]
"""The declared columns of a source, in order: name and dtype."""

_DIGITS: Final = 16
_OURS: Final = re.compile(r"\d{5}-\d{12,}-\d{12,}-[0-9a-f]{16}\.parquet(\.[0-9a-f]+\.unfinished)?")


def exported_name(file: ArchiveFile, columns: Columns | None = None) -> str:
    """Return the path of a file of the archive below the folder of the exported table.

    Args:
        file: The file.
        columns: The columns with which it is copied; None for its own.
    """
    digest = file.sha256
    if columns is not None:
        said = json.dumps([file.sha256, [list(one) for one in columns]])
        digest = hashlib.sha256(said.encode()).hexdigest()
    return file.name.removesuffix(".parquet") + f"-{digest[:_DIGITS]}.parquet"


def has_columns(path: Path, columns: Columns) -> bool:
    """Tell whether a file of the archive has all columns as they are today.

    A file that cannot be read is copied as it is: whoever copies it says what is wrong.
    """
    try:
        found = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return True
    return bool(found.remove_metadata().equals(file_schema(columns)))


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


def file_schema(columns: Columns) -> pa.Schema:
    """Return the columns of a source's files in the archive."""
    return pa.schema(
        [
            *(pa.field(column, ARROW_TYPES[dtype]) for column, dtype in columns),
            pa.field(PARTITION, pa.int64()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.timestamp("us", tz="UTC")),
        ]
    )


def table_schema(columns: Columns) -> pa.Schema:
    """Return the columns of a table: those of the archive's files, then the day."""
    return file_schema(columns).append(pa.field(DAY, pa.date32()))


def with_columns(path: Path, target: Path, columns: Columns) -> None:
    """Copy a file of the archive with the columns of today; wait for the disk.

    Raises:
        DamagedFile: It is no Parquet file.
        FileError: The copy cannot be written.
    """
    schema = {one[0]: one[1] for one in columns}
    with (
        atomic_write(target, durable=True) as unfinished,
        pq.ParquetWriter(
            unfinished, file_schema(columns), compression="zstd", compression_level=3
        ) as writer,
    ):
        for rows in read_file(path):
            writer.write_batch(conformed(rows, schema), row_group_size=GROUP_ROWS)


def added_file(folder: Path, path: str, file: ArchiveFile) -> AddedFile:
    """Return the entry of a copy in the log of its table.

    It says how many rows the file has, and nothing of their values: the log keeps what was ever
    written into it, also when an entity is forgotten. Statistics of some columns only would be
    worse: delta-rs 1.6.6 leaves a file out when rows are asked for by a column that has none.

    Args:
        folder: The folder of the table.
        path: The path of the copy below it.
        file: The file of the archive that was copied.
    """
    status = (folder / path).stat()
    modified_ms = status.st_mtime_ns // 1_000_000
    return AddedFile(path, file.day, status.st_size, modified_ms, file.stop - file.first)


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
