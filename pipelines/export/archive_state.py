"""What an archive has at one moment, beside a process that writes it.

The manifest is replaced as a whole, so reading it gives one moment. Its files may be gone when they
are copied: a day was put together, removed by age, or emptied of an entity. Then the moment has
passed, and the next one is read; a file is damaged if nobody can write the archive meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedFile, StateMismatch
from tidemill.pipelines.archive.manifest import (
    MANIFEST,
    ArchiveFile,
    ArchiveManifest,
    SourceArchive,
)
from tidemill.pipelines.archive.parquet_files import MEND
from tidemill.serving.files.atomic_write import atomic_write

_CHUNK: Final = 1 << 20


def read_archive(folder: Path) -> ArchiveManifest | None:
    """Read what an archive has now; None if nothing was ever archived.

    A day whose files are being exchanged has the files that its folder has.

    Raises:
        DamagedState: The manifest is damaged.
        StateVersionError: Its version is not supported.
    """
    manifest = ArchiveManifest.read(folder)
    if manifest is None or (begun := manifest.exchange) is None:
        return manifest
    source = manifest.sources[begun.source]
    day = folder / begun.source / f"day={begun.day}"
    if {path.name for path in day.glob("*.parquet")} != {
        Path(one.name).name for one in begun.files
    }:
        return manifest
    kept = [one for one in source.files if one.day != begun.day]
    files = sorted([*kept, *begun.files], key=lambda one: (one.day, one.partition, one.first))
    return manifest.with_source(begun.source, dataclasses.replace(source, files=files))


def check_settled(folder: Path) -> None:
    """Check that no exchange of a day was killed between two renames; nobody may write meanwhile.

    Raises:
        StateMismatch: The day's folder is missing.
    """
    manifest = ArchiveManifest.read(folder)
    begun = None if manifest is None else manifest.exchange
    if begun is not None and not (folder / begun.source / f"day={begun.day}").exists():
        raise StateMismatch(
            f"{folder}: files of {begun.day} were being exchanged when `tidemill archive` was "
            "killed; run it again, and this command afterwards"
        )


def copy_file(archive: Path, source: str, file: ArchiveFile, target: Path) -> None:
    """Copy a file of an archive, whole; it has survived a crash of the machine when this returns.

    Args:
        archive: The folder of the archive.
        source: The name of the source.
        file: The file.
        target: Where the copy goes; its folder is made.

    Raises:
        DamagedFile: The file is missing, or has other bytes.
        FileError: The copy cannot be written, or the file not be read.
    """
    path = archive / source / file.name
    try:
        reading = path.open("rb")
    except FileNotFoundError:
        raise DamagedFile(f"{path}: it is missing; {MEND}") from None
    digest = hashlib.sha256()
    with reading, atomic_write(target, durable=True) as unfinished:
        with unfinished.open("wb") as writing:
            while chunk := reading.read(_CHUNK):
                digest.update(chunk)
                writing.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise DamagedFile(f"{path}: it was changed after it was written; {MEND}")


def check_export_of(
    folder: Path, manifest: ArchiveManifest | None, project: str, exported: Mapping[str, object]
) -> Mapping[str, SourceArchive]:
    """Check that an archive is that of a project, and has the sources that were exported of it.

    Args:
        folder: The folder of the archive.
        manifest: What the archive has.
        project: The name of the project.
        exported: By the names of sources: what was exported before.

    Returns:
        The sources of the archive, by name.

    Raises:
        StateMismatch: It is another project's, or has lost a source.
    """
    if manifest is not None and manifest.project != project:
        raise StateMismatch(
            f"{folder} is the archive of project {manifest.project!r}, this is {project!r}: name "
            "another folder (archive.folder)"
        )
    sources = {} if manifest is None else manifest.sources
    if lost := sorted(exported.keys() - sources.keys()):
        missing = f"it has no {MANIFEST}" if manifest is None else f"it has no source {lost[0]!r}"
        raise StateMismatch(
            f"{folder}: {missing}, and the export has the table {lost[0]!r}: bring the archive "
            "back, or export to another folder (--to)"
        )
    return sources
