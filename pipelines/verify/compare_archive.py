"""Comparing the archive with the live log: its files, and every row of theirs.

What retention has removed cannot be compared any more: it is counted and said. The digest of all
rows that were ever archived is compared with the log still.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.features.errors import DamagedFile, StateError
from tidemill.pipelines.archive.archiving import WORK
from tidemill.pipelines.archive.manifest import (
    MANIFEST,
    ArchiveFile,
    ArchiveManifest,
    SourceArchive,
)
from tidemill.pipelines.archive.parquet_files import (
    archive_rows,
    archive_schema,
    fault_of,
    read_file,
)
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_rows import LiveRows, find_live_rows
from tidemill.pipelines.io.log import conformed
from tidemill.pipelines.run.progress import Progress, StageProgress
from tidemill.pipelines.verify.findings import Findings, Mismatch

FIGURES: Final = ("archive_rows", "archive_removed_rows", "archive_behind", "archive_mismatches")


def compare_archive(
    config: Configuration, progress: Progress, findings: Findings
) -> Mapping[str, int]:
    """Compare the archive with the live log of the current generation.

    A stream may add to both meanwhile: what it has not archived yet is counted, and no mismatch.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        findings: Takes the mismatches.

    Returns:
        The figures.
    """
    if config.archive is None:
        return dict.fromkeys(FIGURES, 0)
    folder = config.archive.folder
    while True:
        mine = Findings()
        try:
            manifest = ArchiveManifest.read(folder)
            figures = _compare(config, folder, manifest, progress, mine)
            if ArchiveManifest.read(folder) != manifest:
                continue  # a stream has archived something, and may have exchanged files
        except StateError as error:
            figures = dict.fromkeys(FIGURES, 0)
            mine.add(Mismatch("archive", str(folder / MANIFEST), cause=str(error)))
        findings.merge(mine)
        return {**figures, "archive_mismatches": mine.count}


def _compare(
    config: Configuration,
    folder: Path,
    manifest: ArchiveManifest | None,
    progress: Progress,
    findings: Findings,
) -> dict[str, int]:
    figures = dict.fromkeys(FIGURES, 0)
    live = find_live_rows(config.current, config.project)
    if live is None:
        if manifest is not None:
            cause = "there is no live log that it could have been made from"
            findings.add(Mismatch("archive", str(folder), seen="an archive", cause=cause))
        return figures
    if manifest is None:
        manifest = ArchiveManifest(config.project.name)
    total = sum(one.stop - one.first for of in manifest.sources.values() for one in of.files)
    with progress.stage("compare the archive", total, "rows") as stage:
        for name in sorted({*manifest.sources, *live.topics}):
            stage.note(name)
            source = manifest.sources.get(name) or SourceArchive("", ())
            _compare_source(config, folder, name, source, live, stage, findings)
            figures["archive_rows"] += sum(one.stop - one.first for one in source.files)
            figures["archive_removed_rows"] += sum(one.stop - one.first for one in source.removed)
            figures["archive_behind"] += sum(live.lengths(name)) - sum(source.archived)
    _note_strangers(folder, manifest, findings)
    if figures["archive_removed_rows"]:
        progress.say(
            f"{figures['archive_removed_rows']:,} rows of {folder} were removed by age: only their "
            "digest is compared with the live log"
        )
    if figures["archive_behind"] > 0:
        progress.say(
            f"{figures['archive_behind']:,} live rows are not in {folder} yet; run "
            "`tidemill archive`, if no stream does"
        )
    return figures


def _compare_source(
    config: Configuration,
    folder: Path,
    name: str,
    source: SourceArchive,
    live: LiveRows,
    stage: StageProgress,
    findings: Findings,
) -> None:
    lengths, whole = live.lengths(name), True
    for partition, rows in enumerate(source.archived):
        digest = None
        if partition < len(lengths) and rows <= lengths[partition]:
            digest = live.log.digest_below(name, live.topics[name].first + partition, rows)
        if digest != source.digests[partition]:
            whole = False
            findings.add(
                Mismatch(
                    "archive", f"{folder}: {name}, partition {partition}",
                    seen=f"{rows:,} rows with digest {source.digests[partition]}",
                    expected=digest or f"at most {sum(lengths[partition : partition + 1]):,} rows",
                    cause="it is the archive of another live log, or its manifest was changed",
                )
            )  # fmt: skip
        _compare_extent(folder, name, source, partition, findings)
    for one in source.files:
        path = folder / name / one.name
        if (fault := fault_of(path, one)) is not None:
            findings.add(Mismatch("archive", str(path), expected=one.sha256, cause=fault))
        elif whole:
            _compare_rows(config, path, name, one, live, findings)
        stage.advance(one.stop - one.first)


def _compare_extent(
    folder: Path, name: str, source: SourceArchive, partition: int, findings: Findings
) -> None:
    """Check that files and removed ones have each row of a partition once."""
    at, is_once = 0, True
    for first, stop in sorted(
        (one.first, one.stop)
        for one in (*source.files, *source.removed)
        if one.partition == partition
    ):
        is_once &= first == at < stop
        at = stop
    if not is_once or at != source.archived[partition]:
        findings.add(
            Mismatch(
                "archive", f"{folder}: {name}, partition {partition}", feature="files",
                seen="files that do not follow each other",
                expected=f"each of {source.archived[partition]:,} rows once",
                cause="the manifest was changed",
            )
        )  # fmt: skip


def _compare_rows(
    config: Configuration,
    path: Path,
    name: str,
    file: ArchiveFile,
    live: LiveRows,
    findings: Findings,
) -> None:
    definition, at = config.project.definition(name), file.first
    try:
        for found in read_file(path):
            stop = min(at + found.num_rows, file.stop)
            batches = live.batches(name, file.partition, at, stop)
            parts = [archive_rows(definition, file.partition, rows) for rows, _ in batches]
            right = pa.Table.from_batches(parts, archive_schema(definition))
            # A file that was written before a column was there has none of its values.
            if not pa.Table.from_batches([conformed(found, definition.schema)]).equals(right):
                break
            at = stop
    except (DamagedFile, pa.ArrowInvalid) as error:
        findings.add(Mismatch("archive", str(path), feature="rows", cause=str(error)))
        return
    if at != file.stop:
        findings.add(
            Mismatch(
                "archive", str(path), feature="rows", seen=f"other rows from position {at:,} on",
                expected="the rows of the live log", cause="file and manifest were replaced",
            )
        )  # fmt: skip


def _note_strangers(folder: Path, manifest: ArchiveManifest, findings: Findings) -> None:
    """Note files that a reader of the folder would take for files of the archive."""
    known = {folder / name / one.name for name, of in manifest.sources.items() for one in of.files}
    for path in sorted(folder.glob("*/**/*")):
        if path.is_file() and path not in known and path.relative_to(folder).parts[0] != WORK:
            cause = "the manifest does not name it; who reads the folder reads it, too"
            findings.add(Mismatch("archive", str(path), seen="a file", cause=cause))
