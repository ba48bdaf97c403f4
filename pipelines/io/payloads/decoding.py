"""What a decoder makes of messages: raw rows with their places, and how these are put together.

The promises:

* Every row of every message comes once, in order, in a raw batch or as a rejected record; so does
  every message that cannot be read, as one rejected record with its untouched bytes. A message
  never raises an error.
* Rows of a partition have successive positions; rejected ones count. A row's origin is
  ``topic/partition@offset``, and ``topic/partition@offset:row`` (from 0) where its message has
  several.
* A row's payload is the message's value where the message is one row, else the row as JSON.
* What becomes of a row depends on its message alone, never on those beside it: however messages
  are divided into batches, the rows and rejections are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.files.readers import RawBatch
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.metadata import Fault, Metadata

REJECT_TOMBSTONES: Final = "reject"
IGNORE_TOMBSTONES: Final = "ignore"
TOMBSTONES: Final = (REJECT_TOMBSTONES, IGNORE_TOMBSTONES)
"""What becomes of a message without a value: a rejected record, or nothing at all."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Successive rows of a partition, with the messages that they came in.

    Attributes:
        raw: The rows, as the readers of files give them.
        first_position: The position of the first row; row i of all has this position plus i.
        offsets: int64, ``(all rows,)``: the offset of each row's message, rejected rows included.
        numbers: int64, ``(all rows,)``: each row's index in its message.
    """

    raw: RawBatch
    first_position: int
    offsets: Int64Array
    numbers: Int64Array

    def __len__(self) -> int:
        """Return the number of all rows, rejected ones included."""
        return len(self.offsets)


class Decoder(Protocol):
    """Makes rows of messages; it may be pickled, and has no state that changes an outcome."""

    def decode(self, messages: Messages, first_position: int) -> Iterator[Decoded]:
        """Make rows of messages.

        Args:
            messages: Successive messages of a partition.
            first_position: The position of the first row.

        Yields:
            The rows, in order: a part for each run of messages with one schema, and more where they
            would be too large together. A part has at least one row; messages may have none.

        Raises:
            RegistryUnavailable: The registry cannot say now what the messages' schemas are.
        """


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of messages, before the metadata is added.

    Attributes:
        batch: The readable rows, ``(readable rows,)``.
        faults: The other rows: row to reason and detail.
        messages: int64, ``(all rows,)``: the index of each row's message, ascending.
        numbers: int64, ``(all rows,)``: each row's index in its message.
        sizes: int64, ``(messages,)``: how many rows each message has, also those beyond these.
        payload: Returns a row's payload.
    """

    batch: pa.RecordBatch
    faults: Mapping[int, Fault]
    messages: Int64Array
    numbers: Int64Array
    sizes: Int64Array
    payload: Callable[[int], bytes]


def put_together(
    stream: str, messages: Messages, rows: Rows, metadata: Metadata, first_position: int
) -> Decoded:
    """Add the metadata to rows, and give every row its position and its origin."""
    count = len(rows.messages)
    batch, faults = rows.batch, dict(rows.faults)
    readable = np.delete(np.arange(count), sorted(faults)) if faults else np.arange(count)
    columns, unusable = metadata.read(messages)
    if metadata.columns:
        batch = _with_columns(batch, columns, pa.array(rows.messages[readable]))
    if unusable:
        wrong = np.isin(rows.messages[readable], sorted(unusable))
        for row in readable[wrong].tolist():
            faults[row] = unusable[int(rows.messages[row])]
        batch, readable = batch.filter(pa.array(~wrong)), readable[~wrong]
    place = f"{messages.topic}/{messages.partition}@"

    def origin(row: int) -> str:
        message = rows.messages[row]
        suffix = f":{rows.numbers[row]}" if rows.sizes[message] > 1 else ""
        return f"{place}{messages.offsets[message]}{suffix}"

    refused = rejected.none()
    if wrong_rows := sorted(faults):
        refused = rejected.batch(
            Stage.READ,
            stream=stream,
            partition=messages.partition,
            positions=first_position + np.array(wrong_rows, np.int64),
            reasons=[faults[row][0] for row in wrong_rows],
            details=[faults[row][1] for row in wrong_rows],
            origins=[origin(row) for row in wrong_rows],
            payloads=[rows.payload(row) for row in wrong_rows],
        )
    raw = RawBatch(
        batch,
        messages.partition,
        first_position + readable,
        lambda some: [origin(row) for row in readable[some].tolist()],
        lambda some: [rows.payload(row) for row in readable[some].tolist()],
        refused,
    )
    return Decoded(raw, first_position, messages.offsets[rows.messages], rows.numbers)


def _with_columns(
    batch: pa.RecordBatch, columns: Mapping[str, pa.Array], messages: pa.Array
) -> pa.RecordBatch:
    names = [name for name in batch.schema.names if name not in columns]
    arrays = [batch.column(name) for name in names]
    arrays += [column.take(messages) for column in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=[*names, *columns])


def no_value(messages: Messages, message: int) -> Fault:
    """Say why a message without a value is rejected."""
    key = messages.keys[message]
    of = "" if key is None else f" of key {key[:80]!r}"
    detail = (
        f"found a message{of} without a value (a tombstone), expected a row; where they may come, "
        "declare for the source that tombstones are ignored"
    )
    return Reason.NO_VALUE, detail
