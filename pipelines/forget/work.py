"""The work of forgetting, in a copy of the root: what is made before anything changes.

The order of generations, builds and streams is that in which one depends on the other: rows of
logs first, then the records of what was removed by age, builds, streams, and the archive.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.linked_copy import Change, LinkedCopy, plan_changes
from tidemill.pipelines.forget.rebuild_build import check_build, is_of, rebuild_build
from tidemill.pipelines.forget.rebuild_stream import StreamRewriter, check_stream, remove_offline
from tidemill.pipelines.forget.record import (
    FORGOTTEN,
    WORK,
    ForgetRecord,
    how_to_go_on,
    next_number,
)
from tidemill.pipelines.forget.rejected import rewrite_records
from tidemill.pipelines.forget.remains import what_remains
from tidemill.pipelines.forget.rewrite_archive import (
    check_archive,
    copy_of_archive,
    rewrite_archive,
)
from tidemill.pipelines.forget.rewrite_logs import Blanked, LogRewriter
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.forget.texts import remove_proofs, rewrite_texts
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.history.live_retention import removed_faults, renew_removed
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.io.log_pieces import share_files
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.generations.current import GENERATIONS, Current, find_current

SUBJECT: Final = "subject.json"
"""Whom the work is about; gone when it has ended."""
_COPY: Final = "root"
_COPIED: Final = (
    GENERATIONS, paths.REJECTED, paths.MENDED, paths.MENDED_LIVE, paths.SUMMARY, paths.REPORT,
    paths.SCRATCH, paths.PROOF,
)  # fmt: skip


@dataclass
class Work:
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

    def prepare(self) -> None:
        """Do the work in copies, and write record and plan; copies of an error are removed.

        Raises:
            DamagedFile: A log or the archive is damaged.
            StateMismatch: A log, a state or the archive is not what its record says.
        """
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

    def _prepare(self, copy: LinkedCopy, of_archive: LinkedCopy | None) -> list[Change]:
        config, asked = self.config, now()
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
        for folder in generations_of(copy.folder):
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
        blank = self.removed.get("rows of logs", 0) > 0
        proofs = remove_proofs(copy, self.subject, is_blanked=blank)
        self._count("records of proofs beside streams", proofs)
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
                    f"the stream {one} ran in eager mode, where the instant of an answer depends "
                    "on all rows that came before it, so it cannot go on, nor be proven any more: "
                    f"{how_to_go_on(_of_stream(config, one), config.project)}"
                    for one in self.closed
                ),
                *what_remains(config, self.subject, self.unread),
            ],
        ).write_begun(self.folder)
        told = {"entity": self.subject.entity.name, "key": self.subject.text}
        _write_secret(self.folder / SUBJECT, {**told, "renewed": self.renewed})
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
        former: Path | None = None
        for build in builds if blanked.rows else ():
            pinned = Current(copy, folder.name, int(build.name.rpartition("-")[2]), 0, 0)
            made = rebuild_build(replace(config, root=copy, pinned=pinned), blanked)
            self.renewed.update(made.renewed)
            self._count("states", made.states)
            self._count("rows of training tables", made.rows)
            if former is not None:  # what they have shared they share again
                share_files(former / paths.TRAINING_TABLE, build / paths.TRAINING_TABLE)
            former = build
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


def _of_stream(config: Configuration, place: str) -> Current:
    """Return the folders of the generation of a stream, ``GENERATION/STREAM``."""
    return Current(config.root, place.partition("/")[0], 0, 0, 0)


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


def _write_secret(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that only its owner may read; it is gone when the work has ended."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(opened, "w") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())


def now() -> str:
    """Return the present second: ISO 8601, UTC."""
    return write_instant(time.time_ns() // 1_000_000_000 * SECOND)


def generations_of(root: Path) -> list[Path]:
    """Return the folders of the generations of a root."""
    return sorted(path for path in (root / GENERATIONS).glob("*") if path.is_dir())
