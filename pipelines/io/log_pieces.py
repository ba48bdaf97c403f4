"""The files of a partition of a build's log: pieces, which builds that have the same rows share.

A partition is cut into pieces of `PIECE_ROWS` rows. The first is ``<partition>.arrow``, the others
are ``<partition>-<first position>.arrow``. A piece is never changed, so where two builds have the
same rows in a piece, both can have the same file (`share_log`).
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import DamagedFile, StateVersionError
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.io.log_files import (
    LOG,
    LogFile,
    LogWriter,
    first_position,
    write_log_file,
)

PIECE_ROWS: Final = 16 * BLOCK_ROWS
"""Rows of a piece, the last one of a partition excepted."""
_SHARED: Final = ".shared"


def piece_path(folder: Path, partition: int, first: int) -> Path:
    """Return the file of the piece that begins with a position."""
    return folder / (f"{partition:05d}-{first:012d}.arrow" if first else f"{partition:05d}.arrow")


def piece_paths(folder: Path, partition: int) -> list[Path]:
    """Return the pieces of a partition, in order; the first also if it is missing."""
    return [
        piece_path(folder, partition, 0),
        *sorted(folder.glob(f"{partition:05d}-*.arrow")),
    ]


class PartitionWriter:
    """Writes a partition of a log, piece by piece; its rows get successive positions.

    Args:
        folder: The folder of the source.
        definition: The source.
        partition: The partition's number.
        rows: How many rows will be written.
    """

    def __init__(
        self, folder: Path, definition: EventStream | Request, partition: int, rows: int
    ) -> None:
        self._folder, self._definition = folder, definition
        self._partition, self._rows = partition, rows
        self._first = self._written = 0
        self._open = ExitStack()
        self._writer: LogWriter | None = None

    def __enter__(self) -> Self:
        self._next(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """End the last piece.

        Raises:
            ValueError: Another number of rows was written than was announced.
        """
        if error is None and self._written != self._rows:
            wrong = ValueError(f"{self._written} rows were written, announced were {self._rows}")
            self._open.__exit__(ValueError, wrong, None)
            raise wrong
        return self._open.__exit__(kind, error, trace)

    def _next(self, first: int) -> LogWriter:
        """End the piece before, and begin another one."""
        self._open.close()
        path = piece_path(self._folder, self._partition, first)
        rows = min(PIECE_ROWS, self._rows - first)
        piece = write_log_file(path, self._definition, rows, first=first)
        self._first, self._writer = first, self._open.enter_context(piece)
        return self._writer

    def write(self, rows: pa.RecordBatch, received_us: Int64Array) -> None:
        """Write the next rows; see `LogWriter.write`."""
        start, writer = 0, self._writer
        assert writer is not None
        while start < rows.num_rows:
            end = self._first + PIECE_ROWS
            if self._written == end:
                writer, end = self._next(end), end + PIECE_ROWS
            stop = min(rows.num_rows, start + end - self._written)
            writer.write(rows.slice(start, stop - start), received_us[start:stop])
            self._written += stop - start
            start = stop


def share_log(before: Path, build: Path) -> int:
    """Replace pieces of a build's log by links to those of another build that have the same rows.

    A piece of the other build is checked before: it is linked only if it has the rows that its
    digests say. Where the file system has no links, the build keeps its own files.

    Args:
        before: The folder of the other build.
        build: The folder of the build; nobody else uses it yet.

    Returns:
        How many bytes are shared now that were not.
    """
    return _share(before / LOG, build / LOG, "*/*.arrow", _is_same)


def share_files(before: Path, folder: Path) -> int:
    """Replace files of a folder by links to those of another one that have the same bytes.

    Args:
        before: The other folder; it need not exist.
        folder: The folder; nobody else uses it yet.

    Returns:
        How many bytes are shared now that were not.
    """
    return _share(before, folder, "*", lambda a, b: filecmp.cmp(a, b, shallow=False))


def _share(before: Path, folder: Path, pattern: str, is_same: Callable[[Path, Path], bool]) -> int:
    shared = 0
    for path in sorted(folder.glob(pattern)):
        other = before / path.relative_to(folder)
        if not other.exists() or other.samefile(path) or not is_same(other, path):
            continue
        link = path.with_suffix(_SHARED)
        try:
            os.link(other, link)
        except OSError:
            return shared
        shared += path.stat().st_size
        link.replace(path)
    return shared


def _is_same(other: Path, path: Path) -> bool:
    """Tell whether two files have the same rows, and the first has those that it states."""
    first = first_position(path)
    mine = LogFile.of(path, first, None)
    try:
        found = LogFile.of(other, first, None)
        columns = list(found.columns.items())
        if columns != list(mine.columns.items()) or found.stored != mine.stored:
            return False
        found.checked()
    except (DamagedFile, StateVersionError):
        return False
    return True
