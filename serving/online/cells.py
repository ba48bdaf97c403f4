"""The cells of a row: all its values as one string of bytes.

8 bytes little-endian for each column in order, then a bitmap of the nulls, column ``i`` at bit
``i % 8`` of byte ``i // 8``, then the tail. A null's 8 bytes are zeros; those of a value are

* for an ``int64`` or ``float64`` column the number's own bits, NaN payloads and -0.0 included;
* for a ``timestamp`` its int64 of microseconds UTC, for a ``bool`` an int64 of 0 or 1;
* for a column of any other type the place of its bytes in the tail (offset and length, unsigned 32
  bits each). The caller encodes these: `serving.online.feast_rows` stores Feast's ``Value``
  message.

Views that `features.feast_objects` generates have these four types only, so their cells have a
fixed width and no tail, and whole columns are encoded at once. Equal values are equal bytes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, INT64, TIMESTAMP
from tidemill.features.errors import InputError

Value = int | float | bool | bytes | None
"""A number (a timestamp in microseconds UTC), a bool, the bytes of a value of another type, or None
for a null."""

_STRUCT: Final = {INT64: "q", FLOAT64: "d", BOOL: "q", TIMESTAMP: "q"}
_PLACE: Final = struct.Struct("<II")
_LARGEST_TAIL: Final = 2**32 - 1
_INVERTED: Final = bytes(255 - byte for byte in range(256))


def cells_width(columns: int) -> int:
    """Return the number of bytes of a row's cells without its tail."""
    return 8 * columns + (columns + 7) // 8


def is_word(dtype: str) -> bool:
    """Tell whether a column's 8 bytes are its value; otherwise they are a place in the tail."""
    return dtype in _STRUCT


def has_tail(dtypes: Sequence[str]) -> bool:
    """Tell whether cells of these columns may be longer than `cells_width`."""
    return any(dtype not in _STRUCT for dtype in dtypes)


def cell_matrix(dtypes: Sequence[str], arrays: Sequence[pa.Array]) -> npt.NDArray[np.uint8]:
    """Encode whole columns.

    Args:
        dtypes: ``int64``, ``float64``, ``bool`` or ``timestamp``, one a column.
        arrays: Arrow arrays of these types, each ``(rows,)``.

    Returns:
        The cells of each row, ``(rows, cells_width(columns))``.
    """
    rows = len(arrays[0])
    out = np.zeros((rows, cells_width(len(dtypes))), np.uint8)
    for i, (dtype, array) in enumerate(zip(dtypes, arrays, strict=True)):
        if array.type != ARROW_TYPES[dtype]:
            raise InputError(f"column {i} of a row is {dtype}, found an array of {array.type}")
        number = array if dtype == FLOAT64 else array.cast(pa.int64())
        filled = number.fill_null(0) if array.null_count else number
        kind = "<f8" if dtype == FLOAT64 else "<i8"
        words = np.ascontiguousarray(filled.to_numpy(zero_copy_only=False), kind)
        out[:, 8 * i : 8 * i + 8] = words.view(np.uint8).reshape(rows, 8)
        if array.null_count:
            null = array.is_null().to_numpy(zero_copy_only=False).astype(np.uint8)
            out[:, 8 * len(dtypes) + i // 8] |= null << np.uint8(i % 8)
    return out


def matrix_rows(matrix: npt.NDArray[np.uint8]) -> list[bytes]:
    """Return the bytes of each row of a matrix, ``(rows, width)``."""
    (rows, width), data = matrix.shape, matrix.tobytes()
    return [data[at : at + width] for at in range(0, rows * width, width)]


def decode_matrix(
    columns: int, cells: Sequence[bytes]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Decode the cells of many rows without a tail into words.

    Args:
        columns: Number of columns.
        cells: The cells of each row, ``(rows,)``.

    Returns:
        The 8 bytes of each value as an int64, ``(columns, rows)``, each column contiguous; and
        which values are null, ``(columns, rows)``, or None if none is.

    Raises:
        InputError: The cells of a row have another length: the row was changed.
    """
    width = cells_width(columns)
    if others := set(map(len, cells)) - {width}:
        raise _changed(min(others), width)
    data = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), cells_width(columns))
    words = np.ascontiguousarray(data[:, : 8 * columns]).view("<i8").T.copy()
    flags = data[:, 8 * columns :]
    if not flags.any():
        return words, None
    bits = np.unpackbits(flags, axis=1, count=columns, bitorder="little")
    return words, np.ascontiguousarray(bits.T).view(np.bool_)


def arrow_columns(
    dtypes: Sequence[str], words: npt.NDArray[np.int64], nulls: npt.NDArray[np.bool_] | None
) -> list[pa.Array]:
    """Make Arrow arrays of the result of `decode_matrix`, without copying the values again."""
    bitmap = None if nulls is None else np.packbits(~nulls.ravel(), bitorder="little")
    return _slices(dtypes, words.shape[1], words, bitmap)


def decode_cells(dtypes: Sequence[str], cells: Sequence[bytes]) -> list[pa.Array]:
    """Decode the cells of many rows without a tail: the inverse of `cell_matrix`.

    Raises:
        InputError: The cells of a row have another length: the row was changed.
    """
    if len(cells) != 1:
        return arrow_columns(dtypes, *decode_matrix(len(dtypes), cells))
    # One row's cells have the layout of Arrow's buffers: words, then a bit for each column.
    (row,) = cells
    if len(row) != (width := cells_width(len(dtypes))):
        raise _changed(len(row), width)
    nulls = row[8 * len(dtypes) :]
    return _slices(dtypes, 1, row, nulls.translate(_INVERTED) if any(nulls) else None)


def _slices(dtypes: Sequence[str], rows: int, words: Any, bitmap: Any) -> list[pa.Array]:
    valid = None if bitmap is None else pa.py_buffer(bitmap)
    data = {dtype: pa.py_buffer(words) for dtype in set(dtypes) - {BOOL}}
    if BOOL in dtypes:
        if isinstance(words, bytes):
            words = np.frombuffer(words, "<i8", len(dtypes))
        data[BOOL] = pa.py_buffer(np.packbits(words.ravel() != 0, bitorder="little"))
    # One array of all columns per type, and slices of it: half the calls into Arrow.
    whole = {
        dtype: pa.Array.from_buffers(ARROW_TYPES[dtype], len(dtypes) * rows, [valid, buffer])
        for dtype, buffer in data.items()
    }
    return [whole[dtype].slice(rows * i, rows) for i, dtype in enumerate(dtypes)]


def encode_row(dtypes: Sequence[str], values: Sequence[Value]) -> bytes:
    """Encode one row; for numbers the bytes are those of `cell_matrix`.

    Raises:
        InputError: The tail would be longer than 4 GiB.
    """
    columns = len(dtypes)
    out = bytearray(cells_width(columns))
    tail = bytearray()
    for i, (dtype, value) in enumerate(zip(dtypes, values, strict=True)):
        if value is None:
            out[8 * columns + i // 8] |= 1 << i % 8
        elif isinstance(value, bytes):
            if len(tail) + len(value) > _LARGEST_TAIL:
                raise InputError(f"a row's values take more than {_LARGEST_TAIL} bytes")
            _PLACE.pack_into(out, 8 * i, len(tail), len(value))
            tail += value
        else:
            struct.pack_into(f"<{_STRUCT[dtype]}", out, 8 * i, value)
    return bytes(out + tail)


def decode_row(dtypes: Sequence[str], cells: bytes) -> Sequence[Value]:
    """Decode one row into Python values: the inverse of `encode_row`.

    Raises:
        InputError: The cells are shorter, or longer, than those of such a row: it was changed.
    """
    return _values(dtypes, _layout(tuple(dtypes)), cells)


def decode_columns(dtypes: Sequence[str], cells: Sequence[bytes]) -> Sequence[Sequence[Value]]:
    """Decode many rows into Python values, column by column: ``(columns,)`` of ``(rows,)``."""
    if not cells:
        return [()] * len(dtypes)
    layout = _layout(tuple(dtypes))
    return list(zip(*[_values(dtypes, layout, row) for row in cells], strict=True))


def _values(dtypes: Sequence[str], layout: _Layout, cells: bytes) -> Sequence[Value]:
    if len(cells) < layout.width or (len(cells) > layout.width and not layout.has_tail):
        raise _changed(len(cells), layout.width)
    words: Sequence[int | float] = layout.words.unpack_from(cells)
    nulls = int.from_bytes(cells[8 * len(dtypes) : layout.width], "little")
    if layout.bools:
        words = list(words)
        for i in layout.bools:
            words[i] = words[i] != 0
    if not layout.has_tail:
        if not nulls:
            return words
        return [None if nulls >> i & 1 else word for i, word in enumerate(words)]
    out: list[Value] = []
    for i, (dtype, word) in enumerate(zip(dtypes, words, strict=True)):
        if nulls >> i & 1:
            out.append(None)
        elif dtype in _STRUCT:
            out.append(word)
        else:
            place = int(word)
            start, length = layout.width + (place & _LARGEST_TAIL), place >> 32
            out.append(cells[start : start + length])
    return out


def _changed(found: int, width: int) -> InputError:
    return InputError(
        f"the cells of a row have {found} bytes, and those of its columns {width}: it was changed"
    )


class _Layout(NamedTuple):
    """How to unpack a row: its words, its bytes before the tail, and which words are bools."""

    words: struct.Struct
    width: int
    has_tail: bool
    bools: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _layout(dtypes: tuple[str, ...]) -> _Layout:
    return _Layout(
        words=struct.Struct("<" + "".join(_STRUCT.get(dtype, "Q") for dtype in dtypes)),
        width=cells_width(len(dtypes)),
        has_tail=has_tail(dtypes),
        bools=tuple(i for i, dtype in enumerate(dtypes) if dtype == BOOL),
    )
