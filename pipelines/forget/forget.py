"""Deleting an entity everywhere, with a record that it was done.

What is done, in this order:

1. Nothing else may write: the locks of builds, streams, mended records and of the archive are held.
2. All work is done in a copy of the root that consists of links
   (`pipelines.forget.linked_copy`): rows of logs are blanked, states, tables and records are made
   again from them, files of predictions, publications and rejected records lose their rows.
3. The record and the plan of all files, with the digests of old and new bytes, are written.
4. The new files are moved over the old ones; the rows in the online store are removed; the record
   says what was removed.

A process that is killed before the plan is written has changed nothing. One that is killed later
has begun what `finish` ends, by whomever it is called; every command of Tidemill refuses to work
on the root until then, and names the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.archive.archiving import LOCK as ARCHIVE_LOCK
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.linked_copy import Change, Changes, LinkedCopy, plan_changes
from tidemill.pipelines.forget.rebuild_build import check_build, is_of, rebuild_build
from tidemill.pipelines.forget.rebuild_stream import StreamRewriter, check_stream, remove_offline
from tidemill.pipelines.forget.record import (
    FORGOTTEN,
    WORK,
    ForgetRecord,
    next_number,
    remove_work,
    working,
)
from tidemill.pipelines.forget.rejected import rewrite_records
from tidemill.pipelines.forget.remains import what_remains
from tidemill.pipelines.forget.rewrite_archive import (
    check_archive,
    copy_of_archive,
    rewrite_archive,
)
from tidemill.pipelines.forget.rewrite_logs import Blanked, LogRewriter
from tidemill.pipelines.forget.store import remove_from_store
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.forget.texts import rewrite_texts
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.history.builds import BUILD_LOCK
from tidemill.pipelines.history.live_retention import removed_faults, renew_removed
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.ingest.mended_live import alone
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.proof_record import LOCK as PROOF_LOCK
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import GENERATIONS, Current, find_current

_COPY: Final = "root"
_SUBJECT: Final = "subject.json"
_COMMAND: Final = "tidemill forget"
_COPIED: Final = (
    GENERATIONS, paths.REJECTED, paths.MENDED, paths.MENDED_LIVE, paths.SUMMARY, paths.REPORT,
    paths.SCRATCH, paths.PROOF,
)  # fmt: skip
_STORE: Final = "rows of the online store"


def forget(config: Configuration, entity: str, key: str, progress: Progress) -> dict[str, Any]:
    """Delete an entity everywhere.

    A deletion that was killed is finished first.

    Args:
        config: The configuration.
        entity: The name of the entity.
        key: Its key, as a text.
        progress: Where progress is shown.

    Returns:
        The figures: the number of the record, what was removed by place, and what remains.

    Raises:
        InputError: There is no such entity, or the key is not of its type.
        Locked: A stream runs, or another process writes.
        StateMismatch: A log, a state or the archive is not what its record says.
        StoreError: The online store cannot be written; `finish` goes on there.
    """
    subject = Subject.parse(config.project, entity, key)
    root = config.root
    with _alone(config):
        finish_begun(config, progress)
        remove_work(root / FORGOTTEN / WORK)
        _clear_archive(config)
        with _Work(config, subject, progress).prepared():
            return finish_begun(config, progress) or {}


def finish(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Finish a deletion that was killed, or that could not write to the online store.

    Returns:
        The figures; empty if there is none.
    """
    with _alone(config):
        return finish_begun(config, progress) or {}


@contextmanager
def _alone(config: Configuration) -> Iterator[None]:
    """Exclude everybody else who writes to the root, or to the archive."""
    root = config.root
    with contextlib.ExitStack() as held:
        doing = "write to this root while an entity is forgotten"
        generations = root / GENERATIONS
        locks = [generations / BUILD_LOCK]
        locks += [folder / "stream.lock" for folder in _generations(root)]
        if config.archive is not None and config.archive.folder.exists():
            locks.append(config.archive.folder / ARCHIVE_LOCK)
        if (root / paths.PROOF).exists():
            locks.append(root / paths.PROOF / PROOF_LOCK)
        for path in locks:
            held.enter_context(lock(path, doing, command=_COMMAND))
        if (root / paths.MENDED_LIVE).exists():
            held.enter_context(alone(root, command=_COMMAND))
        held.enter_context(working(root, _COMMAND))
        yield


def _generations(root: Path) -> list[Path]:
    return sorted(path for path in (root / GENERATIONS).glob("*") if path.is_dir())


def _clear_archive(config: Configuration) -> None:
    """Remove the copy of an archive that a killed process has left."""
    if (copy := copy_of_archive(config)) is not None:
        shutil.rmtree(copy.folder, ignore_errors=True)


@dataclass
class _Work:
    """The work in the copy.

    Attributes:
        config: The configuration.
        subject: Whom to forget.
        progress: Where progress is shown.
    """

    config: Configuration
    subject: Subject
    progress: Progress

    def __post_init__(self) -> None:
        self.folder = self.config.root / FORGOTTEN / WORK
        self.salt = secrets.token_bytes(32)
        self.removed: dict[str, int] = {}
        self.rows: dict[str, list[int]] = {}
        self.renewed: dict[str, str] = {}
        self.refused: dict[str, list[int]] = {}
        self.others: dict[str, int] = {}
        self.closed: list[str] = []
        self.unread = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Do the work in copies, and write record and plan; copies of an error are removed."""
        copy = LinkedCopy(self.config.root, self.folder / _COPY, _COPIED)
        of_archive = copy_of_archive(self.config)
        try:
            changes = self._prepare(copy, of_archive)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            if of_archive is not None:
                shutil.rmtree(of_archive.folder, ignore_errors=True)
            raise
        plan_changes(self.config.root, self.folder, changes)
        yield

    def _prepare(self, copy: LinkedCopy, of_archive: LinkedCopy | None) -> list[Change]:
        config, asked = self.config, _now()
        live = None
        if of_archive is not None:
            live = find_live_rows(find_current(config.root), config.project)
            check_archive(config, live)
            of_archive.make()
        self.progress.say("looking for rows, and making again what depends on them")
        copy.make()
        current = find_current(config.root)
        inside = None
        if current is not None:
            inside = replace(config, root=copy.folder, pinned=replace(current, root=copy.folder))
        for folder in _generations(copy.folder):
            blanked = self._generation(folder, current)
            if of_archive is not None and current is not None and folder == _folder(copy, current):
                assert inside is not None
                rows = find_live_rows(inside.current, config.project)
                if rows is not None:
                    self._count("archive", rewrite_archive(config, of_archive, rows, blanked))
        removed, unread = rewrite_records(copy.folder, self.subject)
        self.unread += unread
        self._count("rejected records", removed)
        self._count("texts of the summary and the report", rewrite_texts(copy, self.subject))
        changes = list(copy.changes(self.folder))
        if of_archive is not None:
            changes += of_archive.changes(self.folder, is_outside=True)
        number = next_number(config.root)
        ForgetRecord(
            number=number,
            entity=self.subject.entity.name,
            digest=self.subject.digest(self.salt),
            asked=asked,
            removed=self.removed,
            rows=self.rows,
            refused=self.refused,
            others=self.others,
            closed=self.closed,
            files=_listed(changes),
            remains=[
                *(
                    f"the stream {one} ran in eager mode: it cannot go on, and is not proven any "
                    "more; run `tidemill stream` without --resume"
                    for one in self.closed
                ),
                *what_remains(config, self.subject, self.unread),
            ],
        ).write_begun(self.folder)
        told = {"entity": self.subject.entity.name, "key": self.subject.text}
        _write_secret(self.folder / _SUBJECT, {**told, "renewed": self.renewed})
        return changes

    def _generation(self, folder: Path, current: Current | None) -> Blanked:
        """Blank a generation, and make again what depends on it."""
        config, project = self.config, self.config.project
        builds = sorted(folder.glob("build-??????"))
        builds = [build for build in builds if (build / "build.json").exists()]
        copy = folder.parent.parent
        for build in builds:
            check_build(build)
            _check_current(config, build, current)
        for stream in self._streams(folder):
            check_stream(stream)
        inside = Current(copy, folder.name, 0, 0, 0)
        inside = replace(inside, build=inside.next_number("build") - 1)
        for fault in removed_faults(inside, project):
            raise StateMismatch(
                f"{folder.name}: {fault}: they were changed, and nothing is forgotten until they "
                "are right; run `tidemill verify`"
            )
        blanked = LogRewriter(project, self.subject, folder, config.shards, self.salt).run()
        self.unread += blanked.unread
        for feature, until_us in blanked.others.items():
            self.others[feature] = max(self.others.get(feature, until_us), until_us)
        self._count("rows of logs", blanked.rows)
        self._count("rejected records", len(blanked.refused))
        for (source, partition), positions in sorted(blanked.positions.items()):
            self.rows[f"{folder.name}/{source}/{partition}"] = _ranges(positions)
        refused: dict[str, set[int]] = {}
        for source, partition, position, _ in blanked.refused:
            refused.setdefault(f"{folder.name}/{source}/{partition}", set()).add(position)
        self.refused |= {place: _ranges(found) for place, found in sorted(refused.items())}
        renew_removed(inside, project)
        for build in builds if blanked.rows else ():
            pinned = Current(copy, folder.name, int(build.name.rpartition("-")[2]), 0, 0)
            made = rebuild_build(replace(config, root=copy, pinned=pinned), blanked)
            self.renewed.update(made.renewed)
            self._count("states", made.states)
            self._count("rows of training tables", made.rows)
        for pinned in self._streams(folder):
            inside_of_it = replace(config, root=copy, pinned=pinned)
            done = StreamRewriter(inside_of_it, self.subject, blanked, self.renewed).run()
            self._count("predictions", done.predictions)
            self._count("publications", done.publications)
            self._count("rejected records", done.rejected)
            self._count("states", done.states)
            self._count("releases with other counts", done.releases)
            if done.is_closed:
                self.closed.append(f"{folder.name}/{pinned.stream_folder.name}")
        for offline in sorted(folder.glob("offline-??????")):
            self._count("rows of the offline store", remove_offline(offline, self.subject))
        return blanked

    @staticmethod
    def _streams(folder: Path) -> list[Current]:
        """Return the folders of the streams of a generation, each with the newest build."""
        of_it = Current(folder.parent.parent, folder.name, 0, 0, 0)
        of_it = replace(of_it, build=of_it.next_number("build") - 1)
        numbers = [int(one.name.rpartition("-")[2]) for one in folder.glob("stream-??????")]
        return [of_it.with_stream(number) for number in sorted(numbers)]

    def _count(self, place: str, number: int) -> None:
        self.removed[place] = self.removed.get(place, 0) + number


def _folder(copy: LinkedCopy, current: Current) -> Path:
    return replace(current, root=copy.folder).folder


def _check_current(config: Configuration, build: Path, current: Current | None) -> None:
    """Check that the states of the current build can be made again."""
    if current is None or build.name != current.build_folder.name:
        return
    if build.parent.name != current.generation:
        return
    if not is_of(config.project, config.shards, BuildManifest.read(build)):
        raise StateMismatch(
            f"{current.build_folder} was made by other definitions or shards than the project has "
            "now, so its states cannot be made again without the entity: run `tidemill backfill`, "
            "or set them back, and run this command again"
        )


def _ranges(positions: set[int]) -> list[int]:
    """Return positions as pairs of a first one and the one after the last."""
    ends: list[int] = []
    for position in sorted(positions):
        if ends and ends[-1] == position:
            ends[-1] += 1
        else:
            ends += [position, position + 1]
    return ends


_MANY: Final = frozenset(paths.STREAM_OUTPUTS)


def _listed(changes: list[Change]) -> dict[str, list[str]]:
    """Return the files that a record names: all but the outputs of streams."""
    return {
        change.path: [change.before, change.after]
        for change in changes
        if not _MANY & {*Path(change.path).parts}
    }


def finish_begun(config: Configuration, progress: Progress) -> dict[str, Any] | None:
    """Make the changes that are planned, remove the rows of the store, and end the record."""
    root, folder = config.root, config.root / FORGOTTEN / WORK
    changes = Changes.find(root, folder)
    if changes is None:
        return None
    with progress.stage("move what was made", len(changes.changes), "files") as stage:
        changes.apply()
        stage.advance(len(changes.changes))
    told = json.loads((folder / _SUBJECT).read_bytes())
    subject = Subject.parse(config.project, told["entity"], told["key"])
    record = ForgetRecord.read_begun(folder)
    removed = dict(record.removed)
    count = remove_from_store(config, subject, told["renewed"])
    if count is not None:
        removed[_STORE] = count
    # A kill behind this has counted already what was in the store.
    ended = ForgetRecord.find(root, record.number)
    if ended is None:
        ended = replace(record, ended=_now(), removed=removed)
        ended.write(root)
    remove_work(folder)
    _clear_archive(config)
    return {"record": ended.number, "removed": removed, "remains": list(ended.remains)}


def _write_secret(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that only its owner may read; it is gone when the work has ended."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(opened, "w") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())


def _now() -> str:
    return write_instant(time.time_ns() // 1_000_000_000 * SECOND)
