"""An archive of one source that a test writes as it likes, through the archive's own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.contract import DAY
from tidemill.features.definitions import EventStream
from tidemill.pipelines.archive.archiving import WORK
from tidemill.pipelines.archive.exchange import exchange
from tidemill.pipelines.archive.manifest import (
    ArchiveFile,
    ArchiveManifest,
    Exchange,
    SourceArchive,
    file_name,
)
from tidemill.pipelines.archive.parquet_files import archive_schema, write_file

FIRST_DAY = 19_676 * DAY
"""The day 2023-11-15."""


@dataclass
class WrittenArchive:
    """An archive of rows of one source.

    Attributes:
        folder: Its folder.
        definition: The source.
        project: The name of the project.
        ends: The position after the last row of each partition.
    """

    folder: Path
    definition: EventStream
    project: str = "shop"
    ends: dict[int, int] = field(default_factory=dict)

    def add(
        self, rows: Sequence[Mapping[str, Any]], day: int = 0, partition: int = 0
    ) -> ArchiveFile:
        """Add rows of a day as a file, as a savepoint does."""
        first = self.ends.get(partition, 0)
        stop = self.ends[partition] = first + len(rows)
        places = [
            {
                **row,
                "_partition": partition,
                "_position": first + at,
                "_received": FIRST_DAY + day * DAY + (first + at) * 1_000_001,
            }
            for at, row in enumerate(rows)
        ]
        return self._write([*self.source.files], pa.Table.from_pylist(places, self.schema), stop)

    def compact(self, day: int = 0) -> None:
        """Put the files of a day together, as the archive does when a day is over."""
        source, name = self.source, self.definition.name
        text = _day_text(day)
        work, folder = self.folder / WORK / name, self.folder / name / f"day={text}"
        made = []
        files = [one for one in source.files if one.day == text]
        for partition in sorted({one.partition for one in files}):
            mine = [one for one in files if one.partition == partition]
            rows = pa.concat_tables(self.rows_of(one) for one in mine).to_batches()
            span = (mine[0].first, mine[-1].stop)
            made.append(write_file(work, self.definition, text, partition, *span, rows))
        manifest = replace(self.manifest, exchange=Exchange(name, text, tuple(made)))
        manifest.write(self.folder)
        exchange(work, folder)
        kept = [one for one in source.files if one.day != text]
        self._put(replace(source, files=[*kept, *made]))

    def empty(self, file: ArchiveFile, *columns: str) -> ArchiveFile:
        """Write a file again with columns that are empty, as it is done when one forgets."""
        rows = self.rows_of(file)
        for column in columns:
            at = rows.schema.get_field_index(column)
            rows = rows.set_column(at, rows.schema.field(at), pa.nulls(len(rows), rows[at].type))
        others = [one for one in self.source.files if one != file]
        return self._write(others, rows, file.stop)

    def remove(self, file: ArchiveFile) -> None:
        """Remove a file, as it is done by age."""
        source = self.source
        self._put(replace(source, files=[one for one in source.files if one != file]))
        (self.folder / self.definition.name / file.name).unlink()

    @property
    def schema(self) -> pa.Schema:
        return archive_schema(self.definition)

    @property
    def manifest(self) -> ArchiveManifest:
        return ArchiveManifest.read(self.folder) or ArchiveManifest(self.project)

    @property
    def source(self) -> SourceArchive:
        none = SourceArchive("topic", list(self.definition.schema.items()))
        return self.manifest.sources.get(self.definition.name, none)

    def rows_of(self, file: ArchiveFile) -> pa.Table:
        return pq.ParquetFile(self.folder / self.definition.name / file.name).read()

    def write_empty(self) -> None:
        """Write the manifest of a source that has no rows yet."""
        self._put(self.source)

    def _write(self, others: list[ArchiveFile], rows: pa.Table, stop: int) -> ArchiveFile:
        at_us = rows["_received"].cast(pa.int64())[0].as_py()
        partition, first = rows["_partition"][0].as_py(), rows["_position"][0].as_py()
        day = _day_text((at_us - FIRST_DAY) // DAY)
        work = self.folder / WORK / "new"
        given = (self.definition, day, partition, first, stop, rows.to_batches())
        made = write_file(work, *given)
        target = self.folder / self.definition.name / made.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (work / file_name(partition, first, stop)).replace(target)
        self._put(replace(self.source, files=[*others, made]))
        return made

    def _put(self, source: SourceArchive) -> None:
        files = sorted(source.files, key=lambda one: (one.day, one.partition, one.first))
        source = replace(source, files=files)
        self.manifest.with_source(self.definition.name, source).write(self.folder)


def _day_text(day: int) -> str:
    return str(pa.scalar(FIRST_DAY // DAY + day, pa.date32()).as_py())
