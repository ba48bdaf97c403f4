"""Reading files into batches of raw rows, each row with its position and its bytes.

The promises:

* `read_for` gives each reader every row of the files exactly once, in order, in a raw batch or as
  a rejected record, as if it read alone; the files are read once for all of them. A row has a
  partition (the file's index in the list), a position (the row's index in the file, from 0,
  rejected rows included) and an origin (``"name:line"``).
* A file that cannot be read raises `InputError`; a bad row never does.

Rows of csv and JSON Lines files are texts (`csv_lines`, `json_lines`); rows of Parquet files are
typed (`parquet_rows`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.errors import ConfigurationError, nearest
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.files import csv_lines, json_lines, parquet_rows
from tidemill.pipelines.io.files.input_files import (
    FORMATS,
    format_of,
    is_compressed,
    opened,
    short_names,
)


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Rows as read from a file.

    Attributes:
        batch: The readable rows, ``(rows,)``.
        partition: The file's index in the list of files.
        positions: int64, ``(rows,)``: each row's index in the file.
        origins: Returns the origins of the rows with some indices.
        payloads: Returns the unchanged bytes of the rows with some indices: for csv and JSON Lines
            the line without its newline, for Parquet the row as JSON.
        rejected: The rows that could not be read (`features.rows.rejected.SCHEMA`).
    """

    batch: pa.RecordBatch
    partition: int
    positions: Int64Array
    origins: Callable[[Int64Array], list[str]]
    payloads: Callable[[Int64Array], list[bytes]]
    rejected: pa.RecordBatch


@dataclass(frozen=True)
class Reader:
    """Who reads files.

    Attributes:
        stream: The stream's name, for rejected records.
        columns: The columns to read; other columns may be left out, or hold what validation would
            refuse. A column that only some lines of a JSON Lines file have is null in the others.
            None for all columns.
    """

    stream: str
    columns: Sequence[str] | None = None


def read(
    files: Sequence[Path],
    *,
    stream: str,
    format: str | None = None,
    nulls: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    block_bytes: int = csv_lines.BLOCK_BYTES,
    batch_rows: int = json_lines.BATCH_ROWS,
) -> Iterator[RawBatch]:
    """Read files in order, for one reader: see `Reader` and `read_for`."""
    for (raw,) in read_for(
        [Reader(stream, columns)],
        files,
        format=format,
        nulls=nulls,
        block_bytes=block_bytes,
        batch_rows=batch_rows,
    ):
        yield raw


def read_for(
    readers: Sequence[Reader],
    files: Sequence[Path],
    *,
    format: str | None = None,
    nulls: Sequence[str] | None = None,
    block_bytes: int = csv_lines.BLOCK_BYTES,
    batch_rows: int = json_lines.BATCH_ROWS,
) -> Iterator[tuple[RawBatch, ...]]:
    """Read files in order, once for all readers; each gets what it would get alone.

    Args:
        readers: Who reads, at least one.
        files: The files (`pipelines.io.files.input_files.find_files`); the i-th is partition i.
        format: ``csv``, ``jsonl`` or ``parquet``; None to tell it from each file's extension.
        nulls: Texts that mean null; None means the empty cell for csv, and no text for the others.
        block_bytes: The size of a csv file's block.
        batch_rows: The most rows of a batch of another file.

    Yields:
        For each reader the same rows, at least one, as a raw batch or rejected.

    Raises:
        InputError: A whole file cannot be read.
        ConfigurationError: A file's format is not known.
    """
    kinds = sorted(set(FORMATS.values()))
    if format is not None and format not in kinds:
        raise ConfigurationError(
            f"stream {readers[0].stream!r}: format {format!r} is not known; "
            f"{nearest(format, kinds)}"
        )
    for partition, (path, name) in enumerate(zip(files, short_names(files), strict=True)):
        file = _File(path, name, partition)
        match format or format_of(path):
            case "csv":
                yield from _read_csv(file, readers, nulls, block_bytes)
            case "jsonl":
                yield from _read_jsonl(file, readers, nulls or (), batch_rows)
            case "parquet":
                yield from _read_parquet(file, readers, nulls or (), batch_rows)


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    partition: int

    def raw(
        self,
        reader: Reader,
        batch: pa.RecordBatch,
        first: int,
        readable: Int64Array,
        faults: Mapping[int, tuple[Reason, str]],
        lines: Int64Array,
        payload: Callable[[int], bytes],
    ) -> RawBatch:
        """Make a batch of the readable and the faulty rows from position ``first`` on."""
        return RawBatch(
            batch,
            self.partition,
            first + readable,
            lambda rows: [f"{self.name}:{lines[row]}" for row in readable[rows].tolist()],
            lambda rows: [payload(row) for row in readable[rows].tolist()],
            self._rejected(reader, first, faults, lines, payload),
        )

    def _rejected(
        self,
        reader: Reader,
        first: int,
        faults: Mapping[int, tuple[Reason, str]],
        lines: Int64Array,
        payload: Callable[[int], bytes],
    ) -> pa.RecordBatch:
        wrong = sorted(faults)
        if not wrong:
            return rejected.none()
        return rejected.batch(
            Stage.READ,
            stream=reader.stream,
            partition=self.partition,
            positions=first + np.array(wrong, np.int64),
            reasons=[faults[row][0] for row in wrong],
            details=[faults[row][1] for row in wrong],
            origins=[f"{self.name}:{lines[row]}" for row in wrong],
            payloads=[payload(row) for row in wrong],
        )


def _read_csv(
    source: _File, readers: Sequence[Reader], nulls: Sequence[str] | None, block_bytes: int
) -> Iterator[tuple[RawBatch, ...]]:
    first = 0
    with opened(source.path) as file:
        for block in csv_lines.read_blocks(
            file,
            source.name,
            nulls=("",) if nulls is None else nulls,
            columns=_all_columns(readers),
            block_bytes=block_bytes,
        ):
            yield tuple(
                source.raw(
                    reader,
                    _seen(block.batch, reader.columns),
                    first,
                    block.readable,
                    block.faults,
                    block.lines,
                    block.payload,
                )
                for reader in readers
            )
            first += len(block.lines)


def _all_columns(readers: Sequence[Reader]) -> Sequence[str] | None:
    found: dict[str, None] = {}
    for reader in readers:
        if reader.columns is None:
            return None
        found |= dict.fromkeys(reader.columns)
    return list(found)


def _seen(batch: pa.RecordBatch, columns: Sequence[str] | None) -> pa.RecordBatch:
    """Return a reader's columns; all if one of its own is missing (`csv_lines.read_blocks`)."""
    names = batch.schema.names
    if columns is None or not set(columns) <= set(names):
        return batch
    return batch.select([name for name in names if name in columns])


_KEYS_OF_HINTS: Final = 100


def _read_jsonl(
    source: _File, readers: Sequence[Reader], nulls: Sequence[str], batch_rows: int
) -> Iterator[tuple[RawBatch, ...]]:
    asked = [_keys(source.path, reader.columns) for reader in readers]
    first = 0
    with opened(source.path) as file:
        for found in json_lines.read_lines(file, asked, batch_rows=batch_rows):
            yield tuple(
                source.raw(
                    reader,
                    nulled(lines.batch, nulls),
                    first,
                    lines.readable,
                    lines.faults,
                    lines.lines,
                    lines.payloads.__getitem__,
                )
                for reader, lines in zip(readers, found, strict=True)
            )
            first += len(found[0].lines)


def _keys(path: Path, columns: Sequence[str] | None) -> json_lines.Keys:
    if columns is None:
        return json_lines.Keys()
    with opened(path) as file:
        present = json_lines.keys_in(file, columns)
    if len(present) < len(columns):
        # The error about the missing column names the nearest of those that are there.
        with opened(path) as file:
            columns = [*columns, *json_lines.first_keys(file, _KEYS_OF_HINTS)]
    return json_lines.Keys(columns, present)


def _read_parquet(
    source: _File, readers: Sequence[Reader], nulls: Sequence[str], batch_rows: int
) -> Iterator[tuple[RawBatch, ...]]:
    first = 0
    with opened(source.path) as file:
        # Reading Parquet starts at the end of the file, and a decompressed stream cannot seek.
        seekable = io.BytesIO(file.read()) if is_compressed(source.path) else file
        for found in parquet_rows.read_rows(seekable, source.name, batch_rows=batch_rows):
            whole = nulled(found.batch, nulls)
            lines = first + np.arange(whole.num_rows) + 1

            def raw(
                reader: Reader,
                found: parquet_rows.Rows = found,
                whole: pa.RecordBatch = whole,
                lines: Int64Array = lines,
                first: int = first,
            ) -> RawBatch:
                batch, rows = whole, np.arange(whole.num_rows)
                if faults := found.faults(reader.columns):
                    rows = np.delete(rows, sorted(faults))
                    batch = batch.take(pa.array(rows))
                return source.raw(reader, batch, first, rows, faults, lines, found.payload)

            yield tuple(raw(reader) for reader in readers)
            first += whole.num_rows


def nulled(batch: pa.RecordBatch, nulls: Sequence[str]) -> pa.RecordBatch:
    """Replace the texts that mean null by null in the string columns of a batch."""
    if not nulls or not batch.num_columns:
        return batch
    meaning_null = pa.array(nulls, pa.string())
    columns = [
        pc.if_else(pc.is_in(column, value_set=meaning_null), pa.scalar(None, column.type), column)
        if pa.types.is_string(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
