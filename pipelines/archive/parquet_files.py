"""The files of an archive: Parquet, with the place and the time of receipt beside the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.archive.manifest import ArchiveFile, file_name
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, log_schema
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.files.read_files import reading

GROUP_ROWS: Final = 65_536
"""Rows of a row group, the last one of a file excepted."""
MEND: Final = (
    "restore the file from a copy, or remove the archive and let `tidemill archive` write it again"
)
_RECEIPT: Final = pa.timestamp("us", tz="UTC")


def archive_schema(definition: EventStream | Request) -> pa.Schema:
    """Return the columns of a source's files.

    They are the declared columns, then ``_partition`` (of the topic), ``_position`` (the number of
    the row in its partition) and ``_received`` (when a stream read it).
    """
    declared = list(log_schema(definition))[:-2]
    places = [pa.field(PARTITION, pa.int64()), pa.field(POSITION, pa.int64())]
    return pa.schema([*declared, *places, pa.field(RECEIVED, _RECEIPT)])


def archive_rows(
    definition: EventStream | Request, partition: int, rows: pa.RecordBatch
) -> pa.RecordBatch:
    """Return rows of a log as the archive has them."""
    arrays = [
        *(rows.column(name) for name in definition.schema),
        pa.array(np.full(rows.num_rows, partition), pa.int64()),
        rows.column(POSITION),
        rows.column(RECEIVED).cast(_RECEIPT),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=archive_schema(definition))


def write_file(
    folder: Path,
    definition: EventStream | Request,
    day: str,
    partition: int,
    first: int,
    stop: int,
    rows: Iterable[pa.RecordBatch],
) -> ArchiveFile:
    """Write a file, whole; it has survived a crash of the machine when this returns.

    Args:
        folder: The folder of the day.
        definition: The source.
        day: The day.
        partition: The partition of the topic.
        first: The position of the first row.
        stop: The position after the last.
        rows: The rows, as `archive_rows` gives them.
    """
    path = folder / file_name(partition, first, stop)
    schema = archive_schema(definition)
    with (
        atomic_write(path, durable=True) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="zstd", compression_level=3) as writer,
    ):
        for group in _groups(rows, schema):
            writer.write_batch(group, row_group_size=GROUP_ROWS)
    return ArchiveFile(day, partition, first, stop, path.stat().st_size, file_sha256(path))


def _groups(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Cut rows into row groups, so that a file does not depend on how its rows came."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in rows:
        waiting.append(batch)
        count += batch.num_rows
        while count >= GROUP_ROWS:
            table = pa.Table.from_batches(waiting, schema).combine_chunks()
            yield table.slice(0, GROUP_ROWS).to_batches()[0]
            waiting, count = table.slice(GROUP_ROWS).to_batches(), count - GROUP_ROWS
    if count:
        yield pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()[0]


def fault_of(path: Path, file: ArchiveFile) -> str | None:
    """Return what is wrong with the bytes of a file; None if they are those that were written."""
    if not path.is_file():
        return "it is missing"
    if path.stat().st_size != file.size or file_sha256(path) != file.sha256:
        return "it was changed after it was written"
    return None


def read_file(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, a row group at a time.

    Raises:
        DamagedFile: It is no Parquet file any more.
    """
    with reading(path, MEND), closing(pq.ParquetFile(path)) as file:
        yield from file.iter_batches(GROUP_ROWS)
