"""The cells of a row: all its values as one string of bytes.

8 bytes little-endian for each column in order (an int64, or the bits of a float64; zeros for a
null), then a bitmap of the nulls, column ``i`` at bit ``i % 8`` of byte ``i // 8``. Equal values
are equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from features.expressions import FLOAT64, INT64

Value = int | float | None

_NUMPY: Final = {INT64: np.dtype("<i8"), FLOAT64: np.dtype("<f8")}
_STRUCT: Final = {INT64: "q", FLOAT64: "d"}


def cells_width(columns: int) -> int:
    """Return the number of bytes of a row's cells."""
    return 8 * columns + (columns + 7) // 8


def encode_cells(dtypes: Sequence[str], arrays: Sequence[pa.Array]) -> list[bytes]:
    """Encode whole columns.

    Args:
        dtypes: ``int64`` or ``float64``, one a column.
        arrays: Arrow arrays of these types, each ``(rows,)``.

    Returns:
        The cells of each row.
    """
    rows = len(arrays[0])
    width = cells_width(len(dtypes))
    out = np.zeros((rows, width), np.uint8)
    for i, (dtype, array) in enumerate(zip(dtypes, arrays, strict=True)):
        filled = array.fill_null(0).to_numpy(zero_copy_only=False)
        values = np.ascontiguousarray(filled, _NUMPY[dtype])
        out[:, 8 * i : 8 * i + 8] = values.view(np.uint8).reshape(rows, 8)
        if array.null_count:
            null = array.is_null().to_numpy(zero_copy_only=False).astype(np.uint8)
            out[:, 8 * len(dtypes) + i // 8] |= null << np.uint8(i % 8)
    data = out.tobytes()
    return [data[at : at + width] for at in range(0, rows * width, width)]


def decode_cells(dtypes: Sequence[str], cells: Sequence[bytes]) -> list[pa.Array]:
    """Decode the cells of many rows: the inverse of `encode_cells`."""
    width = cells_width(len(dtypes))
    data = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), width)
    out = []
    for i, dtype in enumerate(dtypes):
        values = np.ascontiguousarray(data[:, 8 * i : 8 * i + 8]).view(_NUMPY[dtype])[:, 0]
        null = (data[:, 8 * len(dtypes) + i // 8] >> np.uint8(i % 8)) & 1
        out.append(pa.array(values, mask=null.astype(np.bool_)))
    return out


def encode_row(dtypes: Sequence[str], values: Sequence[Value]) -> bytes:
    """Encode one row of Python values; the bytes are those of `encode_cells`."""
    nulls = sum(1 << i for i, value in enumerate(values) if value is None)
    cells = struct.pack(
        "<" + "".join(_STRUCT[dtype] for dtype in dtypes),
        *(0 if value is None else value for value in values),
    )
    return cells + nulls.to_bytes((len(dtypes) + 7) // 8, "little")


def decode_row(dtypes: Sequence[str], cells: bytes) -> list[Value]:
    """Decode one row into Python values: the inverse of `encode_row`."""
    nulls = int.from_bytes(cells[8 * len(dtypes) :], "little")
    values = struct.unpack_from("<" + "".join(_STRUCT[dtype] for dtype in dtypes), cells)
    return [None if nulls >> i & 1 else value for i, value in enumerate(values)]
