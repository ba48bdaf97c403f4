"""Reading: files become batches of rows that are judged, each with its place and its bytes.

What is promised here:

* `read` gives every row of its files exactly once, in order: as part of a raw batch, or as a
  rejected record. Each has its partition (the file's place in the list), its position (the row's
  place in the file, from 0, counting rejected rows) and its origin (``"name:line"``).
* `read_stream` then lets the source's own transform work on whole raw batches, validates what
  comes of it and, where the source is a log with a time of receipt, judges in order of arrival
  what came too late or lies ahead. ``read = kept + dropped + rejected``, always.
* A file that cannot be read at all is an `InputError`; a bad row never is.

Rows of csv and JSON Lines files come as texts (`pipelines.io.files.csv_lines`,
`pipelines.io.files.json_lines`), those of Parquet files typed (`pipelines.io.files.parquet_rows`).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import ConfigurationError, InputError, nearest
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.features.rows.validation import validate
from tidemill.pipelines.io.acceptance import Gate
from tidemill.pipelines.io.files import csv_lines, json_lines, parquet_rows
from tidemill.pipelines.io.files.input_files import (
    FORMATS,
    format_of,
    is_compressed,
    opened,
    short_names,
)

REJECT_COLUMN: Final = "__reject__"
"""A transform's string column: why it refuses a row, null where it does not."""
DROP_COLUMN: Final = "__drop__"
"""A transform's bool column: true where a row is no event of this stream."""

Transform = Callable[[pa.RecordBatch], pa.RecordBatch]


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


@dataclass(frozen=True)
class Counts:
    """What became of rows: ``read = kept + dropped + rejected``."""

    read: int = 0
    kept: int = 0
    dropped: int = 0
    rejected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.read + other.read,
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.rejected + other.rejected,
        )


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """Rows of a stream, judged.

    Attributes:
        batch: The accepted rows, ``(rows,)``.
        partition: The partition (file) they are from.
        positions: int64, ``(rows,)``: their places in it, ascending.
        rejected: The rows among them that were refused (`features.rows.rejected.SCHEMA`), by
            position.
        counts: What became of the rows.
    """

    batch: pa.RecordBatch
    partition: int
    positions: Int64Array
    rejected: pa.RecordBatch
    counts: Counts


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


def read_stream(
    definition: EventStream | Request,
    files: Sequence[Path],
    *,
    required: Collection[str],
    format: str | None = None,
    nulls: Sequence[str] | None = None,
    zone: str | None = None,
    transform: Transform | None = None,
    received: str | None = None,
    block_bytes: int = csv_lines.BLOCK_BYTES,
    batch_rows: int = json_lines.BATCH_ROWS,
) -> Iterator[StreamBatch]:
    """Read, transform, validate and accept the files of an event stream or a request.

    Args:
        definition: What the rows must become.
        files: Its files (`pipelines.io.files.input_files.find_files`); the i-th is partition i.
        required: The columns in which no row may be null.
        format: As for `read`.
        nulls: As for `read`.
        zone: The IANA zone of times without an offset; None where the source declares none.
        transform: Turns a raw batch into one with the same rows, in order, and the declared
            columns. It may add a string column ``__reject__``: why it refuses a row, null where it
            does not; and a bool column ``__drop__``: true where a row is no event of this stream.
            A row that is both is dropped.
        received: The timestamp column that says when the log received a row: the rows of each
            file stand in order of arrival, and those that are too late or ahead are rejected.
            None for history read as a table: it has no order of arrival, so nothing is late.
        block_bytes: As for `read`.
        batch_rows: As for `read`.

    Yields:
        The rows that are accepted, those that were refused, and the counts, batch by batch.

    Raises:
        InputError: A file cannot be read at all, or the transform failed.
        ConfigurationError: A file's format is not known.
    """
    raw_batches = read(
        files,
        stream=definition.name,
        format=format,
        nulls=nulls,
        # What a transform reads is its own matter.
        columns=list(definition.schema) if transform is None else None,
        block_bytes=block_bytes,
        batch_rows=batch_rows,
    )
    gate = None if received is None else Gate(definition, received)
    for raw in raw_batches:
        yield judge(definition, raw, required, zone, transform, gate)


def judge(
    definition: EventStream | Request,
    raw: RawBatch,
    required: Collection[str],
    zone: str | None,
    transform: Transform | None,
    gate: Gate | None = None,
) -> StreamBatch:
    """Transform, validate and accept rows as they were read.

    Args:
        definition: As for `read_stream`.
        raw: The rows.
        required: As for `read_stream`.
        zone: As for `read_stream`.
        transform: As for `read_stream`.
        gate: Judges when rows came; None where nothing is late.

    Raises:
        InputError: The transform failed.
    """
    batch, rows, dropped = raw.batch, np.arange(raw.batch.num_rows), 0
    refused = [raw.rejected]
    if transform is not None:
        batch = _transformed(transform, raw)
        drops = _drops(batch, transform)
        why = _rejections(batch, transform)
        rejects = np.array([text is not None for text in why], np.bool_) & ~drops
        wrong = np.flatnonzero(rejects)
        details = [why[row] or "" for row in wrong.tolist()]
        reasons = [Reason.TRANSFORM] * len(wrong)
        refused.append(_refused(Stage.TRANSFORM, definition, raw, wrong, reasons, details))
        rows = np.flatnonzero(~drops & ~rejects)
        dropped = int(drops.sum())
        if len(rows) < batch.num_rows:
            batch = batch.take(pa.array(rows))
    valid = validate(definition, batch, required=required, zone=zone)
    wrong = rows[valid.rejected_rows]
    refused.append(_refused(Stage.VALIDATE, definition, raw, wrong, valid.reasons, valid.details))
    accepted, kept = valid.batch, rows[valid.kept]
    if gate is not None and (refusals := gate.refuse(raw.partition, accepted)):
        wrong = np.array(sorted(refusals), np.int64)
        reasons = [refusals[row][0] for row in wrong.tolist()]
        details = [refusals[row][1] for row in wrong.tolist()]
        refused.append(_refused(Stage.ACCEPT, definition, raw, kept[wrong], reasons, details))
        accepted = accepted.take(pa.array(np.delete(np.arange(len(kept)), wrong)))
        kept = np.delete(kept, wrong)
    rejections = rejected.concat(refused)
    if sum(part.num_rows > 0 for part in refused) > 1:
        rejections = rejections.take(pc.sort_indices(rejections["position"]))
    return StreamBatch(
        accepted,
        raw.partition,
        raw.positions[kept],
        rejections,
        Counts(
            read=raw.batch.num_rows + raw.rejected.num_rows,
            kept=len(kept),
            dropped=dropped,
            rejected=rejections.num_rows,
        ),
    )


def _refused(
    stage: Stage,
    definition: EventStream | Request,
    raw: RawBatch,
    rows: Int64Array,
    reasons: Sequence[Reason],
    details: Sequence[str],
) -> pa.RecordBatch:
    if len(rows) == 0:
        return rejected.none()
    return rejected.batch(
        stage,
        stream=definition.name,
        partition=raw.partition,
        positions=raw.positions[rows],
        reasons=reasons,
        details=details,
        origins=raw.origins(rows),
        payloads=raw.payloads(rows),
    )


def _transformed(transform: Transform, raw: RawBatch) -> pa.RecordBatch:
    name = _name(transform)
    given = raw.batch.num_rows
    where = f"transform {name} on {given} rows of partition {raw.partition}"
    try:
        batch = transform(raw.batch)
    except Exception as error:
        raise InputError(
            f"{where} (columns {', '.join(raw.batch.schema.names)}): "
            f"{type(error).__name__}: {error}; rows that cannot be used get a text in "
            f"{REJECT_COLUMN!r}"
        ) from error
    if not isinstance(batch, pa.RecordBatch):
        raise InputError(
            f"{where}: returned {type(batch).__name__}, expected a pyarrow.RecordBatch"
        )
    if batch.num_rows != given:
        raise InputError(
            f"{where}: returned {batch.num_rows} rows; it must return every row, and mark those "
            f"that are no events in {DROP_COLUMN!r} and those that are wrong in {REJECT_COLUMN!r}"
        )
    return batch


def _drops(batch: pa.RecordBatch, transform: Transform) -> BoolArray:
    column = _marks(batch, DROP_COLUMN, pa.bool_(), transform)
    drops: BoolArray = column.fill_null(False).to_numpy(zero_copy_only=False)
    return drops


def _rejections(batch: pa.RecordBatch, transform: Transform) -> list[str | None]:
    texts: list[str | None] = _marks(batch, REJECT_COLUMN, pa.string(), transform).to_pylist()
    return texts


def _marks(batch: pa.RecordBatch, column: str, kind: pa.DataType, transform: Transform) -> pa.Array:
    if column not in batch.schema.names:
        return pa.nulls(batch.num_rows, kind)
    array = batch[column]
    if pa.types.is_null(array.type):
        return array.cast(kind)
    if array.type != kind:
        raise InputError(
            f"transform {_name(transform)}: column {column!r} is {array.type}, expected {kind}"
        )
    return array


def _name(transform: Transform) -> str:
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    return f"{transform.__module__}:{name}"
