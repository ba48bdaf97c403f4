"""Searching a folder for a text: in the bytes of every file, and in what compressed files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def where_found(folder: Path, text: str) -> list[str]:
    """Return the files below a folder that hold a text: as UTF-8, as JSON, or in a column."""
    forms = {text.encode(), json.dumps(text)[1:-1].encode()}
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(_holds(path, form) for form in forms)
    )


def _holds(path: Path, wanted: bytes) -> bool:
    data = path.read_bytes()
    if wanted in data:
        return True
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return any(_in(column, wanted) for column in file.read().columns) or _in_statistics(
            file.metadata, wanted
        )
    if path.suffix == ".arrow":
        return any(_in(column, wanted) for column in pa.ipc.open_file(data).read_all().columns)
    return False


def _in(column: pa.ChunkedArray, wanted: bytes) -> bool:
    return any(wanted in _bytes(value) for value in column.to_pylist())


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _in_statistics(metadata: Any, wanted: bytes) -> bool:
    """Tell whether the bounds of a column hold a text, which a filter of the rows may leave."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            found = metadata.row_group(group).column(place).statistics
            bounds = () if found is None or not found.has_min_max else (found.min, found.max)
            if any(wanted in _bytes(bound) for bound in bounds):
                return True
    return False


def redis_keys_with(client: Any, text: str) -> list[bytes]:
    """Return the keys of a Redis that hold a text: in their name, or anywhere in their value."""
    forms = {text.encode(), json.dumps(text)[1:-1].encode()}
    return sorted(
        key
        for key in client.scan_iter(count=1_000)
        if any(form in part for form in forms for part in (key, *_redis_value(client, key)))
    )


def _redis_value(client: Any, key: bytes) -> list[bytes]:
    kind = client.type(key)
    if kind == b"string":
        return [client.get(key)]
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    if kind == b"list":
        found: list[bytes] = client.lrange(key, 0, -1)
        return found
    if kind == b"set":
        return list(client.smembers(key))
    if kind == b"zset":
        return list(client.zrange(key, 0, -1))
    raise AssertionError(f"{key!r} is of the type {kind!r}, which is not searched")
