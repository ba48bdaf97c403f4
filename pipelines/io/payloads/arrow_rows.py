"""Arrow messages: each a stream in the IPC format, of any number of record batches.

The promises beside those of `decoding`:

* Values are typed, as those of a Parquet file. A dictionary becomes its values.
* The bytes are not trusted. What they declare is added up before anything is decoded
  (`ipc_sizes`), what dictionaries and views expand to is added up before they are expanded, and
  every array is validated whole. A message that is not valid, or too large, is one rejected record;
  it never ends the process, or fills its memory.
* A text that is not UTF-8 rejects its row, not its message.
* A payload of a row that JSON cannot write (a date after the year 9999) is a stream of that row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads import ipc_sizes
from tidemill.pipelines.io.payloads.decoding import (
    IGNORE_TOMBSTONES,
    REJECT_TOMBSTONES,
    Decoded,
    no_value,
    put_together,
)
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.payloads.pieces import Joining, Piece

MOST_BYTES: Final = 1 << 26
"""A message has at most so many bytes when it is decoded."""
MOST_VALUES: Final = 1 << 23
"""A message has at most so many values: as many int64 as `MOST_BYTES` hold."""

MOST_ROWS: Final = 1 << 20
"""A message has at most so many rows."""


class _BadStream(Exception):
    """A message that is not read: its arguments are the reason and the detail."""


@dataclass(frozen=True)
class ArrowDecoder:
    """Makes rows of messages that are Arrow IPC streams.

    Attributes:
        reader: Who reads, and which columns.
        metadata: The columns that come from beside the payload.
        nulls: Texts that mean null.
        tombstones: What becomes of a message without a value (`decoding.TOMBSTONES`).
        most_bytes: The most bytes of a message, decoded.
    """

    reader: Reader
    metadata: Metadata = field(default_factory=Metadata)
    nulls: Sequence[str] = ()
    tombstones: str = REJECT_TOMBSTONES
    most_bytes: int = MOST_BYTES

    def decode(self, messages: Messages, first_position: int) -> Iterator[Decoded]:
        """Make rows of messages; see `decoding.Decoder`."""
        joining = Joining(self.reader, self.metadata, tuple(self.nulls))
        for rows in joining.joined(messages, self._pieces(messages)):
            yield put_together(self.reader.stream, messages, rows, self.metadata, first_position)
            first_position += len(rows.messages)

    def _pieces(self, messages: Messages) -> Iterator[Piece]:
        for message, value in enumerate(messages.values):
            if value is None:
                if self.tombstones != IGNORE_TOMBSTONES:
                    yield Piece.refused(message, no_value(messages, message))
                continue
            try:
                batch = _read(value, most_bytes=self.most_bytes)
                self._check_names(batch.schema)
            except _BadStream as refused:
                yield Piece.refused(message, (refused.args[0], refused.args[1]))
            else:
                yield Piece.of(message, batch)

    def _check_names(self, schema: pa.Schema) -> None:
        names = schema.names
        read = names if self.reader.columns is None else self.reader.columns
        for name in (*read, *self.metadata.columns):
            if names.count(name) > 1:
                raise _BadStream(
                    Reason.DUPLICATE_KEY,
                    f"found {names.count(name)} columns {name!r} in the message, expected one",
                )


def _read(value: bytes, *, most_bytes: int = MOST_BYTES) -> pa.RecordBatch:
    """Return all rows of a stream, validated, without dictionaries.

    Raises:
        _BadStream: It is not valid, or too large.
    """
    try:
        fault = ipc_sizes.check(
            value, most_bytes=most_bytes, most_values=MOST_VALUES, most_rows=MOST_ROWS
        )
        if fault is not None:
            raise _BadStream(*fault)
        options = pa.ipc.IpcReadOptions(
            ensure_alignment=pa.ipc.Alignment.DataTypeSpecific, use_threads=False
        )
        with pa.ipc.open_stream(pa.py_buffer(value), options=options) as reader:
            schema, batches = reader.schema, list(reader)
        names = list(schema.names)
        left = most_bytes
        columns: list[list[pa.Array]] = [[] for _ in names]
        for batch in batches:
            for place, name in enumerate(names):
                column, used = _plain(batch.column(place), name, left)
                columns[place].append(column)
                left -= used
        if not names:
            rows = sum(batch.num_rows for batch in batches)
            return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
        joined = [
            (pa.concat_arrays(parts) if len(parts) > 1 else parts[0])
            if parts
            else pa.array([], _plain_type(schema.field(place).type))
            for place, parts in enumerate(columns)
        ]
        return pa.RecordBatch.from_arrays(joined, names=names)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        detail = f"{' '.join(str(error).split())[:300]}; expected a valid Arrow IPC stream"
        raise _BadStream(Reason.BROKEN_ARROW, detail) from None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def _plain(array: pa.Array, name: str, left: int) -> tuple[pa.Array, int]:
    """Return a column without extension types and dictionaries, and the bytes that it grew by."""
    if isinstance(array.type, pa.BaseExtensionType):
        return _plain(array.storage, name, left)
    if (unusual := _unusual(array.type)) is not None:
        raise ValueError(f"column {name!r}: found the type {unusual}, which is not read")
    if not pa.types.is_dictionary(array.type):
        _validate(array)
        is_view = pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type)
        return _copied(array, name, left) if is_view else (array, 0)
    values = array.dictionary
    _check_texts(values.type)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    kind = values.type
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        raise ValueError(f"column {name!r}: found a dictionary of {kind}, which is not read")
    _validate(values)
    indices = array.indices
    _validate(indices)
    given = pc.min_max(indices).as_py()
    if given["min"] is not None and not 0 <= given["min"] <= given["max"] < len(values):
        raise ValueError(f"column {name!r}: found an index outside a dictionary of {len(values)}")
    used = _within(_expanded_bytes(values, indices), name, left)
    return values.take(indices), used


def _within(used: int, name: str, left: int) -> int:
    if used > left:
        detail = (
            f"column {name!r}: found {used:,} bytes without its dictionary or views, expected at "
            f"most {left:,}; divide the rows among messages"
        )
        raise _BadStream(Reason.TOO_LARGE, detail)
    return used


def _unusual(kind: pa.DataType) -> str | None:
    """Return a type, or one inside it, that Parquet does not give and that shares its values."""
    _check_texts(kind)
    if pa.types.is_run_end_encoded(kind) or pa.types.is_union(kind):
        return str(kind)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return str(kind)
    for place in range(kind.num_fields):
        inner = kind.field(place).type
        nested = pa.types.is_dictionary(inner) or isinstance(inner, pa.BaseExtensionType)
        if nested or pa.types.is_string_view(inner) or pa.types.is_binary_view(inner):
            return f"{inner} inside {kind}"
        if (unusual := _unusual(inner)) is not None:
            return unusual
    return None


def _check_texts(kind: pa.DataType) -> None:
    """Raise UnicodeDecodeError if a text that belongs to a type is not UTF-8."""
    if pa.types.is_timestamp(kind):
        _ = kind.tz
    for place in range(kind.num_fields):
        _ = kind.field(place).name


_BYTES_OF: Final = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def _validate(array: pa.Array) -> None:
    """Check all of an array except that texts are UTF-8, which rejects a row alone."""
    kind = _BYTES_OF.get(array.type)
    (array if kind is None else _as(array, kind)).validate(full=True)


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the same buffers under another type; Arrow's casts would read what they hold."""
    buffers = array.buffers()
    return pa.Array.from_buffers(kind, len(array), buffers, array.null_count, array.offset)


def _copied(array: pa.Array, name: str, left: int) -> tuple[pa.Array, int]:
    """Return a column of views as texts or bytes of their own, and how many bytes these are."""
    views = np.frombuffer(array.buffers()[1], "<i4", 4 * len(array), 16 * array.offset)
    # The first number of a view is its length, and several views may show the same bytes.
    used = _within(sum(views[::4].clip(0).tolist()), name, left)
    is_text = pa.types.is_string_view(array.type)
    copied = (_as(array, pa.binary_view()) if is_text else array).cast(pa.binary())
    return (_as(copied, pa.string()) if is_text else copied), used


def _expanded_bytes(values: pa.Array, indices: pa.Array) -> int:
    kind = values.type
    if kind in _BYTES_OF or kind in _BYTES_OF.values():
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            raise ValueError(f"found a dictionary of {kind}, which is not read")
        used = pc.sum(pc.binary_length(values).take(indices)).as_py() or 0
        return int(used) + 8 * len(indices)
    if pa.types.is_null(kind):
        return 0
    width: int = kind.bit_width
    return len(indices) * (width + 7) // 8
