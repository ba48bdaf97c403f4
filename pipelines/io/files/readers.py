"""Reading: files become batches of raw rows, each row with its place and its bytes.

What is promised here:

* `read` gives every row of its files exactly once, in order: as part of a raw batch, or as a
  rejected record. Each has its partition (the file's place in the list), its position (the row's
  place in the file, from 0, counting rejected rows) and its origin (``"name:line"``).
* A file that cannot be read at all is an `InputError`; a bad row never is.

Rows of csv and JSON Lines files come as texts (`pipelines.io.files.csv_lines`,
`pipelines.io.files.json_lines`), those of Parquet files typed (`pipelines.io.files.parquet_rows`).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Rows as they were read.

    Attributes:
        batch: The rows that could be read, ``(rows,)``.
        partition: The file's place in the list of files.
        positions: int64, ``(rows,)``: each row's place in the file.
        origins: Gives the origins of some rows, by their indices.
        payloads: Gives the untouched bytes of some rows, by their indices: for csv and JSON Lines
            the line without its newline; for Parquet, which has no lines, the row as JSON.
        rejected: The rows between them that could not be read (`features.rows.rejected.SCHEMA`).
    """

    batch: pa.RecordBatch
    partition: int
    positions: Int64Array
    origins: Callable[[Int64Array], list[str]]
    payloads: Callable[[Int64Array], list[bytes]]
    rejected: pa.RecordBatch


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
    """Read files, one after the other.

    Args:
        files: The files (`pipelines.io.files.input_files.find_files`); the i-th is partition i.
        stream: The stream's name, for rejected records.
        format: ``csv``, ``jsonl`` or ``parquet``; None goes by each file's extension.
        nulls: Texts that mean null; None is the empty cell for csv and nothing for the others.
        columns: The columns that are wanted: others may be left out, and one that only some lines
            of a JSON Lines file have is null in the others. None for all.
        block_bytes: How much of a csv file is read at a time.
        batch_rows: How many rows of another file make a batch.

    Yields:
        Raw batches, each with at least one row, readable or rejected.

    Raises:
        InputError: A file cannot be read at all.
        ConfigurationError: A file's format is not known.
    """
    kinds = sorted(set(FORMATS.values()))
    if format is not None and format not in kinds:
        raise ConfigurationError(
            f"stream {stream!r}: format {format!r} is not known; {nearest(format, kinds)}"
        )
    for partition, (path, name) in enumerate(zip(files, short_names(files), strict=True)):
        source = _Source(path, name, stream, partition)
        match format or format_of(path):
            case "csv":
                yield from _read_csv(source, nulls, columns, block_bytes)
            case "jsonl":
                yield from _read_jsonl(source, nulls or (), columns, batch_rows)
            case "parquet":
                yield from _read_parquet(source, nulls or (), batch_rows)


@dataclass(frozen=True)
class _Source:
    path: Path
    name: str
    stream: str
    partition: int

    def raw(
        self,
        batch: pa.RecordBatch,
        first: int,
        readable: Int64Array,
        faults: Mapping[int, tuple[Reason, str]],
        lines: Int64Array,
        payload: Callable[[int], bytes],
    ) -> RawBatch:
        """Make a batch of the rows from position ``first`` on, some readable and some faulty."""
        wrong = sorted(faults)
        return RawBatch(
            batch,
            self.partition,
            first + readable,
            lambda rows: [f"{self.name}:{lines[row]}" for row in readable[rows].tolist()],
            lambda rows: [payload(row) for row in readable[rows].tolist()],
            rejected.batch(
                Stage.READ,
                stream=self.stream,
                partition=self.partition,
                positions=first + np.array(wrong, np.int64),
                reasons=[faults[row][0] for row in wrong],
                details=[faults[row][1] for row in wrong],
                origins=[f"{self.name}:{lines[row]}" for row in wrong],
                payloads=[payload(row) for row in wrong],
            ),
        )


def _read_csv(
    source: _Source, nulls: Sequence[str] | None, columns: Sequence[str] | None, block_bytes: int
) -> Iterator[RawBatch]:
    first = 0
    with opened(source.path) as file:
        for block in csv_lines.read_blocks(
            file,
            source.name,
            nulls=("",) if nulls is None else nulls,
            columns=columns,
            block_bytes=block_bytes,
        ):
            yield source.raw(
                block.batch, first, block.readable, block.faults, block.lines, block.payload
            )
            first += len(block.lines)


def _read_jsonl(
    source: _Source, nulls: Sequence[str], columns: Sequence[str] | None, batch_rows: int
) -> Iterator[RawBatch]:
    keys: Sequence[str] = ()
    if columns is not None:
        with opened(source.path) as file:
            keys = json_lines.keys_in(file, columns)
    first = 0
    with opened(source.path) as file:
        for lines in json_lines.read_lines(file, keys=keys, batch_rows=batch_rows):
            yield source.raw(
                nulled(lines.batch, nulls),
                first,
                lines.readable,
                lines.faults,
                lines.lines,
                lines.payloads.__getitem__,
            )
            first += len(lines.lines)


def _read_parquet(source: _Source, nulls: Sequence[str], batch_rows: int) -> Iterator[RawBatch]:
    first = 0
    with opened(source.path) as file:
        # Parquet is read from its end, and a file that is being decompressed cannot go back.
        seekable = io.BytesIO(file.read()) if is_compressed(source.path) else file
        for batch in parquet_rows.read_rows(seekable, source.name, batch_rows=batch_rows):
            rows = np.arange(batch.num_rows)
            payload = functools.partial(parquet_rows.as_json, batch)
            yield source.raw(nulled(batch, nulls), first, rows, {}, first + rows + 1, payload)
            first += batch.num_rows


def nulled(batch: pa.RecordBatch, nulls: Sequence[str]) -> pa.RecordBatch:
    """Return a batch with null where a column of texts holds one that means null."""
    if not nulls:
        return batch
    meaning_null = pa.array(nulls, pa.string())
    columns = [
        pc.if_else(pc.is_in(column, value_set=meaning_null), pa.scalar(None, column.type), column)
        if pa.types.is_string(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
