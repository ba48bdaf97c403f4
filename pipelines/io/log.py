"""The log of a source on disk: every accepted row, in order of arrival, by partition.

A partition is one Arrow IPC file: the declared columns, then ``_position`` (int64: the row's number
in the partition, ascending) and ``_received`` (int64 microseconds: when it arrived; for a table
without an order of arrival, the row's own time). Training, replay and verification read the log.

The file's metadata holds the digests of its rows (`pipelines.io.log_digests`). A process checks
every row of a file against them before it uses the first one, so damaged rows are never used.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Request, Schema
from tidemill.features.errors import DamagedFile, InputError, StateVersionError
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log_digests import (
    BLOCK_ROWS,
    PartitionDigests,
    block_digest,
    prefix_digest,
)
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

POSITION: Final = "_position"
RECEIVED: Final = "_received"
PARTITION: Final = "_partition"
SENT: Final = "_sent"
"""When a poll read the row: wall clock in microseconds, for latency only."""
_TECHNICAL: Final = (POSITION, RECEIVED)
_MEND: Final = "run `tidemill backfill` again, which writes the log anew"
_METADATA: Final = b"tidemill"
_FORMAT: Final = {"format": "tidemill-log", "version": 1}

_checked: dict[Path, tuple[int, int, int]] = {}
"""The files whose rows this process has checked: inode, size and time of change."""
_checked_blocks: dict[Path, tuple[tuple[int, int, int], set[int]]] = {}
"""The blocks that it has checked, of the other files."""


def log_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the schema of a source's log."""
    return pa.schema(
        [
            *(pa.field(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()),
            pa.field(POSITION, pa.int64()),
            pa.field(RECEIVED, pa.int64()),
        ]
    )


LOG: Final = "log"
"""The name of the logs' folder below the folder of a build."""


@dataclass(frozen=True)
class Log:
    """The logs of a build.

    Attributes:
        root: The build's folder; a partition is the file ``root/log/<source>/<partition>.arrow``.
    """

    root: Path

    def path(self, source: str, partition: int) -> Path:
        """Return the file of a partition."""
        return self.root / LOG / source / f"{partition:05d}.arrow"

    def sources(self) -> list[str]:
        """Return the names of the sources that have a log, in order."""
        return sorted(folder.name for folder in (self.root / LOG).glob("*") if folder.is_dir())

    def partitions(self, source: str) -> int:
        """Return how many partitions a source has.

        Raises:
            InputError: There is no log of the source.
        """
        found = len(list((self.root / LOG / source).glob("*.arrow")))
        if not found:
            raise InputError(
                f"there is no log of {source!r} in {self.root / LOG}; run `tidemill backfill`"
            )
        return found

    def open(self, source: str, partition: int) -> pa.ipc.RecordBatchFileReader:
        """Open a partition, memory-mapped, with all its rows checked.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        path = self.path(source, partition)
        reader = self._open(source, partition)
        status = path.stat()
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if _checked.get(path) != seen:
            _check(path, reader)
            _checked[path] = seen
        return reader

    def _open(self, source: str, partition: int) -> pa.ipc.RecordBatchFileReader:
        path = self.path(source, partition)
        if not path.exists():
            raise InputError(
                f"there is no partition {partition} of {source!r}: {path} is missing; {_MEND}"
            )
        with reading(path, _MEND):
            return pa.ipc.open_file(pa.memory_map(str(path)))

    def read(
        self, source: str, partition: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read a partition, or all partitions in order with a ``_partition`` column."""
        if partition is not None:
            reader = self.open(source, partition)
            with reading(self.path(source, partition), _MEND):
                table = reader.read_all().replace_schema_metadata(None)
                return table if columns is None else table.select(list(columns))
        parts = []
        for number in range(self.partitions(source)):
            table = self.read(source, number, columns)
            parts.append(
                table.append_column(PARTITION, pa.array(np.full(len(table), number), pa.int64()))
            )
        return pa.concat_tables(parts)

    def read_span(self, source: str, partition: int, start: int, stop: int) -> pa.RecordBatch:
        """Read the rows ``[start, stop)`` of a partition into memory of their own.

        The file is not mapped, and only the blocks that hold the rows are read and checked.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        path = self.path(source, partition)
        with reading(path, _MEND), pa.OSFile(str(path), "rb") as file:
            reader = pa.ipc.open_file(file)
            schema, stored = _stored(path, reader.schema)
            numbers = range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))
            blocks = [reader.get_batch(number) for number in numbers]
            _check_blocks(path, schema, stored, zip(numbers, blocks, strict=True))
        if not blocks:
            return one_batch(reader.schema.empty_table().replace_schema_metadata(None))
        rows = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
        rows = rows.replace_schema_metadata(None)
        return rows.slice(start - numbers[0] * BLOCK_ROWS, stop - start)

    def position_at(self, source: str, partition: int, received_us: int) -> int:
        """Return the position of the first row that was received at an instant or later."""
        path = self.path(source, partition)
        reader = self._open(source, partition)
        with reading(path, _MEND):

            def received(block: int) -> Int64Array:
                return hashing.bits(reader.get_batch(block).column(RECEIVED))

            blocks = range(reader.num_record_batches)
            block = bisect.bisect_left(blocks, received_us, key=lambda n: int(received(n)[-1]))
            if block == len(blocks):
                return _stored(path, reader.schema)[1].rows
            return block * BLOCK_ROWS + int(np.searchsorted(received(block), received_us, "left"))

    def digests(self, source: str, partition: int) -> PartitionDigests:
        """Return the digests of a partition's rows."""
        path = self.path(source, partition)
        reader = self._open(source, partition)
        with reading(path, _MEND):
            return _stored(path, reader.schema)[1]

    def lengths(self, source: str) -> list[int]:
        """Return the number of rows of each partition."""
        return [self.digests(source, n).rows for n in range(self.partitions(source))]

    def prefix_digest(self, source: str, positions: Sequence[int]) -> str | None:
        """Return the prefix digest of a cut (`pipelines.io.log_digests`).

        Args:
            source: The source.
            positions: The cut: the position in each partition.

        Returns:
            64 hexadecimal digits; None if the log has other partitions, or ends before the cut.
        """
        if len(positions) != self.partitions(source):
            return None
        found = [self.digests(source, number) for number in range(len(positions))]
        if any(position > of.rows for position, of in zip(positions, found, strict=True)):
            return None
        return prefix_digest(
            [
                of.prefix(position, functools.partial(self._digest, source, number))
                for number, (position, of) in enumerate(zip(positions, found, strict=True))
            ]
        )

    def _digest(self, source: str, partition: int, start: int, stop: int) -> bytes:
        """Digest the first rows of a block, once the block has its digest."""
        path = self.path(source, partition)
        schema, stored = _stored(path, self._open(source, partition).schema)
        whole = self.read_span(source, partition, *stored.span(start // BLOCK_ROWS))
        return block_digest(schema, whole.slice(0, stop - start), _TECHNICAL)

    def write(
        self,
        definition: EventStream | Request,
        partition: int,
        table: pa.Table,
        received_us: Int64Array,
    ) -> None:
        """Write a partition; its rows get the positions 0, 1, ... in their order.

        Args:
            definition: The source.
            partition: The partition's number.
            table: The declared columns, in order of arrival, ``(rows,)``.
            received_us: int64, ``(rows,)``: when each row arrived, ascending.
        """
        with self.writing(definition, partition, len(table)) as writer:
            writer.write(one_batch(table), received_us)

    @contextmanager
    def writing(
        self, definition: EventStream | Request, partition: int, rows: int
    ) -> Iterator[LogWriter]:
        """Write a partition piece by piece; it is there when the block has ended.

        Args:
            definition: The source.
            partition: The partition's number.
            rows: How many rows it will have.
        """
        with atomic_write(self.path(definition.name, partition)) as unfinished:
            with pa.OSFile(str(unfinished), "wb") as sink:
                writer = LogWriter(definition, rows, sink)
                yield writer
                writer.close()
            writer.state_digests(unfinished)


class LogWriter:
    """Writes a partition of a log, block by block; its rows get the positions 0, 1, ...

    The file begins with the digests of its blocks, which are known at its end. So they are written
    as zeros first, and replaced at the end.

    Args:
        definition: The source.
        rows: How many rows will be written.
        sink: The file.
    """

    def __init__(self, definition: EventStream | Request, rows: int, sink: pa.NativeFile) -> None:
        self._definition, self._rows = definition, rows
        self._schema = log_schema(definition)
        self._blocks: list[bytes] = []
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._written = 0
        self._unknown = self._stated([bytes(32)] * -(-rows // BLOCK_ROWS))
        schema = self._schema.with_metadata({_METADATA: self._unknown})
        self._writer = pa.ipc.new_file(sink, schema)

    def _stated(self, blocks: Sequence[bytes]) -> bytes:
        record = {
            **_FORMAT,
            "columns": dict(self._definition.schema),
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
        positions = np.arange(self._written, self._written + rows.num_rows)
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
            self._blocks.append(block_digest(self._definition.schema, block, _TECHNICAL))
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


def rows_digest(definition: EventStream | Request, partitions: Sequence[pa.Table]) -> str:
    """Return the prefix digest of rows that are not in a log: of the end of all partitions.

    Args:
        definition: The source.
        partitions: The rows of each partition, with the columns of a log.
    """
    prefixes = []
    for rows in partitions:
        found = PartitionDigests(len(rows), tuple(_digests(definition.schema, rows)))
        prefixes.append(found.prefix(len(rows), _no_partial))
    return prefix_digest(prefixes)


def _no_partial(start: int, stop: int) -> bytes:
    raise AssertionError(f"the end of a partition is no partial block: {start} to {stop}")


def _digests(schema: Schema, table: pa.Table) -> list[bytes]:
    return [
        block_digest(schema, one_batch(table.slice(start, BLOCK_ROWS)), _TECHNICAL)
        for start in range(0, len(table), BLOCK_ROWS)
    ]


def _stored(path: Path, schema: pa.Schema) -> tuple[Schema, PartitionDigests]:
    """Return the declared columns and the digests that a file states."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    record: dict[str, Any] = json.loads(metadata[_METADATA]) if _METADATA in metadata else {}
    found = {name: record.get(name) for name in _FORMAT}
    if found != _FORMAT:
        what = f"version {found['version']}" if record else "an earlier version, without digests"
        raise StateVersionError(
            f"{path} is a log of {what}; this code reads version {_FORMAT['version']}: {_MEND}"
        )
    blocks = tuple(bytes.fromhex(digest) for digest in record["blocks"])
    return record["columns"], PartitionDigests(record["rows"], blocks)


def _check(path: Path, reader: pa.ipc.RecordBatchFileReader) -> None:
    with reading(path, _MEND):
        schema, stored = _stored(path, reader.schema)
        table = reader.read_all()
        found = _digests(schema, table)
    if len(table) == stored.rows and tuple(found) == stored.blocks:
        return
    if len(table) == stored.rows:
        pairs = zip(found, stored.blocks, strict=False)
        raise _damaged(path, next((n for n, (a, b) in enumerate(pairs) if a != b), 0), stored.rows)
    where = f"it has {len(table)} rows and states {stored.rows}"
    raise DamagedFile(f"{path} was changed after it was written: {where}; {_MEND}")


def _check_blocks(
    path: Path,
    schema: Schema,
    stored: PartitionDigests,
    blocks: Iterable[tuple[int, pa.RecordBatch]],
) -> None:
    """Check blocks that this process has not checked yet."""
    status = path.stat()
    seen = (status.st_ino, status.st_size, status.st_mtime_ns)
    if _checked.get(path) == seen:
        return
    if path not in _checked_blocks or _checked_blocks[path][0] != seen:
        _checked_blocks[path] = (seen, set())
    checked = _checked_blocks[path][1]
    for number, rows in blocks:
        if number not in checked:
            if block_digest(schema, rows, _TECHNICAL) != stored.blocks[number]:
                raise _damaged(path, number, stored.rows)
            checked.add(number)


def _damaged(path: Path, block: int, rows: int) -> DamagedFile:
    last = min((block + 1) * BLOCK_ROWS, rows) - 1
    return DamagedFile(
        f"{path} was changed after it was written: rows {block * BLOCK_ROWS} to {last} do not have "
        f"their digest; {_MEND}"
    )


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch (also when it is empty)."""
    combined = table.combine_chunks()
    batches = combined.to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.RecordBatch.from_arrays(
        [pa.array([], field.type) for field in table.schema], schema=table.schema
    )
