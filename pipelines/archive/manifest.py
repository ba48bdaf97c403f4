"""The manifest of an archive, ``_tidemill.json``: which files are part of it.

It is replaced as a whole. A file that it does not name is no part of the archive: it was written by
a process that was killed, or has been superseded, and the next one removes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tidemill.features.contract import DAY
from tidemill.serving.files.records import RecordFormat, read_record, write_record

MANIFEST: Final = "_tidemill.json"
"""Readers of Hive-partitioned folders leave out names that begin with an underscore."""
_FORM: Final = RecordFormat(
    name="tidemill-archive",
    version=1,
    fields=frozenset({"project", "sources", "exchange"}),
    remedy="restore it from a copy, or name another folder (archive.folder), which `tidemill "
    "archive` fills from the live log",
)


@dataclass(frozen=True)
class ArchiveFile:
    """A file of the archive: successive rows of a partition of a topic, received on one day.

    Attributes:
        day: The day, ``YYYY-MM-DD`` in UTC.
        partition: The partition of the topic.
        first: The position of its first row.
        stop: The position after its last row.
        size: Its bytes.
        sha256: The SHA-256 of its bytes.
    """

    day: str
    partition: int
    first: int
    stop: int
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Its path below the folder of its source."""
        return f"day={self.day}/{file_name(self.partition, self.first, self.stop)}"


def file_name(partition: int, first: int, stop: int) -> str:
    """Return the name of a file with the rows ``[first, stop)`` of a partition."""
    return f"{partition:05d}-{first:012d}-{stop:012d}.parquet"


def day_end_us(day: str) -> int:
    """Return the instant at which a day ends, in microseconds."""
    return (int(np.datetime64(day, "D").astype(np.int64)) + 1) * DAY


@dataclass(frozen=True)
class SourceArchive:
    """What the archive has of a source.

    Attributes:
        topic: Its topic.
        columns: The declared columns, in order: name and dtype.
        archived: How many rows of each partition of the topic were archived; those of removed days
            count.
        digests: The digest of these rows of each partition (`pipelines.io.log.Log.digest_below`).
        files: The files, by day, partition and position.
        removed: Files that were removed by age.
    """

    topic: str
    columns: Sequence[Sequence[str]]
    archived: Sequence[int] = ()
    digests: Sequence[str] = ()
    files: Sequence[ArchiveFile] = ()
    removed: Sequence[ArchiveFile] = ()

    @staticmethod
    def read(content: Mapping[str, Any]) -> SourceArchive:
        """Read what `dataclasses.asdict` gave."""
        kinds = ("files", "removed")
        files = {name: tuple(ArchiveFile(**one) for one in content[name]) for name in kinds}
        return SourceArchive(**{**content, **files})


@dataclass(frozen=True)
class Exchange:
    """A day whose files are about to be exchanged for fewer ones.

    Attributes:
        source: The source.
        day: The day.
        files: The files that the day will have.
    """

    source: str
    day: str
    files: Sequence[ArchiveFile]


@dataclass(frozen=True)
class ArchiveManifest:
    """The manifest of an archive.

    Attributes:
        project: The name of the project.
        sources: By name of the source.
        exchange: The exchange that has begun; None if there is none.
    """

    project: str
    sources: Mapping[str, SourceArchive] = field(default_factory=dict)
    exchange: Exchange | None = None

    def with_source(self, name: str, source: SourceArchive) -> ArchiveManifest:
        """Return the manifest with another state of a source, and without an exchange."""
        return dataclasses.replace(self, sources={**self.sources, name: source}, exchange=None)

    def write(self, folder: Path) -> None:
        """Write it into the folder of the archive, and wait for the disk."""
        write_record(folder / MANIFEST, _FORM, dataclasses.asdict(self), durable=True)

    @staticmethod
    def read(folder: Path) -> ArchiveManifest | None:
        """Read the manifest of an archive; None if there is none.

        Raises:
            DamagedState: It is damaged.
            StateVersionError: Its version is not supported.
        """
        if not (folder / MANIFEST).exists():
            return None
        found = read_record(folder / MANIFEST, _FORM)
        exchange = found["exchange"]
        if exchange is not None:
            files = tuple(ArchiveFile(**one) for one in exchange["files"])
            exchange = Exchange(exchange["source"], exchange["day"], files)
        sources = {name: SourceArchive.read(one) for name, one in found["sources"].items()}
        return ArchiveManifest(found["project"], sources, exchange)
