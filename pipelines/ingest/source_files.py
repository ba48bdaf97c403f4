"""The formats and columns of a source's files, and the ends of its log, for mended records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.io.files.input_files import format_of
from tidemill.pipelines.io.files.readers import read
from tidemill.pipelines.io.log import RECEIVED, Log, one_batch


class SourceFiles:
    """The formats and columns of a source's files, by partition, each looked up once.

    Args:
        source: The source.
        declared: The declared columns.
    """

    def __init__(self, source: Source, declared: Sequence[str]) -> None:
        self._source = source
        self._declared = declared
        self._paths = source.find_files()
        self._columns: dict[int, pa.Schema] = {}

    def format(self, partition: int) -> str:
        """Return the format of a file."""
        return self._source.format or format_of(self._path(partition))

    def header(self, partition: int) -> str:
        """Return the column names of a csv file as a csv line."""
        names = self.columns(partition).names
        return ",".join(
            '"' + name.replace('"', '""') + '"' if set(name) & set('",\r\n') else name
            for name in names
        )

    def columns(self, partition: int) -> pa.Schema:
        """Return the columns of a file as they are read: of a JSON Lines file the wanted keys."""
        if partition not in self._columns:
            is_jsonl = self.format(partition) == "jsonl"
            batches = read(
                [self._path(partition)],
                stream=self._source.name,
                format=self._source.format,
                columns=wanted_keys(self._source, self._declared) if is_jsonl else None,
            )
            schemas = (raw.batch.schema for raw in batches)
            if is_jsonl:
                # A key becomes a column in the first batch that has it.
                self._columns[partition] = pa.unify_schemas(list(schemas))
            else:
                self._columns[partition] = next(schemas, pa.schema([]))
        return self._columns[partition]

    def _path(self, partition: int) -> Path:
        if partition >= len(self._paths):
            raise InputError(
                f"source {self._source.name!r} has {len(self._paths)} files, but rejected records "
                f"of file {partition + 1}: the source has changed. Read it again: tidemill backfill"
            )
        return self._paths[partition]


def wanted_keys(source: Source, declared: Sequence[str]) -> Sequence[str] | None:
    """Return the keys that a source's JSON Lines are read for; None if its transform sees all."""
    return declared if source.transform is None else None


def log_end(log: Log, definition: EventStream | Request, partition: int) -> tuple[int, int]:
    """Return the highest accepted time of a partition, and the arrival of its last row.

    Raises:
        InputError: The source was never ingested.
    """
    columns = log.read(definition.name, partition, [definition.time_column, RECEIVED])
    times, received = map(hashing.bits, one_batch(columns).columns)
    return (int(times.max()), int(received.max())) if len(times) else (TIME_MIN, TIME_MIN)
