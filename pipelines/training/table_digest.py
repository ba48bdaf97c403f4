"""The identity of a training table: a digest of its rows, however its files are cut and ordered."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from tidemill.features.kernel.hashing import bits, text_buffers, validity


def in_canonical_order(rows: pa.Table) -> pa.Table:
    """Sort a training table by request time and id.

    Requests with equal time and id are ordered by their other columns, so the order of the rows
    that come in does not matter.
    """
    keys = [("request_time", "ascending"), ("request_id", "ascending")]
    rows = rows.sort_by(keys).combine_chunks()
    if _has_equal_neighbours(rows.select([name for name, _ in keys])):
        others = [name for name in rows.column_names if name not in dict(keys)]
        rows = rows.sort_by(keys + [(name, "ascending") for name in sorted(others)])
    return rows


def _has_equal_neighbours(rows: pa.Table) -> bool:
    equal = np.ones(max(rows.num_rows - 1, 0), np.bool_)
    for column in rows.columns:
        codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        equal &= codes[1:] == codes[:-1]
    return bool(equal.any())


def table_digest(rows: pa.Table) -> str:
    """Return the SHA-256 of a table's canonical form: per column name, type, nulls and values.

    Args:
        rows: A table in canonical order, of texts, int64, float64, bool and times, ``(rows,)``.

    Returns:
        64 hexadecimal digits. They do not depend on chunks, slices, the bytes behind nulls, or the
        order of the columns.
    """
    total = hashlib.sha256(rows.num_rows.to_bytes(8, "little"))
    for name in sorted(rows.column_names):
        column = rows.column(name).combine_chunks()
        header = f"{len(name.encode())} {name} {column.type}".encode()
        total.update(len(header).to_bytes(8, "little") + header)
        total.update(np.packbits(validity(column)).tobytes())
        if pa.types.is_string(column.type):
            offsets, data = text_buffers(column.fill_null(""))
            lengths = np.diff(offsets).astype(np.int64)
            total.update(lengths.tobytes())
            total.update(data[offsets[0] : offsets[-1]].tobytes())
        else:
            total.update(bits(column).tobytes())
    return total.hexdigest()
