"""Which builds and streams of a root have made the rows that readers of the online store see.

A proof needs them as long as readers see these rows, so they stay when others are removed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import DamagedFile, InputError, NoKeySpace, StateError, StoreError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun, read_record
from tidemill.pipelines.recovery.release_log import read_release_lines
from tidemill.pipelines.recovery.republish import keeps_frontiers
from tidemill.pipelines.recovery.store_fills import key_spaces
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import releases_of
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.fills import Fill


@dataclass(frozen=True)
class ServedRows:
    """What the rows of all views that readers see say about what has made them.

    Attributes:
        fills: Each fill, with the marks of its parts; those without a row are left out.
        is_known: Whether the store has said so; else every folder may have made some.
    """

    fills: tuple[tuple[Fill, frozenset[str]], ...] = ()
    is_known: bool = True

    @staticmethod
    def of(config: Configuration) -> ServedRows:
        """Ask the online store of a configuration."""
        if not keeps_frontiers(config.online_store):
            return ServedRows()
        try:
            database = open_database(config.online_store)
        except StoreError:
            return ServedRows(is_known=False)
        try:
            fills = [fill for fill in database.fills(key_spaces(config)) if fill.is_current]
            states = database.part_states(fills)
        except NoKeySpace:
            return ServedRows()  # nothing was ever published
        except StoreError:
            return ServedRows(is_known=False)
        finally:
            database.close()
        marks = (
            frozenset(part.mark.hex() for part in parts if part.mark is not None)
            for parts in states
        )
        found = zip(fills, marks, strict=True)
        return ServedRows(tuple((fill, of_it) for fill, of_it in found if of_it))

    def made_by_build(self, folder: Path, kept: Collection[Path] = ()) -> bool:
        """Tell whether a build may have made some: rows were begun with its states.

        Args:
            folder: The folder of the build.
            kept: Folders that stay in any case: one of them may have states of the same rows.
        """
        mine = self._of(folder)
        if not (self.is_known and mine):
            return not self.is_known
        builds = [path for path in kept if path.parent == folder.parent]
        return any(
            _has_begun(fill, folder) and not any(_has_begun(fill, path) for path in builds)
            for fill, _ in mine
        )

    def made_by_stream(self, folder: Path) -> bool:
        """Tell whether a stream may have made some: a release, or what it began with."""
        mine = self._of(folder)
        if not (self.is_known and mine):
            return not self.is_known
        try:
            return any(marks & marks_of(folder, fill.space.view) for fill, marks in mine)
        except (DamagedFile, InputError, StateError):
            return False  # it proves nothing any more

    def _of(self, folder: Path) -> list[tuple[Fill, frozenset[str]]]:
        """Return the fills of the generation of a folder."""
        return [one for one in self.fills if one[0].generation == folder.parent.name]


NOTHING_SERVED: Final = ServedRows()
"""What says that readers see nothing."""


def _has_begun(fill: Fill, build: Path) -> bool:
    """Tell whether a fill was begun with the states of a build."""
    if not (build / paths.STATES / paths.HANDOFF).exists():
        return False  # no build, or one that was never whole
    try:
        return is_begun_with(fill, read_record(build / paths.STATES))
    except StateError:
        return False


def is_begun_with(fill: Fill, handoff: Handoff) -> bool:
    """Tell whether a fill was begun with the rows that states of a build were made from."""
    try:
        cut = json.loads(fill.cuts)
        ((source, positions),) = cut["positions"].items()
        digest = cut["digest"]
    except (ValueError, KeyError, AttributeError):
        return False
    known = handoff.positions.get(source), handoff.digests.get(source)
    return known == (positions, digest)


def marks_of(stream: Path, view: str) -> set[str]:
    """Return the marks of a view that a stream has published or, upgraded, has begun with."""

    def take(entry: Any) -> str:
        return str(entry["mark"]) if entry["view"] == view else ""

    found = set(read_release_lines(stream, take)) if releases_of(stream).has_any() else set()
    return (found | upgraded_marks(stream).get(view, set())) - {""}


def upgraded_marks(stream: Path) -> dict[str, set[str]]:
    """Return the marks with which a stream that was upgraded has begun, by view."""
    run = StreamRun.read(stream)
    upgrade = None if run is None else UpgradeRecord.of(run, stream)
    return {} if upgrade is None else {view: {*marks} for view, marks in upgrade.marks.items()}
