"""A file of a partition of a log: written block by block, and checked before its rows are used.

The file's metadata holds the digests of its blocks (`pipelines.io.log_digests`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Origin, Request, Schema
from tidemill.features.errors import DamagedFile, StateVersionError
from tidemill.pipelines.io.log_digests import (
    BLOCK_ROWS,
    PartitionDigests,
    block_digest,
)
from tidemill.pipelines.io.log_rows import POSITION, RECEIVED, log_schema, one_batch
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

LOG: Final = "log"
"""The name of the logs' folder below the folder of a build."""
ROWS: Final = "rows"
"""The name of the same below the folder of a live log."""
TECHNICAL: Final = (POSITION, RECEIVED)
MEND: Final = "run `tidemill backfill` again, which writes the log anew"
MEND_LIVE: Final = "restore the file from a copy, or run `tidemill backfill` for a new generation"
_METADATA: Final = b"tidemill"
_NAME: Final = "tidemill-log"
_VERSION: Final = 1
_WITH_ORIGIN: Final = 2
"""The version of a file whose rows have more than base columns (`features.kernel.base_columns`)."""

_Identity = tuple[int, int, int]
"""Inode, size and time of change of a file."""
_OPENINGS: Final = 100
"""So often a file is opened that is replaced each time between its name and its bytes."""

_checked: dict[Path, _Identity] = {}
"""The files whose rows this process has checked."""
_checked_blocks: dict[Path, tuple[_Identity, set[int]]] = {}
"""The blocks that it has checked, of the other files."""


@dataclass(frozen=True, eq=False)
class LogFile:
    """A file of a partition, opened.

    The last file of a live partition is replaced by a longer one with each seal. What this object
    says is true of the file that it has opened; `read` opens the newest.

    Attributes:
        path: The file.
        reader: Opened, memory-mapped.
        identity: Which file was opened.
        columns: The declared columns.
        origin: How they came about; its rows are digested by that.
        start: The position of its first row.
        rows: The position after its last row.
        digests: The digests of the blocks that are read from it.
        stored: The digests of all its blocks.
    """

    path: Path
    reader: pa.ipc.RecordBatchFileReader
    identity: _Identity
    columns: Schema
    origin: Origin
    start: int
    rows: int
    digests: tuple[bytes, ...]
    stored: PartitionDigests

    @staticmethod
    def of(path: Path, start: int, stop: int | None) -> LogFile:
        """Open a file; ``stop`` is the position from which on another file is read."""
        with reading(path, mend_of(path)):
            file, identity = _opened(path, pa.memory_map)
            reader = pa.ipc.open_file(file)
            columns, origin, stored = _stored(path, reader.schema)
        if start % BLOCK_ROWS or (stop is not None and stop < start):
            raise DamagedFile(f"{path}: a file of a log begins with a whole block; {mend_of(path)}")
        end, digests = start + stored.rows, stored.blocks
        if stop is not None:
            if end < stop:
                raise DamagedFile(
                    f"{path} has the rows below {end:,} of its partition, and the next file begins "
                    f"at {stop:,}: rows are missing; {MEND_LIVE}"
                )
            end, digests = stop, digests[: (stop - start) // BLOCK_ROWS]
        return LogFile(path, reader, identity, columns, origin, start, end, digests, stored)

    @property
    def blocks(self) -> int:
        """How many blocks are read from it."""
        return len(self.digests)

    @property
    def end(self) -> int:
        """The position after the last of its rows, also of those that are read elsewhere."""
        return self.start + self.stored.rows

    def checked(self) -> pa.ipc.RecordBatchFileReader:
        """Return the reader, once this process has checked all rows of the file.

        Raises:
            DamagedFile: Its rows are not those that were written.
        """
        if _checked.get(self.path) != self.identity:
            _check(self.path, self.reader)
            if self.stored.rows:
                self._check_place(0, self.reader.get_batch(0))
            _checked[self.path] = self.identity
        return self.reader

    def read(self, first: int, last: int) -> list[pa.RecordBatch]:
        """Read those of the partition's blocks ``[first, last)`` that are read from this file.

        Raises:
            DamagedFile: Their rows are not those that were written.
        """
        before = self.start // BLOCK_ROWS
        numbers = range(max(first - before, 0), min(last - before, self.blocks))
        if not numbers:
            return []
        with reading(self.path, mend_of(self.path)):
            file, identity = _opened(self.path, pa.OSFile)
            with file:
                reader = pa.ipc.open_file(file)
                columns, origin, stored = _stored(self.path, reader.schema)
                if stored.rows < self.stored.rows:
                    raise DamagedFile(
                        f"{self.path} had {self.stored.rows:,} rows and has {stored.rows:,} now: "
                        f"rows were lost; {mend_of(self.path)}"
                    )
                blocks = [reader.get_batch(number) for number in numbers]
                found = zip(numbers, blocks, strict=True)
                _check_blocks(self.path, identity, (columns, origin), stored, found)
        for number, block in zip(numbers, blocks, strict=True):
            self._check_place(number, block)
        return blocks

    def _check_place(self, number: int, block: pa.RecordBatch) -> None:
        """Check that a block has the positions that the file's name promises."""
        found, expected = block.column(POSITION)[0].as_py(), self.start + number * BLOCK_ROWS
        if found != expected:
            raise DamagedFile(
                f"{self.path} was renamed or replaced: it has the row of position {found} where "
                f"{expected} belongs; {mend_of(self.path)}"
            )


@contextmanager
def write_log_file(
    path: Path,
    definition: EventStream | Request,
    rows: int,
    *,
    first: int = 0,
    durable: bool = False,
) -> Iterator[LogWriter]:
    """Write a file of a partition piece by piece; it is there when the block has ended.

    Args:
        path: The file.
        definition: The source.
        rows: How many rows it will have.
        first: As for `LogWriter`.
        durable: Whether it has survived a crash of the machine once the block has ended.
    """
    with atomic_write(path, durable=durable) as unfinished:
        with pa.OSFile(str(unfinished), "wb") as sink:
            writer = LogWriter(definition, rows, sink, first=first)
            yield writer
            writer.close()
        writer.state_digests(unfinished)


class LogWriter:
    """Writes a file of a partition of a log, block by block; its rows get successive positions.

    The file begins with the digests of its blocks, which are known at its end. So they are written
    as zeros first, and replaced at the end.

    Args:
        definition: The source.
        rows: How many rows will be written.
        sink: The file.
        first: The position of the first row, that of a whole block.
    """

    def __init__(
        self, definition: EventStream | Request, rows: int, sink: pa.NativeFile, *, first: int = 0
    ) -> None:
        self._definition, self._rows, self._first = definition, rows, first
        self._schema = log_schema(definition)
        self._blocks: list[bytes] = []
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._written = 0
        self._unknown = self._stated([bytes(32)] * -(-rows // BLOCK_ROWS))
        schema = self._schema.with_metadata({_METADATA: self._unknown})
        self._writer = pa.ipc.new_file(sink, schema)

    def _stated(self, blocks: Sequence[bytes]) -> bytes:
        schema, origin = dict(self._definition.schema), self._definition.origin
        has_grown = origin.base != schema
        record = {
            "format": _NAME,
            "version": _WITH_ORIGIN if has_grown else _VERSION,
            "columns": schema,
            **({"base": dict(origin.base), "added": dict(origin.added)} if has_grown else {}),
            "rows": self._rows,
            "blocks": [digest.hex() for digest in blocks],
        }
        return json.dumps(record).encode()

    def write(self, rows: pa.RecordBatch, received_us: Int64Array) -> None:
        """Write the next rows.

        Args:
            rows: The declared columns, in order of arrival, ``(rows,)``.
            received_us: int64, ``(rows,)``: when each row arrived, ascending.
        """
        start = self._first + self._written
        positions = np.arange(start, start + rows.num_rows)
        self._written += rows.num_rows
        self._waiting_rows += rows.num_rows
        self._waiting.append(
            pa.RecordBatch.from_arrays(
                [
                    *(rows.column(name) for name in self._definition.schema),
                    pa.array(positions, pa.int64()),
                    pa.array(received_us, pa.int64()),
                ],
                schema=self._schema,
            )
        )
        if self._waiting_rows >= BLOCK_ROWS:
            self._write_blocks()

    def _write_blocks(self, *, last: bool = False) -> None:
        rows = one_batch(pa.Table.from_batches(self._waiting, schema=self._schema))
        stop = rows.num_rows if last else rows.num_rows // BLOCK_ROWS * BLOCK_ROWS
        for start in range(0, stop, BLOCK_ROWS):
            block = rows.slice(start, min(BLOCK_ROWS, stop - start))
            of = self._definition
            self._blocks.append(block_digest(of.schema, block, TECHNICAL, of.origin))
            self._writer.write_batch(block)
        self._waiting, self._waiting_rows = [rows.slice(stop)], rows.num_rows - stop

    def close(self) -> None:
        """Write the last block.

        Raises:
            ValueError: Another number of rows was written than was announced.
        """
        self._write_blocks(last=True)
        if self._written != self._rows:
            raise ValueError(f"{self._written} rows were written, announced were {self._rows}")
        self._writer.close()

    def state_digests(self, path: Path) -> None:
        """Replace the zeros by the digests, in the schema before and after the rows."""
        stated = self._stated(self._blocks)
        if stated == self._unknown:
            return
        with path.open("r+b") as file:
            # Arrow's "File Format": 8 bytes of magic, and a message: a mark, its length, its bytes;
            # at the end the footer, its length and 6 bytes of magic.
            file.seek(8 + 4)
            length = int.from_bytes(file.read(4), "little")
            _replace(file, 8 + 8, length, self._unknown, stated)
            end = file.seek(-10, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            _replace(file, end - length, length, self._unknown, stated)


def _replace(file: BinaryIO, start: int, length: int, old: bytes, new: bytes) -> None:
    file.seek(start)
    at = file.read(length).index(old)
    file.seek(start + at)
    file.write(new)


def block_digests(schema: Schema, origin: Origin, table: pa.Table) -> list[bytes]:
    """Return the digest of each block of rows that begin with a whole block."""
    return [
        block_digest(schema, one_batch(table.slice(start, BLOCK_ROWS)), TECHNICAL, origin)
        for start in range(0, len(table), BLOCK_ROWS)
    ]


def _opened(path: Path, opening: Callable[[str], pa.NativeFile]) -> tuple[pa.NativeFile, _Identity]:
    """Open a file that another process may replace; return it, and which one it is."""
    identity = _identity(path)
    for _ in range(_OPENINGS):
        file, before = opening(str(path)), identity
        identity = _identity(path)
        if identity == before:
            return file, identity
        file.close()
    raise DamagedFile(f"{path} is replaced all the time; {mend_of(path)}")


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _stored(path: Path, schema: pa.Schema) -> tuple[Schema, Origin, PartitionDigests]:
    """Return the declared columns, how they came about, and the digests that a file states."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    record: dict[str, Any] = json.loads(metadata[_METADATA]) if _METADATA in metadata else {}
    version = record.get("version")
    if record.get("format") != _NAME or version not in (_VERSION, _WITH_ORIGIN):
        what = f"version {version}" if record else "an earlier version, without digests"
        raise StateVersionError(
            f"{path} is a log of {what}; this code reads versions {_VERSION} and {_WITH_ORIGIN}: "
            f"{mend_of(path)}"
        )
    blocks = tuple(bytes.fromhex(digest) for digest in record["blocks"])
    columns = record["columns"]
    declared = [(field.name, field.type) for field in list(schema)[:-2]]
    if declared != [(name, ARROW_TYPES.get(dtype)) for name, dtype in columns.items()]:
        raise DamagedFile(
            f"{path} was changed after it was written: it has other columns than it states; "
            f"{mend_of(path)}"
        )
    origin = Origin(record.get("base", columns), record.get("added", {}))
    return columns, origin, PartitionDigests(record["rows"], blocks)


def _check(path: Path, reader: pa.ipc.RecordBatchFileReader) -> None:
    with reading(path, mend_of(path)):
        schema, origin, stored = _stored(path, reader.schema)
        table = reader.read_all()
        found = block_digests(schema, origin, table)
    if len(table) == stored.rows and tuple(found) == stored.blocks:
        return
    if len(table) == stored.rows:
        pairs = zip(found, stored.blocks, strict=False)
        raise _damaged(path, next((n for n, (a, b) in enumerate(pairs) if a != b), 0), stored.rows)
    where = f"it has {len(table)} rows and states {stored.rows}"
    raise DamagedFile(f"{path} was changed after it was written: {where}; {mend_of(path)}")


def _check_blocks(
    path: Path,
    seen: _Identity,
    columns: tuple[Schema, Origin],
    stored: PartitionDigests,
    blocks: Iterable[tuple[int, pa.RecordBatch]],
) -> None:
    """Check blocks that this process has not checked yet."""
    if _checked.get(path) == seen:
        return
    if path not in _checked_blocks or _checked_blocks[path][0] != seen:
        _checked_blocks[path] = (seen, set())
    checked = _checked_blocks[path][1]
    for number, rows in blocks:
        if number not in checked:
            if block_digest(columns[0], rows, TECHNICAL, columns[1]) != stored.blocks[number]:
                raise _damaged(path, number, stored.rows)
            checked.add(number)


def _damaged(path: Path, block: int, rows: int) -> DamagedFile:
    begin = first_position(path)
    first, last = begin + block * BLOCK_ROWS, begin + min((block + 1) * BLOCK_ROWS, rows) - 1
    return DamagedFile(
        f"{path} was changed after it was written: rows {first} to {last} do not have their "
        f"digest; {mend_of(path)}"
    )


def first_position(path: Path) -> int:
    """Return the position of a file's first row; all but the first of a build are named by it."""
    return int(path.stem.partition("-")[2] or 0)


def mend_of(path: Path) -> str:
    """Return what to do about a file that is damaged."""
    return MEND_LIVE if "-" in path.stem and path.parent.parent.name != LOG else MEND
