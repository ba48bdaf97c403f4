"""Blanking the rows of the archive: its files have the rows that the live log has.

A file is written again from the blanked live log, under its name, with a new digest in the
manifest. The archive's folder may be on another disk than the root, and programs list it, so what
is written waits in the archive's own work folder, in a linked copy, until the plan moves it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tidemill.features.errors import DamagedFile, StateMismatch
from tidemill.pipelines.archive.archiving import WORK
from tidemill.pipelines.archive.manifest import MANIFEST, ArchiveManifest, SourceArchive
from tidemill.pipelines.archive.parquet_files import MEND, archive_rows, fault_of, write_file
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.linked_copy import LinkedCopy
from tidemill.pipelines.forget.rewrite_logs import Blanked
from tidemill.pipelines.ingest.live_rows import LiveRows

FORGETTING = "forgetting"
"""Below the work folder of the archive: the linked copy."""


def copy_of_archive(config: Configuration) -> LinkedCopy | None:
    """Return the copy of an archive, which is not made yet; None if there is no archive."""
    archive = config.archive
    if archive is None or not (archive.folder / MANIFEST).exists():
        return None
    manifest = ArchiveManifest.read(archive.folder)
    assert manifest is not None
    names = [MANIFEST, *manifest.sources]
    return LinkedCopy(archive.folder, archive.folder / WORK / FORGETTING, names)


def check_archive(config: Configuration, live: LiveRows | None) -> None:
    """Check that an archive has the rows of the live log, before any of them is blanked.

    Raises:
        StateMismatch: It is the archive of another live log, or an exchange of files was killed.
        DamagedFile: A file was changed after it was written.
    """
    assert config.archive is not None
    folder = config.archive.folder
    manifest = ArchiveManifest.read(folder)
    assert manifest is not None
    if manifest.exchange is not None:
        raise StateMismatch(
            f"{folder}: files of a day were being exchanged when `tidemill archive` was killed; "
            "run it again, and this command afterwards"
        )
    for name, source in manifest.sources.items():
        for partition, rows in enumerate(source.archived):
            digest = None
            if live is not None and name in live.topics and rows <= live.lengths(name)[partition]:
                first = live.topics[name].first
                digest = live.log.digest_below(name, first + partition, rows)
            if digest != source.digests[partition]:
                raise StateMismatch(
                    f"{folder}: the rows of partition {partition} of {name!r} are not those of "
                    "the live log, so they cannot be forgotten with it; run `tidemill verify` to "
                    "see what differs"
                )
        for one in source.files:
            path = folder / name / one.name
            if (fault := fault_of(path, one)) is not None:
                raise DamagedFile(f"{path}: {fault}; {MEND}")


def rewrite_archive(
    config: Configuration, copy: LinkedCopy, live: LiveRows, blanked: Blanked
) -> int:
    """Blank the rows of an archive in its copy; return how many.

    Args:
        config: The configuration.
        copy: The copy of the archive.
        live: The live rows, blanked.
        blanked: What was blanked.
    """
    manifest = ArchiveManifest.read(copy.folder)
    assert manifest is not None
    count = 0
    for name, source in manifest.sources.items():
        new, rows = _rewrite_source(config, copy.folder / name, name, source, live, blanked)
        if new != source:
            manifest = manifest.with_source(name, new)
            count += rows
    manifest.write(copy.folder)
    return count


def _rewrite_source(
    config: Configuration,
    folder: Path,
    name: str,
    source: SourceArchive,
    live: LiveRows,
    blanked: Blanked,
) -> tuple[SourceArchive, int]:
    definition, first = config.project.definition(name), live.topics[name].first
    files, count = [], 0
    for one in source.files:
        found = blanked.positions.get((name, first + one.partition), set())
        mine = sum(one.first <= position < one.stop for position in found)
        if mine:
            rows = (
                archive_rows(definition, one.partition, batch)
                for batch, _ in live.batches(name, one.partition, one.first, one.stop)
            )
            day = folder / f"day={one.day}"
            one = write_file(day, definition, one.day, one.partition, one.first, one.stop, rows)
            count += mine
        files.append(one)
    digests = [
        str(live.log.digest_below(name, first + partition, rows))
        for partition, rows in enumerate(source.archived)
    ]
    return dataclasses.replace(source, files=tuple(files), digests=digests), count
