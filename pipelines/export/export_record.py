"""The record of an export, ``_tidemill.json`` beside its tables: what each table should have.

Who exports writes down first what the table is about to have, then commits to it, then that it was
done. So a table that has neither what it had nor what was announced was changed by somebody else,
also after a kill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import StateMismatch
from tidemill.serving.files.records import RecordFormat, read_record, write_record

RECORD: Final = "_tidemill.json"
LOCK: Final = "_lock"
"""The file that whoever exports locks."""
_FORM: Final = RecordFormat(
    name="tidemill-export",
    version=1,
    fields=frozenset({"project", "root", "tables"}),
    remedy="restore it from a copy, or remove the whole export: the next `tidemill "
    "export-archive` writes it again from the archive",
)


@dataclass(frozen=True)
class TableState:
    """What a table has.

    Attributes:
        id: The id that the table was created with; None if it is about to be created.
        columns: Its columns but the day, in order: name and dtype.
        files: The paths of its files below its folder, sorted.
    """

    id: str | None
    columns: Sequence[Sequence[str]]
    files: Sequence[str]

    @staticmethod
    def of(id: str | None, columns: Iterable[Sequence[str]], files: Iterable[str]) -> TableState:
        """Return the state, in the form that a record has it."""
        return TableState(id, [list(one) for one in columns], sorted(files))


@dataclass(frozen=True)
class TableRecord:
    """What a table had, and is about to have.

    Attributes:
        done: After the last commit that is known; None before the first one.
        begun: After the commit that was begun; None if none was.
    """

    done: TableState | None = None
    begun: TableState | None = None


@dataclass(frozen=True)
class ExportRecord:
    """The record of an export.

    Attributes:
        project: The name of the project.
        root: The id of the root whose archive is exported.
        tables: By name of the source.
    """

    project: str
    root: str
    tables: Mapping[str, TableRecord] = field(default_factory=dict)

    def with_table(self, name: str, table: TableRecord) -> ExportRecord:
        """Return the record with another state of a table."""
        return dataclasses.replace(self, tables={**self.tables, name: table})

    def write(self, folder: Path) -> None:
        """Write it into the folder of the export, and wait for the disk."""
        write_record(folder / RECORD, _FORM, dataclasses.asdict(self), durable=True)

    @staticmethod
    def read(folder: Path) -> ExportRecord | None:
        """Read the record of an export; None if there is none.

        Raises:
            DamagedState: It is damaged.
            StateVersionError: Its version is not supported.
        """
        if not (folder / RECORD).exists():
            return None
        found = read_record(folder / RECORD, _FORM)
        tables = {name: _table(one) for name, one in found["tables"].items()}
        return ExportRecord(found["project"], found["root"], tables)


def _table(content: Mapping[str, Any]) -> TableRecord:
    return TableRecord(
        *(None if content[at] is None else TableState(**content[at]) for at in ("done", "begun"))
    )


def check_folder(folder: Path, project: str, root: str) -> ExportRecord:
    """Check that a folder is empty, or has the export of a root; nothing is written.

    Args:
        folder: The folder of the export; it need not exist.
        project: The name of the project.
        root: The id of the root.

    Returns:
        The record, a new one for an empty folder.

    Raises:
        StateMismatch: It has something else.
        DamagedState: The record is damaged.
        StateVersionError: Its version is not supported.
    """
    # The record comes first into a folder: what was listed before it is read has one.
    others = sorted(one.name for one in _entries(folder) if not _is_ours(one.name))
    found = ExportRecord.read(folder)
    if found is None:
        if others:
            raise StateMismatch(
                f"{folder} has files, such as {others[0]}, and no {RECORD}: restore that from a "
                "copy if it is an export, or name a folder of its own (--to)"
            )
        return ExportRecord(project, root)
    if (found.project, found.root) != (project, root):
        raise StateMismatch(
            f"{folder} is the export of project {found.project!r} of the root {found.root}, this "
            f"is {project!r} of {root}: name another folder (--to)"
        )
    return found


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had not finished of the record."""
    for path in folder.glob(f"{RECORD}.*"):
        path.unlink()


def _entries(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.exists() else ()


def _is_ours(name: str) -> bool:
    """Tell whether a name may be there before the first record."""
    return name == LOCK or name.startswith(f"{RECORD}.")
