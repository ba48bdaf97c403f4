"""A copy of a root in which work is done, and the plan that moves its changes over the root.

A copy consists of links, so it costs no space and no time for what does not change. Whatever
replaces files as a whole may work in it; the root stays as it is until `Changes.apply`. The
promises:

* A process that is killed while it works in the copy has changed nothing.
* `plan_changes` writes the plan last: which files get which bytes, by digest. From then on the
  changes will be made: `Changes.apply` can be repeated after a kill at any point, by anybody, and
  needs nothing but the plan and the files beside it.
* A file that has neither its old nor its new bytes is an error that names it, and stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedState
from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.records import RecordFormat, read_record, write_record

_PLAN: Final = "plan.json"
_FORM: Final = RecordFormat(
    name="tidemill-forget-plan",
    version=1,
    fields=frozenset({"changes"}),
    remedy="restore it from a copy: changes of this root are half made",
)
_LOCK: Final = ".lock"
_LEFT: Final = (".unfinished", "unfinished", paths.SCRATCH)
"""How the names of files and folders end that a killed process may have left."""


@dataclass(frozen=True)
class Change:
    """A file that is replaced or removed.

    Attributes:
        path: The file; relative to the root, or absolute if it is outside of it.
        made: Where its new bytes are, relative to the folder of the plan, or absolute likewise;
            empty if it is removed.
        before: The SHA-256 of its old bytes; empty if there is no such file yet.
        after: The SHA-256 of its new bytes; empty if it is removed.
    """

    path: str
    made: str
    before: str
    after: str


@dataclass(frozen=True)
class LinkedCopy:
    """A copy of some folders, as links.

    Attributes:
        original: What is copied.
        folder: The copy.
        names: The names below `original` that are copied; others are not part of it.
    """

    original: Path
    folder: Path
    names: Sequence[str]

    def make(self) -> None:
        """Link every file, but locks, and what killed processes have left: that is removed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with named_for(self.folder):
            self.folder.mkdir(parents=True)
            for path in self._files(self.original):
                if _is_left(path):
                    continue
                target = self.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.original / path, target)

    def changes(self, plan: Path, *, is_outside: bool = False) -> Iterator[Change]:
        """Yield what differs between the original and the copy, by path.

        Args:
            plan: The folder of the plan.
            is_outside: Whether the original is not below the root.
        """
        before, after = set(self._files(self.original)), set(self._files(self.folder))
        for path in sorted(before | after):
            old, new = self.original / path, self.folder / path
            where = str(old.absolute()) if is_outside else str(path)
            if path not in after:
                yield Change(where, "", file_sha256(old), "")
            elif path not in before or not old.samefile(new):
                digest = file_sha256(new)
                was = file_sha256(old) if path in before else ""
                if was != digest:
                    made = str(new.absolute()) if is_outside else str(new.relative_to(plan))
                    yield Change(where, made, was, digest)

    def _files(self, folder: Path) -> Iterator[Path]:
        for name in self.names:
            # Beside a file may be what a killed process had not finished of it.
            for path in (folder / name, *folder.glob(f"{name}.*"), *(folder / name).rglob("*")):
                if path.is_file() and not path.name.endswith(_LOCK):
                    yield path.relative_to(folder)


def _is_left(path: Path) -> bool:
    """Tell whether a killed process was writing a file; nobody writes while a copy is made."""
    return any(name.endswith(_LEFT) for name in path.parts)


@dataclass(frozen=True)
class Changes:
    """The changes of a root that are planned.

    Attributes:
        root: The root.
        folder: The folder of the plan.
        changes: What is changed.
    """

    root: Path
    folder: Path
    changes: Sequence[Change]

    @staticmethod
    def find(root: Path, folder: Path) -> Changes | None:
        """Read a plan; None if there is none.

        Raises:
            DamagedState: It is damaged.
        """
        path = folder / _PLAN
        if not path.exists():
            return None
        found = read_record(path, _FORM)["changes"]
        return Changes(root, folder, [Change(**one) for one in found])

    def apply(self) -> None:
        """Make the changes; what was made before a kill stays.

        Raises:
            DamagedState: A file has other bytes than the plan says.
            FileError: A file cannot be replaced.
        """
        folders: dict[Path, None] = {}
        for change in self.changes:
            path = self.root / change.path  # an absolute path stays as it is
            with named_for(path):
                if self._make(path, change):
                    folders[path.parent] = None
        for folder in folders:
            if folder.exists():
                wait_for_disk(folder)

    def _make(self, path: Path, change: Change) -> bool:
        if not change.made:
            if path.exists():
                self._check(path, change.before, change)
                path.unlink()
            return True
        made = self.folder / change.made
        if not made.exists():
            self._check(path, change.after, change)
            return True
        if path.exists():
            self._check(path, change.before, change)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.replace(path)
        return True

    def _check(self, path: Path, digest: str, change: Change) -> None:
        found = file_sha256(path) if path.exists() else ""
        if found not in (digest, change.after):
            raise DamagedState(
                f"{path} has the SHA-256 {found or 'of no file'}, and the plan in "
                f"{self.folder / _PLAN} expects {digest}: it was changed meanwhile; restore it, "
                "and run the command again"
            )


def plan_changes(root: Path, folder: Path, changes: Sequence[Change]) -> Changes:
    """Write the plan of changes, once all new files are on the disk."""
    with named_for(folder):
        folders: set[Path] = set()
        for change in changes:
            if change.made:
                made = folder / change.made
                wait_for_disk(made)
                folders |= {*made.parents} - {*folder.parents} - {*root.parents}
        for one in sorted(folders):
            wait_for_disk(one)
        content: Mapping[str, object] = {"changes": [asdict(one) for one in changes]}
        write_record(folder / _PLAN, _FORM, dict(content), durable=True)
    return Changes(root, folder, changes)
