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
import itertools
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
_MEND_LIVE: Final = "restore the file from a copy, or run `tidemill backfill` for a new generation"
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
ROWS: Final = "rows"
"""The name of the same below the folder of a live log."""


@dataclass(frozen=True)
class Log:
    """The logs of a build, and of the live stream that goes on with it.

    A partition is one file, ``root/log/<source>/<partition>.arrow``. That of a live source goes on
    in further files, ``live/rows/<source>/<partition>-<first position>.arrow``
    (`pipelines.io.live.live_log`), each from a whole block on. A block that two files have is
    read from the later one, which has more of its rows.

    Attributes:
        root: The build's folder.
        live: The folder of the rows that came since the build; None to read the build alone.
    """

    root: Path
    live: Path | None = None

    def path(self, source: str, partition: int) -> Path:
        """Return the file of a partition, the first one."""
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

    def columns(self, source: str) -> Schema:
        """Return the declared columns of a source, as its log has them."""
        return self._pieces(source, 0)[0].columns

    def _pieces(self, source: str, partition: int) -> list[_Piece]:
        """Return the files of a partition, each with the blocks that are read from it.

        Raises:
            InputError: The first file is missing.
            DamagedFile: A file is not one of a log, or rows are missing between two.
            StateVersionError: A file was written in another format.
        """
        paths = [self.path(source, partition)]
        if not paths[0].exists():
            raise InputError(
                f"there is no partition {partition} of {source!r}: {paths[0]} is missing; {_MEND}"
            )
        starts = [0]
        if self.live is not None:
            paths += sorted((self.live / ROWS / source).glob(f"{partition:05d}-*.arrow"))
            starts += [_first(path) for path in paths[1:]]
        stops = [*starts[1:], None]
        pieces = [
            _Piece.of(path, start, stop)
            for path, start, stop in zip(paths, starts, stops, strict=True)
        ]
        for before, piece in itertools.pairwise(pieces):
            if before.end > piece.end:
                raise DamagedFile(
                    f"{piece.path} ends at position {piece.end:,} of its partition, and the file "
                    f"before it at {before.end:,}: rows are missing; {_MEND_LIVE}"
                )
        return pieces

    def batches(self, source: str, partition: int) -> Iterator[pa.RecordBatch]:
        """Yield the blocks of a partition, memory-mapped, each checked before it is used.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        for piece in self._pieces(source, partition):
            reader = piece.checked()
            with reading(piece.path, _mend(piece.path)):
                for number in range(piece.blocks):
                    yield reader.get_batch(number).replace_schema_metadata(None)

    def read(
        self, source: str, partition: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read a partition, or all partitions in order with a ``_partition`` column."""
        if partition is not None:
            pieces = self._pieces(source, partition)
            schema = pieces[0].reader.schema.remove_metadata()
            table = pa.Table.from_batches(self.batches(source, partition), schema)
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

        The files are not mapped, and only the blocks that hold the rows are read and checked.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        pieces = self._pieces(source, partition)
        blocks = [
            block
            for piece in pieces
            for block in piece.read(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))
        ]
        if not blocks:
            schema = pieces[0].reader.schema.remove_metadata()
            return one_batch(schema.empty_table())
        rows = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
        rows = rows.replace_schema_metadata(None)
        return rows.slice(start % BLOCK_ROWS, stop - start)

    def position_at(self, source: str, partition: int, received_us: int) -> int:
        """Return the position of the first row that was received at an instant or later."""
        pieces = self._pieces(source, partition)
        blocks = [(piece, number) for piece in pieces for number in range(piece.blocks)]

        def received(place: int) -> Int64Array:
            piece, number = blocks[place]
            with reading(piece.path, _mend(piece.path)):
                return hashing.bits(piece.reader.get_batch(number).column(RECEIVED))

        place = bisect.bisect_left(
            range(len(blocks)), received_us, key=lambda n: int(received(n)[-1])
        )
        if place == len(blocks):
            return pieces[-1].rows
        return place * BLOCK_ROWS + int(np.searchsorted(received(place), received_us, "left"))

    def digests(self, source: str, partition: int) -> PartitionDigests:
        """Return the digests of a partition's rows."""
        pieces = self._pieces(source, partition)
        return PartitionDigests(
            pieces[-1].rows, tuple(itertools.chain(*(piece.digests for piece in pieces)))
        )

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
        pieces = self._pieces(source, partition)
        span = self.digests(source, partition).span(start // BLOCK_ROWS)
        whole = self.read_span(source, partition, *span)
        return block_digest(pieces[0].columns, whole.slice(0, stop - start), _TECHNICAL)

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
        with write_log_file(self.path(definition.name, partition), definition, rows) as writer:
            yield writer


@dataclass(frozen=True, eq=False)
class _Piece:
    """A file of a partition.

    Attributes:
        path: The file.
        reader: Opened, memory-mapped.
        columns: The declared columns.
        start: The position of its first row.
        rows: The position after its last row.
        digests: The digests of the blocks that are read from it.
        stored: The digests of all its blocks.
    """

    path: Path
    reader: pa.ipc.RecordBatchFileReader
    columns: Schema
    start: int
    rows: int
    digests: tuple[bytes, ...]
    stored: PartitionDigests

    @staticmethod
    def of(path: Path, start: int, stop: int | None) -> _Piece:
        """Open a file; ``stop`` is the position from which on another file is read."""
        with reading(path, _mend(path)):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            columns, stored = _stored(path, reader.schema)
        if start % BLOCK_ROWS or (stop is not None and stop < start):
            raise DamagedFile(f"{path}: a file of a log begins with a whole block; {_mend(path)}")
        end, digests = start + stored.rows, stored.blocks
        if stop is not None:
            if end < stop:
                raise DamagedFile(
                    f"{path} has the rows below {end:,} of its partition, and the next file begins "
                    f"at {stop:,}: rows are missing; {_MEND_LIVE}"
                )
            end, digests = stop, digests[: (stop - start) // BLOCK_ROWS]
        return _Piece(path, reader, columns, start, end, digests, stored)

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
        status = self.path.stat()
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if _checked.get(self.path) != seen:
            _check(self.path, self.reader)
            if self.stored.rows:
                self._check_place(0, self.reader.get_batch(0))
            _checked[self.path] = seen
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
        with reading(self.path, _mend(self.path)), pa.OSFile(str(self.path), "rb") as file:
            reader = pa.ipc.open_file(file)
            blocks = [reader.get_batch(number) for number in numbers]
            _check_blocks(self.path, self.columns, self.stored, zip(numbers, blocks, strict=True))
        for number, block in zip(numbers, blocks, strict=True):
            self._check_place(number, block)
        return blocks

    def _check_place(self, number: int, block: pa.RecordBatch) -> None:
        """Check that a block has the positions that the file's name promises."""
        found, expected = block.column(POSITION)[0].as_py(), self.start + number * BLOCK_ROWS
        if found != expected:
            raise DamagedFile(
                f"{self.path} was renamed or replaced: it has the row of position {found} where "
                f"{expected} belongs; {_mend(self.path)}"
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
            f"{path} is a log of {what}; this code reads version {_FORMAT['version']}: "
            f"{_mend(path)}"
        )
    blocks = tuple(bytes.fromhex(digest) for digest in record["blocks"])
    return record["columns"], PartitionDigests(record["rows"], blocks)


def _check(path: Path, reader: pa.ipc.RecordBatchFileReader) -> None:
    with reading(path, _mend(path)):
        schema, stored = _stored(path, reader.schema)
        table = reader.read_all()
        found = _digests(schema, table)
    if len(table) == stored.rows and tuple(found) == stored.blocks:
        return
    if len(table) == stored.rows:
        pairs = zip(found, stored.blocks, strict=False)
        raise _damaged(path, next((n for n, (a, b) in enumerate(pairs) if a != b), 0), stored.rows)
    where = f"it has {len(table)} rows and states {stored.rows}"
    raise DamagedFile(f"{path} was changed after it was written: {where}; {_mend(path)}")


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
    begin = _first(path)
    first, last = begin + block * BLOCK_ROWS, begin + min((block + 1) * BLOCK_ROWS, rows) - 1
    return DamagedFile(
        f"{path} was changed after it was written: rows {first} to {last} do not have their "
        f"digest; {_mend(path)}"
    )


def _first(path: Path) -> int:
    """Return the position of a file's first row; live files are named by it."""
    return int(path.stem.partition("-")[2] or 0)


def _mend(path: Path) -> str:
    return _MEND_LIVE if "-" in path.stem else _MEND


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch (also when it is empty)."""
    combined = table.combine_chunks()
    batches = combined.to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.RecordBatch.from_arrays(
        [pa.array([], field.type) for field in table.schema], schema=table.schema
    )
