"""Frames: the header of all state, and of every message between stages.

The promises:

* A frame names its format (`Kind`), the version of the format, and its key (the owner). These are
  checked before the content is decoded.
* Bytes that are damaged or cut short, or have another kind, version or key, raise an error that
  says so.
* Decoding executes no code: the content is JSON, Arrow and plain numbers. A pickle is refused
  without loading it.
* Equal contents have equal bytes.

Layout: 8 bytes of magic; the kind in 1 byte, and a zero byte; the version in 2 bytes; the length of
the key in 4 bytes and of the content in 8; a CRC-32 of these fields, the key and the content, in 8
bytes; the key as UTF-8, padded with zeros to a multiple of 8; the content. Numbers are unsigned and
little-endian. The content starts at a multiple of 8, so Arrow and numpy read it in place.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import pyarrow as pa

from tidemill.features.errors import DamagedState, StateMismatch, StateVersionError

MAGIC: Final = b"\x89TMILL\r\n"
"""Like PNG's: not text in any encoding, and damaged by programs that convert line ends."""
_PREFIX: Final = struct.Struct("<8sBxHIQ")
_CHECKSUM: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _PREFIX.size + _CHECKSUM.size
"""The bytes of a frame before its key."""
_COUNTS: Final = struct.Struct("<QQ")
# `json.dumps` with options makes an encoder for each call, and `json.loads` of bytes detects their
# encoding. Both cost more than encoding a small message.
_TO_JSON: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_FROM_JSON: Final = json.JSONDecoder().decode
_PICKLE: Final = b"\x80"
"""The first byte of a pickle of protocol 2 or later."""

Bytes: TypeAlias = bytes | memoryview | pa.Buffer


class Kind(enum.IntEnum):
    """What a frame holds. A number is never used again for something else."""

    # Messages between the stages of a pipeline.
    POLL = 1
    BATCHES = 2
    REQUEST_PART = 3
    ANSWER_PART = 4
    SAVEPOINT_PART = 5
    PUBLISHED = 6
    UNANSWERED = 7
    EXCHANGED = 8
    # State, in the engine and in files.
    OPERATOR_HEAD = 16
    OPERATOR_SNAPSHOT = 17
    LOGGED_RELEASE = 18
    JOINER_STATE = 19
    LOGGED_PARTS = 20
    OPERATOR_FILE = 21
    LOGGED_POLL = 22
    OPERATOR_SAVEPOINT = 23
    OPERATOR_ENTRIES = 24
    OUTPUTS = 25


VERSIONS: Final[Mapping[Kind, int]] = {
    **dict.fromkeys(Kind, 1),
    # Version 1 of these had no number of a poll, no mark, or named views by their place.
    Kind.POLL: 2,
    Kind.ANSWER_PART: 2,
    Kind.SAVEPOINT_PART: 2,
    Kind.PUBLISHED: 2,
    Kind.JOINER_STATE: 2,
    # Version 2 of these did not say when rows arrived.
    Kind.BATCHES: 3,
    Kind.LOGGED_RELEASE: 3,
    # Versions 1 and 2 of an operator's state were pickles; version 3 of the head had no mark, and
    # version 4 did not say whether an answer was given as of the frontier. Version 5 counted
    # conflicts, and version 3 of the snapshot held the ids for it.
    Kind.OPERATOR_HEAD: 6,
    Kind.OPERATOR_SNAPSHOT: 4,
}
"""The version of each format that this code writes and reads."""


def frame(kind: Kind, key: str, parts: Iterable[Bytes]) -> bytes:
    """Encode a frame.

    Args:
        kind: What it holds.
        key: The owner; empty where the owner does not matter.
        parts: The content, in pieces.
    """
    return b"".join(_frame_pieces(kind, key, parts))


def _frame_pieces(kind: Kind, key: str, parts: Iterable[Bytes]) -> list[Bytes]:
    text, pieces = key.encode(), list(parts)
    name, size = _filled(text), sum(memoryview(piece).nbytes for piece in pieces)
    prefix = _PREFIX.pack(MAGIC, kind, VERSIONS[kind], len(text), size)
    checksum = zlib.crc32(name, zlib.crc32(prefix))
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return [prefix + _CHECKSUM.pack(checksum) + name, *pieces]


class Frame(NamedTuple):
    """A decoded frame.

    Attributes:
        kind: What it holds.
        key: The owner.
        content: The content; it starts at an address that is a multiple of 8.
    """

    kind: Kind
    key: str
    content: pa.Buffer


def unframe(
    data: Bytes,
    kinds: Kind | Sequence[Kind],
    what: str,
    remedy: str,
    key: str | None = None,
    *,
    is_checked: bool = False,
) -> Frame:
    """Decode a frame.

    Args:
        data: The bytes of the frame.
        kinds: What it may hold.
        what: What the bytes are and where they are from, for errors.
        remedy: What the user should do, for errors.
        key: The owner that it must have; None if the caller checks it.
        is_checked: Whether it is part of another frame, whose checksum was compared.

    Returns:
        The frame. It refers to ``data``, without a copy.

    Raises:
        DamagedState: The bytes are not a whole frame, or hold another kind.
        StateVersionError: The version is not supported.
        StateMismatch: The key is another one.
    """
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    if buffer.address % 8:
        buffer = pa.py_buffer(buffer.to_pybytes())
    view = memoryview(buffer)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise _unframed(view, what, remedy)
    if len(view) < HEADER_BYTES:
        raise DamagedState(f"{what}: cut short, {len(view)} bytes are left; {remedy}")
    _, number, version, key_bytes, size = _PREFIX.unpack_from(view)
    start = HEADER_BYTES + key_bytes + -key_bytes % 8
    if len(view) != start + size:
        raise DamagedState(
            f"{what}: {len(view)} bytes are here, the header says {start + size}: cut short or "
            f"damaged; {remedy}"
        )
    if not is_checked and not _is_whole(view):
        raise DamagedState(f"{what}: its checksum does not match, so it was damaged; {remedy}")
    allowed = (kinds,) if isinstance(kinds, Kind) else kinds
    if number not in allowed:
        found = Kind(number).name if number in set(Kind) else f"number {number}"
        raise DamagedState(
            f"{what}: holds {found}, expected was {' or '.join(k.name for k in allowed)}; {remedy}"
        )
    kind = Kind(number)
    if version != VERSIONS[kind]:
        raise StateVersionError(
            f"{what}: has version {version}, this code reads {VERSIONS[kind]}; {remedy}"
        )
    found_key = bytes(view[HEADER_BYTES : HEADER_BYTES + key_bytes]).decode()
    if key is not None and found_key != key:
        raise StateMismatch(f"{what}: belongs to {found_key!r}, expected was {key!r}; {remedy}")
    return Frame(kind, found_key, buffer.slice(start))


def _is_whole(view: memoryview) -> bool:
    """Compare the checksum of a frame."""
    checksum = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _PREFIX.size]))
    return (checksum,) == _CHECKSUM.unpack_from(view, _PREFIX.size)


def size_of(header: bytes) -> int | None:
    """Return how many bytes the frame with a header has; None if that is no header.

    Args:
        header: The first `HEADER_BYTES` of the frame.
    """
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        return None
    _, _, _, key_bytes, size = _PREFIX.unpack_from(header)
    return int(HEADER_BYTES + key_bytes + -key_bytes % 8 + size)


def _unframed(view: memoryview, what: str, remedy: str) -> DamagedState | StateVersionError:
    if bytes(view[:1]) == _PICKLE:
        return StateVersionError(
            f"{what}: was written by an older version of Tidemill, as a pickle, which is not "
            f"loaded; {remedy}"
        )
    if not len(view):
        return DamagedState(f"{what}: is empty; {remedy}")
    return DamagedState(
        f"{what}: does not begin as data of Tidemill but with {bytes(view[:8])!r}; {remedy}"
    )


class Document(NamedTuple):
    """Named fields and blobs: the content of most frames.

    Attributes:
        kind: What it holds.
        key: The owner.
        fields: JSON values by name.
        blobs: The binary parts; each starts at an address that is a multiple of 8.
    """

    kind: Kind
    key: str
    fields: dict[str, Any]
    blobs: list[pa.Buffer]


def encode_document(
    kind: Kind, key: str, fields: Mapping[str, Any], blobs: Iterable[Bytes] = ()
) -> bytes:
    """Encode named fields and blobs as a frame.

    The content: the length of the JSON, the number of blobs and the length of each blob (8 bytes
    each), the JSON with sorted keys, and the blobs. The JSON and each blob are padded to a multiple
    of 8.

    Args:
        kind: What the frame holds.
        key: The owner.
        fields: JSON values by name.
        blobs: The binary parts.
    """
    return b"".join(document_pieces(kind, key, fields, blobs))


def document_pieces(
    kind: Kind, key: str, fields: Mapping[str, Any], blobs: Iterable[Bytes] = ()
) -> list[Bytes]:
    """Encode as `encode_document`; return the frame in pieces, in which blobs are not copied."""
    text = _TO_JSON(fields).encode()
    pieces = list(blobs)
    sizes = [memoryview(piece).nbytes for piece in pieces]
    counts = struct.pack(f"<{2 + len(sizes)}Q", len(text), len(sizes), *sizes)
    parts: list[Bytes] = [counts + _filled(text)]
    for piece, size in zip(pieces, sizes, strict=True):
        parts.append(piece)
        if size % 8:
            parts.append(bytes(-size % 8))
    return _frame_pieces(kind, key, parts)


def decode_document(
    data: Bytes,
    kinds: Kind | Sequence[Kind],
    what: str,
    remedy: str,
    key: str | None = None,
    *,
    is_checked: bool = False,
) -> Document:
    """Decode named fields and blobs; see `unframe`."""
    kind, found_key, content = unframe(data, kinds, what, remedy, key, is_checked=is_checked)
    view = memoryview(content)
    size, count = _COUNTS.unpack_from(view)
    sizes = struct.unpack_from(f"<{count}Q", view, _COUNTS.size)
    at = _COUNTS.size + 8 * count
    fields = _FROM_JSON(str(view[at : at + size], "utf-8"))
    at += size + -size % 8
    blobs = []
    for size in sizes:
        blobs.append(content.slice(at, size))
        at += size + -size % 8
    return Document(kind, found_key, fields, blobs)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
