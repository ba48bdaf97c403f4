"""Stable 64-bit hashes over Arrow columns: shards, entity tables, distinct counts, row digests.

Texts are hashed with XXH64 (the xxHash specification, version 0.1.1), numbers with the splitmix64
finaliser (Steele, Lea and Flood, 2014), which is one-to-one on 64 bits. Persisted state contains
these hashes, so they must never change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.kernel.compiled import entry, inner, read_only

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


@inner(forceinline=True)
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inner
def _read64(data: UInt8Array, at: int) -> np.uint64:
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return word


@inner
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, 31) * _P1


@inner
def xxh64(data: UInt8Array, start: int, length: int, seed: np.uint64) -> np.uint64:
    """Return XXH64 of ``data[start : start + length]``."""
    at, end = start, start + length
    if length >= 32:
        v1, v2, v3, v4 = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + 32 <= end:
            v1 = _round(v1, _read64(data, at))
            v2 = _round(v2, _read64(data, at + 8))
            v3 = _round(v3, _read64(data, at + 16))
            v4 = _round(v4, _read64(data, at + 24))
            at += 32
        h = _rotate(v1, 1) + _rotate(v2, 7) + _rotate(v3, 12) + _rotate(v4, 18)
        for lane in (v1, v2, v3, v4):
            h = (h ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(length)
    while at + 8 <= end:
        h = _rotate(h ^ _round(np.uint64(0), _read64(data, at)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        word = np.uint64(0)
        for i in range(4):
            word |= np.uint64(data[at + i]) << np.uint64(8 * i)
        h = _rotate(h ^ (word * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotate(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@inner
def splitmix64(x: np.uint64) -> np.uint64:
    """Return the splitmix64 finaliser of ``x``: one-to-one on 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@entry
def _hash_texts(offsets: npt.NDArray[np.int32], data: UInt8Array, seed: np.uint64) -> UInt64Array:
    out = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(out)):
        out[i] = xxh64(data, np.int64(offsets[i]), np.int64(offsets[i + 1] - offsets[i]), seed)
    return out


@entry
def _hash_words(words: UInt64Array) -> UInt64Array:
    out = np.empty(len(words), np.uint64)
    for i in range(len(words)):
        out[i] = splitmix64(words[i])
    return out


@entry
def _chain(digests: UInt64Array, hashes: UInt64Array, valid: BoolArray) -> None:
    """Fold one column's hashes into two independent 64-bit lanes per row."""
    for i in range(len(hashes)):
        h = hashes[i] if valid[i] else np.uint64(0x6E756C6C6E756C6C)
        digests[i, 0] = splitmix64(_rotate(digests[i, 0], 17) ^ h) * _P1 + _P4
        digests[i, 1] = splitmix64((_rotate(digests[i, 1], 29) + h) ^ _P5) * _P2 + _P3


def text_buffers(array: pa.Array) -> tuple[npt.NDArray[np.int32], UInt8Array]:
    """Return the offsets (int32, ``(rows + 1,)``) and bytes of a string or binary array.

    The bytes are not copied: offsets of a slice need not start at 0. A null has length 0.
    """
    _, offsets_buffer, data_buffer = array.buffers()
    if offsets_buffer is None or len(array) == 0:
        return np.zeros(len(array) + 1, np.int32), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return offsets, data


def validity(array: pa.Array) -> BoolArray:
    """Return which rows are not null: bool, ``(rows,)``."""
    if array.null_count == 0:
        return np.ones(len(array), np.bool_)
    valid: BoolArray = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


def bits(array: pa.Array) -> Int64Array:
    """Return a number, time or boolean column as 64-bit patterns (0 where null).

    Args:
        array: int64, float64, bool or timestamp, ``(rows,)``.

    Returns:
        int64, ``(rows,)``.
    """
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
        return array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    _, data = array.buffers()
    if data is None or len(array) == 0:
        return np.zeros(len(array), np.int64)
    raw = np.frombuffer(data, np.int64)[array.offset : array.offset + len(array)]
    if array.null_count:
        raw = np.where(validity(array), raw, 0)
    return raw


def hash_column(array: pa.Array, seed: int = 0) -> UInt64Array:
    """Hash each value of a column. A null has the hash of an empty value; see `validity`.

    Args:
        array: string, binary, int64, float64, bool or timestamp, ``(rows,)``.
        seed: XXH64 seed for texts.

    Returns:
        uint64, ``(rows,)``.
    """
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        offsets, data = text_buffers(array)
        return _hash_texts(read_only(offsets), read_only(data), np.uint64(seed))
    return _hash_words(read_only(bits(array).view(np.uint64)))


def digest_rows(batch: pa.RecordBatch) -> UInt64Array:
    """Return a 128-bit digest of each row over all columns in order: uint64, ``(rows, 2)``.

    Rows whose values are all equal bit for bit have equal digests. Two different rows collide with
    a probability of about 2**-128.
    """
    digests = np.zeros((batch.num_rows, 2), np.uint64)
    for array in batch.columns:
        _chain(digests, hash_column(array), read_only(validity(array)))
    return digests


def digest_more(digests: UInt64Array, name: str, array: pa.Array) -> None:
    """Fold a further column into digests of rows, in place; a row with a null there keeps its own.

    Args:
        digests: uint64, ``(rows, 2)``.
        name: A name, which tells its values from those of another one.
        array: The column, ``(rows,)``.
    """
    rows = np.flatnonzero(validity(array))
    if not len(rows):
        return
    salt = hash_column(pa.array([name], pa.string()), seed=0x6F707469)
    hashes = _hash_words(read_only(hash_column(array)[rows] ^ salt))
    some = np.ascontiguousarray(digests[rows])
    _chain(some, hashes, read_only(np.ones(len(rows), np.bool_)))
    digests[rows] = some


def shard_of(keys: pa.Array, shards: int) -> Int64Array:
    """Return the shard of each entity key: int64, ``(rows,)``; a null belongs to shard 0."""
    shard = ((hash_column(keys, seed=0x7469646D) >> np.uint64(32)) % np.uint64(shards)).astype(
        np.int64
    )
    return np.where(validity(keys), shard, 0)


def key_bytes(keys: pa.Array) -> pa.Array:
    """Return entity keys as text, int64 keys in decimal."""
    return keys if pa.types.is_string(keys.type) else keys.cast(pa.string())
