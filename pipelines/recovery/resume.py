"""Segments: how a run of the stream begins, resumes from a savepoint, and stops at one.

A stream runs in one or more segments. The promises:

* The outputs of all segments together are those of a stream that never stopped.
* A segment counts when the states at its end are valid (`pipelines.recovery.handoff`). A killed
  segment is repeated from the savepoint before it, after its files are removed. Its publications
  stay in the online store, which orders them
  (`pipelines.stream.featurize_options`, ``overtaken``).
* A stream that starts over removes all output of the stream before. In the online store it fills
  other key spaces beside those that readers see, until it has caught up with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import InputError, LostPublications, SequenceError, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.replay import ReplayLog
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import (
    Handoff,
    StreamRun,
    check_handoff,
    last_states,
    read_record,
    remove_savepoints,
)
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.republish import frontiers_of, keeps_frontiers, start_over
from tidemill.pipelines.recovery.store_fills import begin_fills, resumed_fills, take_token
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.state_files import file_hashes, missing_files, read_joiner
from tidemill.serving.files.segment_names import segment_prefix
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry.registration import open_store

_OUTPUTS: Final = (
    paths.PREDICTIONS,
    paths.RELEASES,
    paths.PUBLICATIONS,
    paths.REJECTED_BY_STREAM,
)


@dataclass(frozen=True)
class Start:
    """The start of a segment.

    Attributes:
        folder: The folder of the states.
        handoff: The record of the states.
        run: The stream.
        resumes: Whether the stream resumes from a savepoint, or from a run that was killed before
            its first savepoint.
    """

    folder: Path
    handoff: Handoff
    run: StreamRun
    resumes: bool

    @property
    def segment(self) -> int:
        """The number of the segment."""
        return self.handoff.segment + 1


def first_start(config: Configuration, mode: str | None) -> Start:
    """Return the start of a stream that begins with the states of a backfill.

    Raises:
        StateMismatch: There are no states, or they are of other definitions.
    """
    folder = config.root / paths.STATES
    handoff = _checked(config, folder, read_record(folder))
    options = config.stream
    run = StreamRun(handoff.id, mode or options.mode, options.poll_rows, ended=False)
    return Start(folder, handoff, run, resumes=False)


def next_start(config: Configuration, mode: str | None) -> Start:
    """Return the start of a stream that resumes.

    Raises:
        StateMismatch: There is no stream to resume, or its states do not match.
    """
    root = config.root
    run = StreamRun.read(root)
    if run is None or run.began != read_record(root / paths.STATES).id:
        raise StateMismatch(
            f"there is no stream in {root} to resume, or a backfill has replaced the states that "
            "it began with; run `tidemill stream` without --resume"
        )
    if run.ended:
        raise StateMismatch(
            f"the stream in {root} has ended and cannot be resumed; run `tidemill stream` without "
            "--resume to start over"
        )
    if mode is not None and mode != run.mode:
        raise StateMismatch(
            f"the stream was begun in mode {run.mode!r}, and its states are of that mode: resume "
            "in it, or start over"
        )
    folder, handoff = last_states(root)
    return Start(folder, _checked(config, folder, handoff), run, resumes=True)


def _checked(config: Configuration, folder: Path, handoff: Handoff) -> Handoff:
    check_handoff(folder, handoff, config.project, config.shards)
    if read_record(config.root / paths.STATES).as_of_us != config.splits.evaluate_until_us:
        raise StateMismatch(
            "the handed-over state ends at another instant than splits.evaluate_until; run "
            "`tidemill backfill` again"
        )
    return handoff


def check_savepoint(start: Start, until_us: int, end_us: int) -> None:
    """Check that a savepoint is between the start and the stream's end.

    Raises:
        InputError: It is not.
    """
    begin_us = start.handoff.as_of_us
    if not begin_us <= until_us <= end_us:
        raise InputError(
            f"the stream cannot stop at {until_us}: it starts at {begin_us} and ends at {end_us} "
            "(splits.stream_until), in microseconds UTC; choose an instant between them"
        )


def check_positions(start: Start, replayed: ReplayLog) -> None:
    """Check that the states were made from this log.

    Raises:
        StateMismatch: They were made from another log.
    """
    found = _by_source(replayed, replayed.start.positions)
    if found != dict(start.handoff.positions):
        raise StateMismatch(
            f"{start.folder}: the states end at positions {start.handoff.positions}, the log has "
            f"{found} at that instant: it was written again; run `tidemill backfill` again"
        )


def _by_source(replayed: ReplayLog, positions: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for (definition, _), position in zip(replayed.sources, positions, strict=True):
        found.setdefault(definition.name, []).append(position)
    return found


@dataclass(frozen=True)
class Prepared:
    """The online store at the start of a segment.

    Attributes:
        fills: The fills that the segment publishes to, with its token.
        shown: By (view, shard): the frontier of these fills, which may be past the states'; empty
            if the stream starts over.
    """

    fills: RunFills
    shown: Mapping[tuple[str, int], int]


def prepare(
    config: Configuration, start: Start, progress: Progress, *, take_over: bool = False
) -> Prepared:
    """Bring files and online store to the start of the segment, and take the writer's token.

    Args:
        config: The configuration.
        start: The start of the segment.
        progress: Shows progress.
        take_over: Whether to take key spaces that another root writes.

    Raises:
        HeldByAnotherRoot: Another root writes a key space.
        StoreError: The store refuses a write, or has lost publications from before the savepoint.
    """
    root = config.root
    if not start.resumes:
        # Delete stream.json first, so that a crash before the store is filled counts as not begun.
        (root / paths.STREAM_RUN).unlink(missing_ok=True)
        (root / paths.CUTS).unlink(missing_ok=True)
        for name in _OUTPUTS:
            shutil.rmtree(root / name, ignore_errors=True)
        remove_savepoints(root)
        fills = start_over(config, start.handoff, progress, take_over=take_over)
        start.run.write(root)
        return Prepared(fills, {})
    for name in _OUTPUTS:
        for path in (root / name).glob(f"**/{segment_prefix(start.segment)}*"):
            path.unlink()
    remove_savepoints(root, keep=start.folder)
    # Register here, once: workers only write rows.
    open_store(config.project, config.places, clock="replay")
    began = read_record(root / paths.STATES)
    database = open_database(config.online_store)
    try:
        if not keeps_frontiers(config.online_store):
            fills, _ = begin_fills(config, database, began, lambda _: 0)
        else:
            fills = resumed_fills(config, database, began)
        # The marks are read after the token was taken: an elder writer cannot move them any more.
        fills = take_token(config, database, fills, take_over=take_over)
        shown = frontiers_of(database, fills)
    finally:
        database.close()
    if keeps_frontiers(config.online_store):
        _check_store(start, shown)
    return Prepared(fills, shown)


def offline_goes_on(config: Configuration, start: Start, progress: Progress) -> bool:
    """Cut the offline log back to the start of the segment; tell whether it can continue there.

    It can if `tidemill backfill --publish` has written it up to the states that the stream began
    with. The logs of all views continue, or none.
    """
    logs = {
        view.name: OfflineLog.of(config.root / paths.OFFLINE, view) for view in config.project.views
    }
    segment = start.segment if start.resumes else 0
    joins = {
        name: log.cut_back(segment, start.handoff.frontiers[name]) for name, log in logs.items()
    }
    if all(joins.values()):
        return True
    if there := [name for name, log in logs.items() if log.directory.exists()]:
        progress.say(
            f"the offline log of {', '.join(there)} does not end where the stream continues "
            f"({', '.join(name for name, joins_on in joins.items() if not joins_on)}): the stream "
            "adds nothing to it; `tidemill backfill --publish` writes it again"
        )
    return False


def _check_store(start: Start, shown: Mapping[tuple[str, int], int]) -> None:
    for view, frontiers in start.handoff.frontiers.items():
        for shard, frontier in enumerate(frontiers):
            stored = shown.get((view, shard), TIME_MIN)
            if stored < frontier:
                raise LostPublications(
                    f"online store, view {view!r}, shard {shard}: its frontier is {stored}, but "
                    f"the stream continues from {frontier}: it has lost the publications in "
                    "between; run `tidemill republish`, then resume"
                )


def received(root: Path, replayed: ReplayLog) -> dict[str, int]:
    """Count each source's rows from the beginning of the stream to the end of a replay."""
    begun = read_record(root / paths.STATES).positions
    stop = _by_source(replayed, replayed.stop)
    return {name: sum(ends) - sum(begun[name]) for name, ends in stop.items()}


def _joiner(config: Configuration, folder: Path) -> AnswerJoiner:
    joiner = AnswerJoiner(config.project, config.shards, config.stream.answer_within_us)
    read_joiner(folder, joiner)
    return joiner


def waiting(config: Configuration, folder: Path, engine: str) -> int:
    """Count the requests that wait at a savepoint.

    Raises:
        SequenceError: A state is missing.
    """
    missing = missing_files(folder, config.project, config.shards)
    if missing:
        raise SequenceError(
            f"the states at the savepoint are not all there ({', '.join(missing[:3])} and "
            f"{max(len(missing) - 3, 0)} more are missing in {folder}): the engine {engine!r} lost "
            "batches before the savepoint"
        )
    return _joiner(config, folder).requests_pending


def keep_savepoint(
    config: Configuration, start: Start, until_us: int, replayed: ReplayLog, folder: Path
) -> None:
    """Write the record of a savepoint; remove the savepoints before it."""
    # A shard that has released nothing in this segment keeps the frontier that it started from.
    released = _joiner(config, folder).frontiers
    frontiers = {
        view.name: np.maximum(start.handoff.frontiers[view.name], released[index]).tolist()
        for index, view in enumerate(config.project.views)
    }
    marks = {name: list(of_view) for name, of_view in start.handoff.marks.items()}
    for release in read_releases(config.root):
        marks[release["view"]][release["shard"]] = release["mark"]
    handoff = Handoff(
        kind="stop",
        as_of_us=until_us,
        positions=_by_source(replayed, replayed.stop),
        views={view.name: view.hash for view in config.project.views},
        shards=config.shards,
        segment=start.segment,
        frontiers=frontiers,
        polls=replayed.last_poll_number,
        marks=marks,
        began=start.run.began,
        mode=start.run.mode,
        files=file_hashes(folder),
    )
    handoff.write(folder)
    remove_savepoints(config.root, keep=folder)
