"""Spill files: rows and arrays that one stage of a backfill leaves for the next, below the root.

A file is written once, in pieces, by one task; other tasks read single pieces. The pieces of a
*section* are numbered from 0, such as by shard. The sizes of all pieces stand at the end of the
file, so whoever has its path can read any piece with two reads, and no file is ever memory-mapped:
mapped pages count as memory of the process.

Files are valid only within the backfill that wrote them, which removes them. Where workers are on
other machines, a file is in an exchange, and its pieces are read there (`Opened`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from tidemill.features.errors import DamagedFile, NoSpace
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.file_errors import named_for

SPILL: Final = "spill"
"""The folder of the spill files, below the folder of what a build needs only while it is made."""

_LENGTH: Final = 8
_AGAIN: Final = "run `tidemill backfill` again"


class SpillWriter:
    """Writes the pieces of a file, in order."""

    def __init__(self, sink: pa.NativeFile) -> None:
        self._sink = sink
        self._sizes: dict[str, list[int]] = {}

    def write(
        self, section: str, parts: Sequence[bytes | pa.Buffer | np.ndarray[Any, Any]]
    ) -> None:
        """Write the next piece of a section, which must follow its other pieces.

        Args:
            section: The section.
            parts: What the piece consists of; nothing makes an empty piece.
        """
        size = 0
        for part in parts:
            data = pa.py_buffer(part)
            self._sink.write(data)
            size += data.size
        self._sizes.setdefault(section, []).append(size)

    def write_rows(self, section: str, rows: pa.RecordBatch | None) -> None:
        """Write rows as the next piece of a section; None or no rows make an empty piece."""
        self.write(section, [rows.serialize()] if rows is not None and rows.num_rows else [])

    def close(self) -> None:
        """Write the sizes of the pieces."""
        index = json.dumps(self._sizes).encode()
        self._sink.write(index + len(index).to_bytes(_LENGTH, "little"))


@contextmanager
def spill_file(path: Path) -> Iterator[SpillWriter]:
    """Write a spill file; it is there when the block has ended, whole, or not at all.

    Raises:
        FileError: The disk is full, ...
    """
    with atomic_write(path) as unfinished, pa.OSFile(str(unfinished), "wb") as sink:
        writer = SpillWriter(sink)
        yield writer
        writer.close()


class Opened(Protocol):
    """A file whose parts can be read, wherever it is.

    Attributes:
        size: How many bytes it has.
    """

    size: int

    def read(self, start: int, size: int, /) -> pa.Buffer:
        """Read a part of it."""


Opens: TypeAlias = Callable[[Path], Opened]
"""Opens a file by its path."""


class FileHere:
    """A file of this machine, as `Opened`.

    Args:
        path: The file.

    Raises:
        FileError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with named_for(path):
            self.size = path.stat().st_size

    def read(self, start: int, size: int) -> pa.Buffer:
        """Read a part of the file."""
        with named_for(self._path), pa.OSFile(str(self._path), "rb") as source:
            source.seek(start)
            return source.read_buffer(size)


class SpillFile:
    """Reads pieces of a spill file.

    Args:
        path: The file.
        opens: Opens it.

    Raises:
        DamagedFile: It is not a spill file, or is cut short.
        FileError: It cannot be read.
    """

    def __init__(self, path: Path, opens: Opens = FileHere) -> None:
        self._file = opens(path)
        end = self._file.size
        last = min(end, _LENGTH)
        length = int.from_bytes(self._file.read(end - last, last).to_pybytes(), "little")
        if not 0 < length <= end - _LENGTH:
            raise DamagedFile(f"{path}: is cut short; {_AGAIN}")
        at = end - _LENGTH - length
        sizes: dict[str, list[int]] = json.loads(self._file.read(at, length).to_pybytes())
        self._places: dict[str, list[tuple[int, int]]] = {}
        at = 0
        for section, pieces in sizes.items():
            ends = np.cumsum([at, *pieces]).tolist()
            self._places[section] = list(zip(ends[:-1], pieces, strict=True))
            at = ends[-1]
        if at != end - _LENGTH - length:
            raise DamagedFile(f"{path}: has {end} bytes, and its pieces {at}; {_AGAIN}")

    def read(self, section: str, piece: int = 0) -> pa.Buffer:
        """Read a piece."""
        at, size = self._places[section][piece]
        return self._file.read(at, size) if size else pa.py_buffer(b"")

    def read_rows(self, section: str, schema: pa.Schema, piece: int = 0) -> pa.RecordBatch | None:
        """Read the rows of a piece; None if it is empty."""
        data = self.read(section, piece)
        return pa.ipc.read_record_batch(data, schema) if data.size else None

    def read_array(self, section: str, dtype: Any, piece: int = 0) -> np.ndarray[Any, Any]:
        """Read a piece as an array, ``(values,)``."""
        return np.frombuffer(self.read(section, piece), dtype)


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that a disk has room.

    Args:
        folder: A folder on the disk; it exists.
        needed_bytes: What will be written at most.
        what: What needs it, for the error.

    Raises:
        NoSpace: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise NoSpace(
            f"{folder}: {what} needs up to {_gigabytes(needed_bytes)} while it runs, and the disk "
            f"has {_gigabytes(free)} free; make room, or write to another disk with --root"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
