"""The layout of key spaces, rows and frontiers in Redis: names and bytes.

========================  =======  ==============================================================
key                       type     content
========================  =======  ==============================================================
``tm:spaces``             set      the names of the key spaces
``tm:space:NAME``         hash     ``id``, ``project``, ``view``, ``definition``, ``columns``, and
                                   after the first publication ``shard_count``; without its ``id``
                                   the key space is being removed
``tm:frontiers:NAME``     hash     shard: frontier
``tm:`` + id + key        string   the row of an entity; the id is 8 bytes, a hash of ``NAME``, and
                                   the key is Feast's serialized entity key
========================  =======  ==============================================================

A row is ``event_timestamp``, ``revision`` and ``valid_until``, each 8 bytes, the shard in 4 (-1 if
it is not known), and the cells. An instant or a revision is a big-endian unsigned number with 2**63
added, so that a script can compare two of them as unsigned numbers of 32 bits: Lua has no integers
of 64 bits, and compares strings by the server's locale.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Final

import numpy as np

from tidemill.serving.online.cells import matrix_rows
from tidemill.serving.online.rows import KeySpace, Row, RowBatch

SPACES: Final = "tm:spaces"
"""The key of the set of key spaces."""

_ROW: Final = struct.Struct(">QQQi")
_INSTANT: Final = struct.Struct(">Q")
_ZERO: Final = 1 << 63
_UNKNOWN_SHARD: Final = -1


def space_key(space: KeySpace) -> str:
    """Return the key of a key space's record."""
    return f"tm:space:{space.name}"


def frontiers_key(space: KeySpace) -> str:
    """Return the key of a key space's frontiers."""
    return f"tm:frontiers:{space.name}"


def row_prefix(space: KeySpace) -> bytes:
    """Return the start of the keys of a key space's rows."""
    return _prefix(space.name)


@functools.lru_cache(maxsize=1_024)
def _prefix(name: str) -> bytes:
    return b"tm:" + hashlib.blake2b(name.encode(), digest_size=8).digest()


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
