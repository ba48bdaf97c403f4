"""The layout of key spaces, fills, rows and frontiers in Redis: names and bytes.

========================  =======  ==============================================================
key                       type     content
========================  =======  ==============================================================
``tm:spaces``             set      the names of the key spaces
``tm:current:NAME``       string   the id of the fill that is read, 16 hexadecimal digits
``tm:fills:NAME``         set      the ids of all fills of the key space
``tm:token``              string   the highest token that was ever taken
``tm:fill:ID``            hash     ``layout``, ``space``, ``project``, ``view``, ``definition``,
                                   ``columns``, ``shards``, ``slices``, ``generation``, ``cuts``,
                                   ``mode``, ``state``, ``token`` (16 bytes), ``root``, ``holder``;
                                   without its ``layout`` the fill is being removed
``tm:parts:ID``           string   32 bytes for each part: frontier (8), mark (16), and the token
                                   (4) and attempt (4) of its last writer; zeros are none
``tm:`` + id + key        string   the row of an entity; the id is the 8 bytes of the fill's id,
                                   and the key is Feast's serialized entity key
========================  =======  ==============================================================

Layout 1, before fills, had ``tm:space:NAME`` and ``tm:frontiers:NAME``; and rows of the same
form.

A row is ``event_timestamp``, ``revision`` and ``valid_until``, each 8 bytes, the shard in 4 (-1 if
it is not known), and the cells. An instant or a revision is a big-endian unsigned number with 2**63
added, so that a script can compare two of them as unsigned numbers of 32 bits: Lua has no integers
of 64 bits, and compares strings by the server's locale.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import numpy as np

from tidemill.serving.online.cells import matrix_rows
from tidemill.serving.online.fills import PartState
from tidemill.serving.online.rows import KeySpace, Row, RowBatch

SPACES: Final = "tm:spaces"
"""The key of the set of key spaces."""
TOKEN: Final = "tm:token"
"""The key of the highest token."""

_ROW: Final = struct.Struct(">QQQi")
_INSTANT: Final = struct.Struct(">Q")
_PART: Final = struct.Struct(">Q16sII")
_FRONTIER: Final = struct.Struct(">Q24x")
_ZERO: Final = 1 << 63
_UNKNOWN_SHARD: Final = -1


def old_space_key(space: KeySpace) -> str:
    """Return the key of a key space's record in layout 1."""
    return f"tm:space:{space.name}"


def old_frontiers_key(space: KeySpace) -> str:
    """Return the key of a key space's frontiers in layout 1."""
    return f"tm:frontiers:{space.name}"


def old_fill_id(space: KeySpace) -> str:
    """Return the id of the fill with the rows that a key space of layout 1 has."""
    return hashlib.blake2b(space.name.encode(), digest_size=8).hexdigest()


def current_key(space: KeySpace) -> str:
    """Return the key that names the current fill of a key space."""
    return f"tm:current:{space.name}"


def fills_key(space: KeySpace) -> str:
    """Return the key of the set of a key space's fills."""
    return f"tm:fills:{space.name}"


def fill_key(fill: str) -> str:
    """Return the key of a fill's record."""
    return f"tm:fill:{fill}"


def parts_key(fill: str) -> str:
    """Return the key of the marks and frontiers of a fill's parts."""
    return f"tm:parts:{fill}"


def row_prefix(fill: str) -> bytes:
    """Return the start of the keys of a fill's rows."""
    return b"tm:" + bytes.fromhex(fill)


def decode_parts(data: bytes, parts: int) -> list[PartState]:
    """Decode mark and frontier of every part."""
    padded = data.ljust(parts * _PART.size, b"\0")
    return [
        PartState(mark=mark if any(mark) else None, frontier_us=number - _ZERO if number else None)
        for number, mark, _, _ in _PART.iter_unpack(padded[: parts * _PART.size])
    ]


def decode_frontiers(data: bytes) -> dict[int, int]:
    """Decode the frontiers of the parts that have one."""
    return {
        part: number - _ZERO for part, (number,) in enumerate(_FRONTIER.iter_unpack(data)) if number
    }


def encode_instant(time_us: int) -> bytes:
    """Encode an instant in 8 bytes."""
    return _INSTANT.pack(time_us + _ZERO)


def decode_instant(data: bytes) -> int:
    """Decode an instant: the inverse of `encode_instant`."""
    (number,) = _INSTANT.unpack(data)
    return int(number) - _ZERO


def encode_rows(rows: RowBatch) -> list[bytes]:
    """Encode the rows of a batch, all of them at once."""
    count = len(rows)
    cells = rows.cells
    matrix = None if isinstance(cells, list) else cells
    width = _ROW.size + (0 if matrix is None else matrix.shape[1])
    out = np.empty((count, width), np.uint8)
    for place, column in enumerate((rows.event_timestamps, rows.revisions, rows.valid_until)):
        number = np.ascontiguousarray(column, np.int64).view(np.uint64) ^ np.uint64(_ZERO)
        out[:, 8 * place : 8 * place + 8] = number.astype(">u8").view(np.uint8).reshape(count, 8)
    shard = _UNKNOWN_SHARD if rows.shard is None else rows.shard
    out[:, 24:28] = np.frombuffer(shard.to_bytes(4, "big", signed=True), np.uint8)
    if matrix is not None:
        out[:, _ROW.size :] = matrix
    encoded = matrix_rows(out)
    if isinstance(cells, list):
        return [head + cell for head, cell in zip(encoded, cells, strict=True)]
    return encoded


def decode_row(key: bytes, data: bytes) -> Row:
    """Decode the row of an entity key."""
    event_timestamp, revision, valid_until, shard = _ROW.unpack_from(data)
    return Row(
        key=key,
        event_timestamp=event_timestamp - _ZERO,
        revision=revision - _ZERO,
        valid_until=valid_until - _ZERO,
        shard=None if shard == _UNKNOWN_SHARD else shard,
        cells=data[_ROW.size :],
    )
