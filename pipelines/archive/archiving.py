"""Bringing an archive up to what is sealed, over whatever was killed before.

* Rows are written in the order of their positions, so how far a partition is archived is one number
  in the manifest. The manifest is replaced once all new files are on the disk.
* What a killed process has left is removed or finished first: files that the manifest does not
  name, and an exchange of a day's files that had begun.
* Days that are over are compacted: one file for each partition. The folder of the day is exchanged
  as a whole (`pipelines.archive.exchange`): whoever lists it finds each row once.
* With ``archive.keep``, days whose end is so long before the last receipt are removed. The manifest
  keeps the digests of their files.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import DAY
from tidemill.features.definitions import EventStream, Request, Schema, has_grown
from tidemill.features.errors import DamagedFile, DamagedState, StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.archive.exchange import exchange
from tidemill.pipelines.archive.manifest import (
    MANIFEST,
    ArchiveFile,
    ArchiveManifest,
    Exchange,
    SourceArchive,
    day_end_us,
)
from tidemill.pipelines.archive.parquet_files import (
    MEND,
    archive_rows,
    fault_of,
    read_file,
    write_file,
)
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.io.log import POSITION, conformed
from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.locks import lock

WORK: Final = "_work"
"""The folder of files that are no part of the archive yet, or no more."""
LOCK: Final = "_lock"
"""The file that whoever writes the archive locks."""
_FILES: Final = "day=*/[0-9]*-[0-9]*-[0-9]*.parquet"
_ANOTHER: Final = (
    "it is the archive of another root, or the live log has begun anew: name another folder "
    "(archive.folder)"
)


@dataclass
class Archived:
    """What was done.

    Attributes:
        rows: Rows that were added, by source.
        files: Files that were added.
        compacted: Days of a source whose files were put together.
        removed: Rows that were removed by age, by source.
    """

    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0
    compacted: int = 0
    removed: dict[str, int] = field(default_factory=dict)

    def as_figures(self) -> dict[str, Any]:
        """Return the figures for a summary."""
        return dataclasses.asdict(self)


def bring_up(config: Configuration, archive: Archive, live: LiveRows) -> Archived:
    """Add all sealed rows that an archive does not have; compact and remove days.

    Args:
        config: The configuration.
        archive: The archive.
        live: The live rows.

    Raises:
        Locked: Another process writes the archive.
        StateMismatch: The archive has other rows than the live log, or its manifest is gone.
        DamagedFile: A file of the archive is damaged, or the live log is.
        FileError: The disk is full, ...; what the archive had stays.
    """
    with named_for(archive.folder):
        archive.folder.mkdir(parents=True, exist_ok=True)
        with lock(archive.folder / LOCK, "write this archive"):
            return _Archiving(config, archive, live).run()


class _Archiving:
    """Brings an archive up once."""

    def __init__(self, config: Configuration, archive: Archive, live: LiveRows) -> None:
        self._project, self._archive, self._live = config.project, archive, live
        self._folder, self._work = archive.folder, archive.folder / WORK
        self._done = Archived()
        found = ArchiveManifest.read(self._folder)
        if found is None:
            if others := sorted(
                path.name for path in self._folder.iterdir() if path.name not in (WORK, LOCK)
            ):
                raise StateMismatch(
                    f"{self._folder} has files, such as {others[0]}, and no {MANIFEST}: restore "
                    "that from a copy if it is an archive, or name a folder of its own "
                    "(archive.folder)"
                )
            found = ArchiveManifest(self._project.name)
            found.write(self._folder)
        self._manifest = found

    def run(self) -> Archived:
        self._check()
        self._recover()
        for name in sorted(self._live.topics):
            self._add(name)
        for name in sorted(self._manifest.sources):
            self._compact(name)
            self._expire(name)
        shutil.rmtree(self._work, ignore_errors=True)
        return self._done

    def _check(self) -> None:
        """Check that the archive has the first rows of this live log."""
        if self._manifest.project != self._project.name:
            raise StateMismatch(
                f"{self._folder} is the archive of project {self._manifest.project!r}, this is "
                f"{self._project.name!r}: name another folder (archive.folder)"
            )
        for name, source in self._manifest.sources.items():
            topic = self._live.topics.get(name)
            if topic is None or topic.topic != source.topic:
                now = "no topic" if topic is None else f"topic {topic.topic!r}"
                raise StateMismatch(
                    f"{self._folder} has rows of {name!r} from topic {source.topic!r}, and the "
                    f"live log has {now}: {_ANOTHER}"
                )
            if not has_grown({one[0]: one[1] for one in source.columns}, self._columns(name)):
                raise StateMismatch(
                    f"{self._folder} has other columns of {name!r} than the live log: {_ANOTHER}"
                )
            for partition, digest in enumerate(source.digests):
                rows = source.archived[partition]
                if self._digest(name, partition, rows) != digest:
                    raise StateMismatch(
                        f"{self._folder}: the first {rows:,} rows of partition {partition} of "
                        f"{name!r} are not those of the live log: {_ANOTHER}"
                    )

    def _columns(self, name: str) -> Schema:
        return self._project.definition(name).schema

    def _digest(self, name: str, partition: int, position: int) -> str | None:
        lengths = self._live.lengths(name)
        if partition >= len(lengths) or position > lengths[partition]:
            return None
        first = self._live.topics[name].first
        return self._live.log.digest_below(name, first + partition, position)

    def _recover(self) -> None:
        """Finish or remove what a process that was killed has left."""
        if (begun := self._manifest.exchange) is not None:
            day = f"{begun.source}/day={begun.day}"
            new, old = self._work / day, self._folder / day
            if not old.exists():  # between two renames
                new.rename(old)
            source = self._manifest.sources[begun.source]
            if {path.name for path in old.glob("*.parquet")} == {
                Path(one.name).name for one in begun.files
            }:
                source = _with_day(source, begun.day, begun.files)
            self._write(begun.source, source)
        shutil.rmtree(self._work, ignore_errors=True)
        for name, source in self._manifest.sources.items():
            known = {self._folder / name / one.name for one in source.files}
            for path in (self._folder / name).glob(_FILES):
                if path not in known:
                    path.unlink()

    def _write(self, name: str, source: SourceArchive) -> None:
        self._manifest = self._manifest.with_source(name, source)
        self._manifest.write(self._folder)

    def _add(self, name: str) -> None:
        """Add the rows of a source that are sealed and not archived."""
        definition, topic = self._project.definition(name), self._live.topics[name]
        columns = list(self._columns(name).items())
        source = self._manifest.sources.get(name) or SourceArchive(topic.topic, columns)
        lengths, files = self._live.lengths(name), list(source.files)
        archived = [*source.archived, *[0] * (len(lengths) - len(source.archived))]
        for partition, stop in enumerate(lengths):
            if stop > archived[partition]:
                files += self._add_partition(definition, partition, archived[partition], stop)
        is_known = name in self._manifest.sources and [*map(tuple, source.columns)] == columns
        if sum(lengths) == sum(archived) and is_known:
            return
        for folder in {(self._folder / name / one.name).parent for one in files}:
            wait_for_disk(folder)
        if (self._folder / name).exists():
            wait_for_disk(self._folder / name)
        wait_for_disk(self._folder)
        digests = [str(self._digest(name, n, stop)) for n, stop in enumerate(lengths)]
        files.sort(key=lambda one: (one.day, one.partition, one.first))
        self._done.rows[name] = sum(lengths) - sum(archived)
        self._done.files += len(files) - len(source.files)
        self._write(
            name,
            dataclasses.replace(
                source, columns=columns, archived=lengths, digests=digests, files=files
            ),
        )

    def _add_partition(
        self, definition: EventStream | Request, partition: int, first: int, stop: int
    ) -> Iterator[ArchiveFile]:
        """Write the rows ``[first, stop)`` of a partition, a file for each day."""
        name = definition.name
        for day, start, end in self._days(name, partition, first, stop):
            rows = (
                archive_rows(definition, partition, batch)
                for batch, _ in self._live.batches(name, partition, start, end)
            )
            written = write_file(self._work / "new", definition, day, partition, start, end, rows)
            target = self._folder / name / written.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._work / "new" / target.name).rename(target)
            yield written

    def _days(
        self, name: str, partition: int, first: int, stop: int
    ) -> Iterator[tuple[str, int, int]]:
        """Cut rows by the day of their receipt: the day, the first position and the one after."""
        at, day = first, None
        for rows, received in self._live.batches(name, partition, first, stop):
            positions = hashing.bits(rows.column(POSITION))
            days = received // DAY
            before_us = np.concatenate([days[:1] if day is None else [day], days[:-1]])
            changes = np.flatnonzero(days != before_us)
            for place in changes.tolist():
                before = int(days[place - 1]) if place else int(day or 0)
                yield str(np.datetime64(before, "D")), at, int(positions[place])
                at = int(positions[place])
            day = int(days[-1])
        if day is not None:
            yield str(np.datetime64(day, "D")), at, stop

    def _compact(self, name: str) -> None:
        """Put the files of days that are over together: one for each partition."""
        until_us = self._live.read_until_us
        days: dict[str, list[ArchiveFile]] = {}
        for one in self._manifest.sources[name].files:
            days.setdefault(one.day, []).append(one)
        for day, files in days.items():
            of_partition: dict[int, list[ArchiveFile]] = {}
            for one in files:
                of_partition.setdefault(one.partition, []).append(one)
            is_over = until_us is not None and day_end_us(day) <= until_us
            folder = self._folder / name / f"day={day}"
            # A file of somebody else would go with the folder; the proof names it.
            is_ours = {path.name for path in folder.iterdir()} == {
                Path(one.name).name for one in files
            }
            if is_over and is_ours and len(of_partition) < len(files):
                self._compact_day(name, day, of_partition)

    def _compact_day(self, name: str, day: str, of_partition: dict[int, list[ArchiveFile]]) -> None:
        work, folder = self._work / name / f"day={day}", self._folder / name / f"day={day}"
        shutil.rmtree(work, ignore_errors=True)
        definition = self._project.definition(name)
        made = []
        for partition, files in sorted(of_partition.items()):
            for before, after in itertools.pairwise(files):
                if before.stop != after.first:
                    raise DamagedState(
                        f"{self._folder / MANIFEST}: there are no rows {before.stop} to "
                        f"{after.first} of partition {partition} of {name!r}"
                    )
            rows = (
                batch for one in files for batch in self._checked(folder, one, definition.schema)
            )
            first, stop = files[0].first, files[-1].stop
            made.append(write_file(work, definition, day, partition, first, stop, rows))
        self._manifest = dataclasses.replace(
            self._manifest, exchange=Exchange(name, day, tuple(made))
        )
        self._manifest.write(self._folder)
        exchange(work, folder)
        self._write(name, _with_day(self._manifest.sources[name], day, made))
        shutil.rmtree(work)
        self._done.compacted += 1

    def _checked(
        self, folder: Path, file: ArchiveFile, columns: Schema
    ) -> Iterator[pa.RecordBatch]:
        """Read a file, once its bytes are those that were written, with the columns of today."""
        path = folder / Path(file.name).name
        if (fault := fault_of(path, file)) is not None:
            raise DamagedFile(f"{path}: {fault}; {MEND}")
        for rows in read_file(path):
            yield conformed(rows, columns)

    def _expire(self, name: str) -> None:
        """Remove days that are older than they are to be kept."""
        until_us, keep_us = self._live.read_until_us, self._archive.keep_us
        if until_us is None or keep_us is None:
            return
        source = self._manifest.sources[name]
        gone = [one for one in source.files if day_end_us(one.day) <= until_us - keep_us]
        if not gone:
            return
        left = [one for one in source.files if one not in gone]
        # First the record: a file that it does not name is removed by whoever comes next.
        self._write(name, dataclasses.replace(source, files=left, removed=[*source.removed, *gone]))
        for one in gone:
            (self._folder / name / one.name).unlink(missing_ok=True)
        for folder in {(self._folder / name / one.name).parent for one in gone}:
            if not any(folder.iterdir()):
                folder.rmdir()
        self._done.removed[name] = sum(one.stop - one.first for one in gone)


def _with_day(source: SourceArchive, day: str, files: Any) -> SourceArchive:
    """Return a source with other files of a day."""
    kept = [one for one in source.files if one.day != day]
    found = sorted([*kept, *files], key=lambda one: (one.day, one.partition, one.first))
    return dataclasses.replace(source, files=found)
