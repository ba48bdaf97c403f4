"""Exporting the archive of a project as Delta tables, over whatever was killed before.

* A table of each source, in a folder of its name. What a table should have is what the manifest of
  the archive names; what it has is read from the table itself, and the difference is one commit.
  There is no number of a last run that could be wrong: a repeat finds nothing to do.
* Files are copied before the commit, whole, and their digests are checked on the way.
* After the commit all files that the table no longer names are removed from the disk, also those of
  runs that were killed. So what was forgotten in the archive is gone from the export, too.
* A table that has something else than this export has written is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.features.errors import DamagedFile, DamagedState, InputError, StateMismatch
from tidemill.pipelines.archive.archiving import LOCK as ARCHIVE_LOCK
from tidemill.pipelines.archive.manifest import ArchiveFile, SourceArchive
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export import delta_table
from tidemill.pipelines.export.archive_state import (
    check_export_of,
    check_settled,
    copy_file,
    read_archive,
)
from tidemill.pipelines.export.delta_table import DAY, TableVersion
from tidemill.pipelines.export.export_record import (
    LOCK,
    ExportRecord,
    TableRecord,
    TableState,
    check_folder,
    remove_unfinished,
)
from tidemill.pipelines.export.exported_files import (
    added_file,
    check_columns,
    check_grown,
    exported_name,
    has_columns,
    remove_files,
    table_schema,
    unnamed_files,
    with_columns,
)
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.run.progress import Progress, StageProgress
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.locks import lock


@dataclass
class ExportedTable:
    """What was done to a table.

    Attributes:
        version: Its version now.
        rows: Its rows now.
        files: Its files now.
        added: Files that the commit has added.
        removed: Files that the commit has removed.
        restored: Files that the table had and the disk had not; they were copied again.
        deleted: Files that the table does not name, and that were removed from the disk.
    """

    version: int = 0
    rows: int = 0
    files: int = 0
    added: int = 0
    removed: int = 0
    restored: int = 0
    deleted: int = 0


@dataclass
class Exported:
    """What was done.

    Attributes:
        tables: By name of the source.
    """

    tables: dict[str, ExportedTable] = field(default_factory=dict)

    def as_figures(self) -> dict[str, Any]:
        """Return the figures for a summary."""
        return {"tables": [{"table": name, **vars(one)} for name, one in self.tables.items()]}


def export_archive(
    config: Configuration, folder: Path, progress: Progress, *, wait: bool = False
) -> dict[str, Any]:
    """Bring the Delta tables of an archive up to it, as ``tidemill export-archive``.

    Args:
        config: The configuration.
        folder: The folder of the export; it is made.
        progress: Shows progress, and what was removed from the disk.
        wait: Whether to wait for another process that exports to the folder.

    Returns:
        The figures of each table.

    Raises:
        ConfigurationError: deltalake is not installed.
        InputError: The configuration names no archive, the folder cannot be that of an export, or a
            column cannot be exported.
        Locked: Another process exports to the folder.
        StateMismatch: The folder has something else than an export of this root, somebody else has
            changed a table, or the archive is another one.
        DamagedState: The record of the export or the log of a table is damaged.
        DamagedFile: A file of the archive is damaged.
        FileError: The disk is full, ...; the next run completes what was begun.
    """
    if config.archive is None:
        raise InputError(
            f"{config.path} names no archive to export; write `archive: {{folder: archive}}` to "
            "keep the rows of topics there"
        )
    if not config.root.is_dir():  # an id would be made for it, and the export be its own for ever
        raise InputError(
            f"{config.root} is not there, and an export belongs to the root of its archive: name "
            "that (--root), or run `tidemill backfill` first"
        )
    delta_table.check_installed()
    folder = folder.resolve()
    _check_apart(folder, config)
    project, root = config.project.name, root_id(config.root)
    with named_for(folder):
        check_folder(folder, project, root)  # before anything is written there
        folder.mkdir(parents=True, exist_ok=True)
        with (
            lock(folder / LOCK, "export to this folder", wait=wait),
            progress.stage("export-archive", None, "rows") as stage,
        ):
            record = check_folder(folder, project, root)
            exporting = _Exporting(config, config.archive, folder, record, stage)
            done = exporting.run()
    for name, table in done.tables.items():
        if table.deleted:
            progress.say(
                f"{folder / name}: deleted files that the table does not name: {table.deleted:,}"
            )
    return done.as_figures()


def _check_apart(folder: Path, config: Configuration) -> None:
    """Check that an export is neither in the archive or the root, nor has one of them in it."""
    assert config.archive is not None
    for what, other in (("archive", config.archive.folder), ("root", config.root)):
        one, two = folder.resolve(), other.resolve()
        if one == two or one in two.parents or two in one.parents:
            raise InputError(
                f"--to {folder}: the {what} is {other}, and an export needs a folder that is "
                "neither in it nor around it; name another one"
            )


class _Exporting:
    """Brings an export up once."""

    def __init__(
        self,
        config: Configuration,
        archive: Archive,
        folder: Path,
        record: ExportRecord,
        stage: StageProgress,
    ) -> None:
        self._project, self._archive = config.project, archive.folder
        self._folder, self._record, self._stage = folder, record, stage
        self._done = Exported()

    def run(self) -> Exported:
        remove_unfinished(self._folder)
        self._record.write(self._folder)
        try:
            self._export()
        except DamagedFile:
            # Most likely the archive was written meanwhile. What was copied is there, so little is
            # left to be done while nobody may write; what is damaged then is named.
            with lock(self._archive / ARCHIVE_LOCK, "write this archive", wait=True):
                check_settled(self._archive)
                self._export()
        return self._done

    def _export(self) -> None:
        manifest = read_archive(self._archive)
        project, tables = self._project.name, self._record.tables
        for name, source in sorted(
            check_export_of(self._archive, manifest, project, tables).items()
        ):
            with named_for(self._folder / name):
                self._export_source(name, source)

    def _export_source(self, name: str, source: SourceArchive) -> None:
        check_columns(name, source.columns)
        folder, schema = self._folder / name, table_schema(source.columns)
        before = self._find(name)
        if before is not None:
            check_grown(folder, before.schema, schema)
        wanted = dict(self._wanted(name, source, before, schema))
        had = {} if before is None else before.files
        done = self._done.tables.setdefault(name, ExportedTable())
        for path, file in wanted.items():
            if self._copy(name, path, file, source) and path in had:
                done.restored += 1
        added = sorted(wanted.keys() - had.keys())
        removed = sorted(had.keys() - wanted.keys())
        state = TableState.of(None if before is None else before.id, source.columns, wanted)
        after = before
        if before is None or added or removed or not schema.equals(before.schema):
            known = self._record.tables.get(name, TableRecord())
            self._write(name, TableRecord(known.done, state))
            new = [added_file(folder, path, wanted[path]) for path in added]
            said = {"project": self._project.name, "root": self._record.root}
            if before is None:
                folder.mkdir(exist_ok=True)
                after = delta_table.create(folder, name, schema, new, said)
            else:
                after = delta_table.commit(before, schema, new, removed, said)
            done.added, done.removed = done.added + len(added), done.removed + len(removed)
        assert after is not None
        state = TableState.of(after.id, source.columns, wanted)
        if (fault := _difference(after, state)) is not None:
            raise _changed(folder, fault)
        self._write(name, TableRecord(state))
        unnamed = list(unnamed_files(folder, after.files))
        remove_files(unnamed)
        done.version, done.files = after.version, len(after.files)
        done.rows = sum(one.stop - one.first for one in source.files)
        done.deleted += len(unnamed)

    def _wanted(
        self,
        name: str,
        source: SourceArchive,
        before: TableVersion | None,
        schema: pa.Schema,
    ) -> Iterator[tuple[str, ArchiveFile]]:
        """Yield the path of each copy, and the file of the archive that it is of."""
        had = before.files if before is not None and schema.equals(before.schema) else {}
        for file in source.files:
            path, other = exported_name(file), exported_name(file, source.columns)
            if path in had or other in had:
                yield (path if path in had else other), file
            else:
                as_it_is = has_columns(self._archive / name / file.name, source.columns)
                yield (path if as_it_is else other), file

    def _write(self, name: str, table: TableRecord) -> None:
        if self._record.tables.get(name) != table:
            self._record = self._record.with_table(name, table)
            self._record.write(self._folder)

    def _find(self, name: str) -> TableVersion | None:
        """Return a table, once it has what this export has written; None if it is to be created."""
        folder, known = self._folder / name, self._record.tables.get(name)
        if known is None:
            if folder.exists():
                raise StateMismatch(
                    f"{folder} is not of this export: move it, or export to another folder (--to)"
                )
            # From now on the folder is ours.
            self._write(name, TableRecord())
            return None
        if not folder.exists():  # removed, so that it is written anew
            self._write(name, TableRecord())
            return None
        found = TableVersion.read(folder)
        if found is None:
            if known.done is not None:
                raise DamagedState(
                    f"{folder} has no {delta_table.LOG}, so it is no Delta table any more; remove "
                    "the folder: the next run writes it again from the archive"
                )
            return None
        fault: str | None = "it was not created by this export"
        for state in (known.begun, known.done):
            if state is not None and (fault := _difference(found, state)) is None:
                return found
        raise _changed(folder, str(fault))

    def _copy(self, name: str, path: str, file: ArchiveFile, source: SourceArchive) -> bool:
        """Copy a file of the archive unless its copy is there; tell whether it was copied."""
        target = self._folder / name / path
        is_other = path != exported_name(file)
        # A copy is moved to its name when it is whole and on the disk.
        if target.exists() and (is_other or target.stat().st_size == file.size):
            return False
        if is_other:
            as_it_is = target.with_name(f"{target.name}.0.unfinished")
            copy_file(self._archive, name, file, as_it_is)
            with_columns(as_it_is, target, source.columns)
            as_it_is.unlink()
        else:
            copy_file(self._archive, name, file, target)
        self._stage.advance(file.stop - file.first)
        return True


def _difference(table: TableVersion, state: TableState) -> str | None:
    """Say in what a table differs from a state; None if it has just that."""
    if state.id is not None and table.id != state.id:
        return f"it has the id {table.id}, and was created with {state.id}"
    if table.partition_columns != [DAY]:
        return f"it is partitioned by {table.partition_columns}"
    if table.features:
        return f"its readers need to know {', '.join(table.features)}"
    if not table.schema.equals(table_schema(state.columns)):
        return f"it has the columns {', '.join(f'{one.name} {one.type}' for one in table.schema)}"
    more, less = sorted(table.files.keys() - {*state.files}), {*state.files} - table.files.keys()
    if more or less:
        shown = f", such as {more[0]}" if more else ""
        return f"it has {len(more):,} other files{shown}, and lacks {len(less):,}"
    return None


def _changed(folder: Path, fault: str) -> StateMismatch:
    return StateMismatch(
        f"{folder}: somebody else has changed this table: {fault}. Nothing was written. "
        "Restore the version before that, or remove the folder: the next `tidemill "
        "export-archive` writes it again from the archive"
    )
