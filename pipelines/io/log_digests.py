"""Digests of a log's rows, which say what an artefact was made from.

Rows are digested and never file bytes: equal rows have unequal Arrow bytes. A partition is cut into
*blocks* of `BLOCK_ROWS` rows by position, however its files are cut.

* The digest of a block is the SHA-256 of its canonical form (`block_digest`).
* The chain of whole blocks is ``c(b) = SHA-256(c(b - 1), digest(b))``, and ``c(-1)`` is 32 zeros.
* A *cut* is one position for each partition of a source. Its *prefix digest* is the SHA-256 over
  the partitions of: the number of rows, the chain of the whole blocks, and the digest of the rows
  in the last, partial block (32 zeros if there are none).

So two logs whose prefix digests at a cut are equal have the same rows below that cut, and checking
a cut reads at most one block of each partition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import Origin, Schema
from tidemill.features.kernel import hashing
from tidemill.features.kernel.base_columns import base_columns
from tidemill.features.kernel.hashing import UInt8Array

BLOCK_ROWS: Final = 65_536
"""Rows of a block."""

_NOTHING: Final = bytes(32)
_OFFSET: Final = np.dtype("<i8")
_WORD: Final = np.dtype("<u8")


def block_digest(
    schema: Schema, rows: pa.RecordBatch, technical: Sequence[str], origin: Origin | None = None
) -> bytes:
    """Return the SHA-256 of the canonical form of some rows.

    The form is, for each base column in order: its name, its dtype, one byte for each value (1 if
    it is valid), and the values; the same of what is added to these in some row of the block
    (`features.kernel.base_columns`); for the technical columns only the values. A value is its
    64-bit pattern, little-endian, and 0 where it is null; a text is its length in 8 bytes, with the
    UTF-8 bytes of all texts after all lengths. Names are preceded by their length in 8 bytes.

    Args:
        schema: The declared columns: name to dtype.
        rows: The rows, ``(rows,)``, with these columns.
        technical: Names of further columns, int64 without nulls.
        origin: How the declared columns came about; None if the first rows had them.
    """
    digest = hashlib.sha256()
    digest.update(rows.num_rows.to_bytes(8, "little"))
    for name, dtype, column in _columns(schema, origin, rows):
        for text in (name, dtype):
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(_validity(column))
        if pa.types.is_string(column.type):
            lengths, texts = _texts(column)
            digest.update(lengths)
            digest.update(texts)
        else:
            digest.update(_words(column))
    for name in technical:
        digest.update(_words(rows.column(name)))
    return digest.digest()


def _columns(
    schema: Schema, origin: Origin | None, rows: pa.RecordBatch
) -> Iterator[tuple[str, str, pa.Array]]:
    """Yield the columns of the canonical form: name, dtype and values."""
    if origin is None or origin.base == schema:
        yield from ((name, dtype, rows.column(name)) for name, dtype in schema.items())
        return
    parts = base_columns(schema, origin, rows, schema)
    yield from ((name, origin.base[name], column) for name, column in parts.columns.items())
    yield from parts.added


def _validity(column: pa.Array) -> bytes | memoryview:
    if not column.null_count:
        return b"\x01" * len(column)
    valid: UInt8Array = column.is_valid().cast(pa.uint8()).to_numpy()
    return valid.data


def _words(column: pa.Array) -> memoryview:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    words = hashing.bits(column).view(np.uint64)
    if column.null_count:
        words = np.where(column.is_valid().to_numpy(zero_copy_only=False), words, np.uint64(0))
    return np.ascontiguousarray(words, _WORD).data


def _texts(column: pa.Array) -> tuple[memoryview, memoryview | bytes]:
    # What lies under a null is arbitrary in Arrow, so it is replaced before the bytes are taken.
    texts = pc.fill_null(column, "") if column.null_count else column
    offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4)
    lengths = np.diff(offsets).astype(_OFFSET)
    data = texts.buffers()[2]
    text = b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])]
    return lengths.data, text


@dataclass(frozen=True)
class PartitionDigests:
    """The digests of a partition.

    Attributes:
        rows: The number of its rows.
        blocks: The digest of each block; the last one may be partial.
    """

    rows: int
    blocks: tuple[bytes, ...]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_chains", tuple(accumulate(self.blocks[: self.whole], _linked, initial=_NOTHING))
        )

    @property
    def whole(self) -> int:
        """The number of whole blocks."""
        return self.rows // BLOCK_ROWS

    def span(self, block: int) -> tuple[int, int]:
        """Return the positions of the first row of a block and of the row after it."""
        return block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.rows)

    def prefix(self, position: int, partial: Callable[[int, int], bytes]) -> bytes:
        """Return the digested prefix of the partition: 72 bytes.

        Args:
            position: The number of rows of the prefix.
            partial: Digests the rows ``[start, stop)``, which are part of one block.

        Raises:
            ValueError: The partition has fewer rows.
        """
        if not 0 <= position <= self.rows:
            raise ValueError(f"a prefix of {position} rows of a partition of {self.rows}")
        block, rest = divmod(position, BLOCK_ROWS)
        chains: tuple[bytes, ...] = self._chains  # type: ignore[attr-defined]
        if not rest:
            last = _NOTHING
        elif position == self.rows:
            last = self.blocks[block]
        else:
            last = partial(block * BLOCK_ROWS, position)
        return position.to_bytes(8, "little") + chains[block] + last


def _linked(chain: bytes, block: bytes) -> bytes:
    return hashlib.sha256(chain + block).digest()


def prefix_digest(prefixes: Sequence[bytes]) -> str:
    """Return the prefix digest of a cut, 64 hexadecimal digits.

    Args:
        prefixes: The `PartitionDigests.prefix` of each partition, in order.
    """
    return hashlib.sha256(b"".join(prefixes)).hexdigest()
