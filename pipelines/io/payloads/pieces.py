"""Typed rows of messages, message by message, joined into batches of one schema."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.parquet_rows import as_json
from tidemill.pipelines.io.files.readers import Reader, nulled
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import IGNORE_TOMBSTONES, Rows, no_value
from tidemill.pipelines.io.payloads.metadata import Fault, Metadata

BATCH_BYTES: Final = 1 << 26
"""Batches are joined up to so many bytes."""
BATCH_ROWS: Final = 1 << 18
"""Batches are joined up to so many rows."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The rows of one or more successive messages.

    Attributes:
        messages: int64, ``(rows,)``: the index of each row's message, ascending.
        batch: All columns of the rows; None for rejected messages, one row each.
        faults: For rejected messages why, ``(rows,)``.
    """

    messages: Int64Array
    batch: pa.RecordBatch | None
    faults: list[Fault] = field(default_factory=list)

    @staticmethod
    def of(message: int, batch: pa.RecordBatch) -> Piece:
        """Return the rows of one message."""
        return Piece(np.full(batch.num_rows, message, np.int64), batch)

    @staticmethod
    def refused(message: int, fault: Fault) -> Piece:
        """Return a message that cannot be read."""
        return Piece(np.array([message], np.int64), None, [fault])


_Record = TypeVar("_Record", contravariant=True)


class Schema(Protocol[_Record]):
    """What makes columns of records that were decoded one by one."""

    def batch(self, records: Sequence[_Record]) -> pa.RecordBatch | Fault:
        """Return records as columns, or why one of them cannot be."""


class Run(Generic[_Record]):
    """Records of successive messages of one schema, one record each.

    Args:
        of: Makes the columns.
    """

    def __init__(self, of: Schema[_Record]) -> None:
        self.of = of
        self._messages: list[int] = []
        self._records: list[_Record] = []

    def add(self, message: int, record: _Record) -> None:
        """Add the record of a message."""
        self._messages.append(message)
        self._records.append(record)

    def ended(self) -> Iterator[Piece]:
        """Yield the records so far, and forget them."""
        messages, records = self._messages, self._records
        self._messages, self._records = [], []
        if messages:
            yield from self._pieces(messages, records)

    def _pieces(self, messages: list[int], records: list[_Record]) -> Iterator[Piece]:
        found = self.of.batch(records)
        if not isinstance(found, tuple):
            yield Piece(np.array(messages, np.int64), found)
        elif len(records) == 1:
            yield Piece.refused(messages[0], found)
        else:
            half = len(records) // 2
            yield from self._pieces(messages[:half], records[:half])
            yield from self._pieces(messages[half:], records[half:])


def read_records(
    messages: Messages,
    tombstones: str,
    read: Callable[[bytes], tuple[Schema[Any], Any] | Fault],
) -> Iterator[Piece]:
    """Read messages of one record each; successive ones of one schema come together.

    Args:
        messages: The messages.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).
        read: Returns the schema of a message and its record, or why it cannot be read.
    """
    run: Run[Any] | None = None
    for message, value in enumerate(messages.values):
        if value is None:
            if tombstones == IGNORE_TOMBSTONES:
                continue
            found: tuple[Any, Any] = no_value(messages, message)
        else:
            found = read(value)
        if isinstance(found[0], Reason):
            yield from run.ended() if run else ()
            yield Piece.refused(message, found)
            continue
        schema, record = found
        if run is None or run.of is not schema:
            yield from run.ended() if run else ()
            run = Run(schema)
        run.add(message, record)
    yield from run.ended() if run else ()


@dataclass(frozen=True, eq=False)
class Joining:
    """What joining pieces needs to know.

    Attributes:
        reader: Who reads, and which columns.
        metadata: The columns that come from beside the payload.
        nulls: Texts that mean null.
        payload: Returns the payload of a row of a message with several, from a batch; None writes
            the row as JSON.
    """

    reader: Reader
    metadata: Metadata
    nulls: tuple[str, ...]
    payload: Callable[[pa.RecordBatch, int], bytes] | None = None

    def joined(self, messages: Messages, pieces: Iterable[Piece]) -> Iterator[Rows]:
        """Join successive pieces that have the same columns, and the rejected messages among them.

        Yields:
            Rows, at least one.
        """
        run: list[Piece] = []
        schema: pa.Schema | None = None
        size = rows = 0
        for piece in pieces:
            if not len(piece.messages):
                continue
            found = None if piece.batch is None else piece.batch.schema
            grown = 0 if piece.batch is None else piece.batch.nbytes
            other = schema is not None and found is not None and not found.equals(schema)
            more = len(piece.messages)
            if run and (other or size + grown > BATCH_BYTES or rows + more > BATCH_ROWS):
                yield self._rows(messages, run)
                run, schema, size, rows = [], None, 0, 0
            run.append(piece)
            schema = schema if found is None else found
            size, rows = size + grown, rows + more
        if run:
            yield self._rows(messages, run)

    def _rows(self, messages: Messages, run: list[Piece]) -> Rows:
        of = np.concatenate([piece.messages for piece in run])
        firsts = np.searchsorted(of, of, "left")
        faults: dict[int, Fault] = {}
        row = 0
        for piece in run:
            faults |= dict(enumerate(piece.faults, start=row))
            row += len(piece.messages)
        batches = [piece.batch for piece in run if piece.batch is not None]
        whole = pa.concat_batches(batches) if batches else _no_columns()
        places = np.full(len(of), -1)
        readable = np.delete(np.arange(len(of)), sorted(faults))
        places[readable] = np.arange(len(readable))
        sizes = np.bincount(of, minlength=len(messages))

        def payload(row: int) -> bytes:
            message = int(of[row])
            if places[row] < 0 or sizes[message] == 1:
                return messages.values[message] or b""
            return (self.payload or row_as_json)(whole, int(places[row]))

        batch = whole
        refused = sorted(self.metadata.refused & set(whole.schema.names))
        if refused:
            conflict = self.metadata.conflict(refused[0])
            faults |= dict.fromkeys(readable.tolist(), conflict)
            batch = whole.slice(0, 0)
        return Rows(
            nulled(self._seen(batch), self.nulls),
            faults,
            of,
            np.arange(len(of)) - firsts,
            sizes,
            payload,
        )

    def _seen(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns that are read; all if one is missing, for the error that says so."""
        names = [name for name in batch.schema.names if name not in self.metadata.columns]
        if self.reader.columns is not None:
            asked = set(self.reader.columns) - self.metadata.columns.keys()
            if asked <= set(names):
                names = [name for name in names if name in asked]
        if names == batch.schema.names:
            return batch
        if not names:
            empty = pa.array([{}] * batch.num_rows, pa.struct([]))
            return pa.RecordBatch.from_struct_array(empty)
        places = [place for place, name in enumerate(batch.schema.names) if name in names]
        return batch.select(places)


def _no_columns() -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array([], pa.struct([])))


def row_as_json(batch: pa.RecordBatch, row: int) -> bytes:
    """Return a row as JSON; an Arrow IPC stream of it if it has a value that Python has not."""
    try:
        return as_json(batch, row)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        # For example a date after the year 9999, or a time in a zone that there is not.
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch.slice(row, 1))
        return sink.getvalue()
