"""The rows of a Parquet file, batch by batch, and a row as one line of JSON.

A Parquet file has no lines, so the payload of a rejected row is the row as a JSON object. Reading
that object gives the same values again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tidemill.features.errors import InputError


def read_rows(file: BinaryIO, origin: str, *, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Read all columns of a Parquet file, batch by batch.

    Args:
        file: The file, seekable.
        origin: The file's name in errors.
        batch_rows: The most rows of a batch.

    Yields:
        Batches with at least one row, in order.

    Raises:
        InputError: The file is not Parquet, or is damaged.
    """
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=batch_rows):
            if batch.num_rows:
                yield batch
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{origin}: cannot be read as Parquet ({error}); is it complete?"
        ) from error


def as_json(batch: pa.RecordBatch, row: int) -> bytes:
    """Return a row as a JSON object without spaces; texts keep their bytes, valid UTF-8 or not."""
    values = {name: _plain(batch[name][row]) for name in batch.schema.names}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode("utf-8", "surrogateescape")


def _plain(value: pa.Scalar) -> Any:
    kind = value.type
    if not value.is_valid:
        return None
    if pa.types.is_timestamp(kind):
        # Python's datetime has no nanoseconds and fewer years than Arrow.
        return f"{np.datetime64(value.value, kind.unit)}{'' if kind.tz is None else 'Z'}"
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return value.as_py()
