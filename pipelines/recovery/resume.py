"""Segments: how a run of the stream begins, resumes from a savepoint, and stops at one.

A stream runs in one or more segments. The promises:

* The outputs of all segments together are those of a stream that never stopped.
* A segment counts when the states at its end are valid (`pipelines.recovery.handoff`). A killed
  segment is repeated from the savepoint before it, after its files are removed. Its publications
  stay in the online store: the repeated releases are the same, and the store knows them by their
  marks.
* A stream that is killed before the online store is filled is resumed from its beginning.
* A stream that starts over has a folder of its own and leaves that of the stream before as it is.
  In the online store it fills other key spaces beside those that readers see, until it has caught
  up with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tidemill.features.contract import TIME_MIN, write_instant
from tidemill.features.errors import InputError, LostPublications, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.event_counts import EventCounts, count_logged
from tidemill.pipelines.io.grown_columns import check_goes_on_with
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import (
    UPGRADE,
    Handoff,
    StreamRun,
    check_handoff,
    check_log,
    columns_of,
    cut_digests,
    last_states,
    read_record,
    remove_savepoints,
    request_hash,
)
from tidemill.pipelines.recovery.log_parts import check_columns, log_of_run, stream_log
from tidemill.pipelines.recovery.reader_clock import show_live_clock
from tidemill.pipelines.recovery.recorded_definitions import changed_definitions
from tidemill.pipelines.recovery.republish import frontiers_of, keeps_frontiers, start_over
from tidemill.pipelines.recovery.savepoints import Savepoint, check_savepoint_is_there
from tidemill.pipelines.recovery.store_fills import begin_fills, resumed_fills, take_token
from tidemill.pipelines.recovery.stream_polls import StreamPolls
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.stream.scored_by import ScoredBy, with_decision
from tidemill.pipelines.stream.state_files import file_hashes, savepoint_folder
from tidemill.serving.files.segment_names import segment_of
from tidemill.serving.generations.current import Current, changing, read_current, write_current
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry.registration import open_store


class Reached(NamedTuple):
    """What the states at a savepoint contain.

    Attributes:
        as_of_us: All rows that were received before this instant.
        polls: The number of the last poll.
        positions: Source to the next position of each partition.
        refused: The names of the outputs with the records that were rejected while the polls since
            the savepoint before were read.
    """

    as_of_us: int
    polls: int
    positions: Mapping[str, list[int]]
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Start:
    """The start of a run, which goes on over one or more segments.

    Attributes:
        current: The root's folders, with that of the stream.
        folder: The folder of the states.
        handoff: The record of the states.
        run: The stream.
        resumes: Whether the stream resumes from a savepoint, or from a run that was killed before
            its first savepoint.
    """

    current: Current
    folder: Path
    handoff: Handoff
    run: StreamRun
    resumes: bool

    @property
    def segment(self) -> int:
        """The number of its first segment."""
        return self.handoff.segment + 1


def first_start(config: Configuration, mode: str | None) -> Start:
    """Return the start of a stream that begins with the states of a backfill.

    Raises:
        StateMismatch: There are no states, or they are of other definitions.
    """
    return _first_start(config, config.current.with_next_stream(), mode or config.stream.mode)


def _first_start(config: Configuration, current: Current, mode: str) -> Start:
    folder = current.build_folder / paths.STATES
    handoff = read_record(folder)
    check_goes_on_with(log_of_run(current, None), config.project)
    _check(config, current, folder, handoff)
    if handoff.as_of_us != config.splits.evaluate_until_us:
        raise StateMismatch(
            "the handed-over state ends at another instant than splits.evaluate_until; run "
            "`tidemill backfill` again"
        )
    stream = config.stream
    request = request_hash(config.project.request)
    columns = columns_of(config.project)
    run = StreamRun.beginning(
        handoff, mode, stream.poll_rows, config.clock, stream.joiners, request, columns,
        config.project.spec(),
    )  # fmt: skip
    return Start(current, folder, handoff, run, resumes=False)


def _interrupted_start(current: Current) -> tuple[Current, StreamRun] | None:
    """Find a stream whose start was killed before the online store was filled.

    Returns:
        Its folders and its record; None if the newest start of the generation has ended.
    """
    newest = current.with_stream(current.next_number("stream") - 1)
    if newest.stream <= current.stream:
        return None
    run = StreamRun.read(newest.stream_folder, paths.STREAM_BEGINS)
    return None if run is None else (newest, run)


def next_start(config: Configuration, mode: str | None) -> Start:
    """Return the start of a stream that resumes.

    Raises:
        StateMismatch: There is no stream to resume, its states do not match, or those of its last
            savepoint are lost.
    """
    root, current = config.root, config.current
    if (interrupted := _interrupted_start(current)) is not None:
        begins, begun = interrupted
        _check_mode(begun, mode)
        _check_joiners(begun, config)
        _check_request(begun, config)
        start = _first_start(config, begins, begun.mode)
        if start.handoff.id != begun.began:
            raise _replaced(root)
        return start
    run = StreamRun.read(current.stream_folder)
    if run is None:
        raise StateMismatch(
            f"there is no stream in {root} to resume: none was begun since the last backfill that "
            "corrected history; run `tidemill stream` without --resume"
        )
    run.check_order()
    if run.ended:
        raise StateMismatch(
            f"the stream in {root} has ended and cannot be resumed; run `tidemill stream` without "
            "--resume to start over"
        )
    _check_mode(run, mode)
    _check_joiners(run, config)
    _check_request(run, config)
    folder, handoff = last_states(current)
    check_savepoint_is_there(current.stream_folder, run, folder, handoff)
    if handoff.kind == "backfill" and handoff.id != run.began:
        raise _replaced(root)
    if run.upgraded_from is None and run.as_of_us != config.splits.evaluate_until_us:
        raise StateMismatch(
            f"the stream in {root} began at another instant than splits.evaluate_until; set it "
            "back, or run `tidemill stream` without --resume"
        )
    check_columns(run, config.project, log_of_run(current, run))
    _check(config, current, folder, handoff)
    _check_definitions(run, config)
    return Start(current, folder, handoff, run, resumes=True)


def _check_mode(run: StreamRun, mode: str | None) -> None:
    if mode is not None and mode != run.mode:
        raise StateMismatch(
            f"the stream was begun in mode {run.mode!r}, and its states are of that mode: resume "
            "in it, or start over"
        )


def _check_joiners(run: StreamRun, config: Configuration) -> None:
    if run.joiners != config.stream.joiners:
        raise StateMismatch(
            f"the stream was begun with {run.joiners} joiners, and its states are those of so "
            f"many; the configuration says {config.stream.joiners}: set stream.joiners to "
            f"{run.joiners}, or run `tidemill upgrade` to change their number"
        )


def _check_request(run: StreamRun, config: Configuration) -> None:
    request = config.project.request
    if run.request not in (None, found := request_hash(request)):
        raise StateMismatch(
            f"request {request.name!r}: the stream was begun with definition {run.request}, this "
            f"is {found}; set it back, or run `tidemill backfill`, and `tidemill stream` without "
            "--resume to start over"
        )


def _check_definitions(run: StreamRun, config: Configuration) -> None:
    """Check that all answers of the stream are made, and stamped, by the same definitions."""
    for change in changed_definitions(run, config.project):
        raise StateMismatch(f"the stream was begun with other definitions: {change}; {UPGRADE}")


def _replaced(root: Path) -> StateMismatch:
    return StateMismatch(
        f"the stream in {root} was killed before its first savepoint, and a backfill has "
        "replaced the states that it began with; run `tidemill stream` without --resume"
    )


def _check(config: Configuration, current: Current, folder: Path, handoff: Handoff) -> None:
    check_handoff(folder, handoff, config.project, config.shards)
    check_log(folder, handoff, stream_log(current, config.project), handoff.positions)


def with_scores(start: Start, *, is_scored: bool) -> Start:
    """Record whether a stream that begins has a model; check that one that resumes has it still.

    Raises:
        StateMismatch: A stream that was begun without a model is resumed with one, or the reverse.
    """
    if not start.resumes:
        return replace(start, run=replace(start.run, scored=is_scored))
    if start.run.scored != is_scored:
        begun, now = ("with", "none") if start.run.scored else ("without", "one")
        raise StateMismatch(
            f"the stream in {start.current.root} was begun {begun} a model, and the project has "
            f"{now} now; run `tidemill upgrade` to go on with this version of the project"
        )
    return start


def scored_by(start: Start, bundle: Path | None, since: Sequence[int]) -> Start:
    """Decide which bundle scores the requests that this run reads.

    Args:
        start: The start.
        bundle: The folder of the live bundle; None for a project without a model.
        since: The position of each partition of the request from which on no row was sent yet.

    Returns:
        The start, with the decision; it is to be written down before a row is sent.
    """
    if bundle is None:
        return start
    models = start.run.models
    has_scored = (
        not models and start.resumes and predictions_of(start.current.stream_folder).count() > 0
    )
    decided = with_decision(models, bundle.name, since, has_scored=has_scored)
    return start if decided == models else replace(start, run=replace(start.run, models=decided))


def bundles_of(start: Start, bundle: Path | None) -> tuple[ScoredBy, ...]:
    """Return the bundles that score the requests of a stream; none for a project without a model.

    Args:
        start: The start, with its decisions.
        bundle: The folder of the live bundle.
    """
    if bundle is None:
        return ()
    return _scored_by(start.run, bundle.parent)


def _scored_by(run: StreamRun, bundles: Path) -> tuple[ScoredBy, ...]:
    return tuple(
        ScoredBy(bundles / made["bundle"], tuple(made["positions"]))
        for made in run.models or ()
        if made["bundle"] is not None
    )


@dataclass(frozen=True)
class RecordedBundles:
    """The bundles that score the requests of a stream, as its record says.

    Attributes:
        stream: The folder of the stream.
        bundles: The folder of the bundles.
    """

    stream: Path
    bundles: Path

    def changed(self, since: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return what tells the present record from others; None if it is what it was.

        Args:
            since: What was returned before.
        """
        found = (self.stream / paths.STREAM_RUN).stat()
        state = found.st_mtime_ns, found.st_ino
        return None if state == since else state

    def read(self) -> tuple[ScoredBy, ...]:
        """Return the bundles of now.

        Raises:
            StateError: The record cannot be read.
        """
        run = StreamRun.read(self.stream)
        return () if run is None else _scored_by(run, self.bundles)


def check_savepoint(start: Start, until_us: int, end_us: int) -> None:
    """Check that a savepoint is between the start and the stream's end.

    Raises:
        InputError: It is not.
    """
    begin_us = start.handoff.as_of_us
    if not begin_us <= until_us <= end_us:
        raise InputError(
            f"the stream cannot stop at {write_instant(until_us)}: it starts at "
            f"{write_instant(begin_us)} and ends at {write_instant(end_us)} "
            "(splits.stream_until); choose an instant between them"
        )


def check_positions(start: Start, replayed: StreamPolls) -> None:
    """Check that the states were made from this log.

    Raises:
        StateMismatch: They were made from another log.
    """
    found = by_source(replayed, replayed.start.positions)
    if found != dict(start.handoff.positions):
        raise StateMismatch(
            f"{start.folder}: the states end at positions {start.handoff.positions}, the log has "
            f"{found} at that instant: it was written again; run `tidemill backfill` again"
        )


def by_source(replayed: StreamPolls, positions: Iterable[int]) -> dict[str, list[int]]:
    """Return positions of all partitions by source."""
    found: dict[str, list[int]] = {}
    for (definition, _), position in zip(replayed.sources, positions, strict=True):
        found.setdefault(definition.name, []).append(position)
    return found


def prepare(
    config: Configuration, start: Start, progress: Progress, *, take_over: bool = False
) -> tuple[Start, RunFills]:
    """Bring files and online store to the start of the segment, and take the writer's token.

    Args:
        config: The configuration.
        start: The start of the segment.
        progress: Shows progress.
        take_over: Whether to take key spaces that another root writes.

    Returns:
        The start, its stream recorded, and the fills that the segment publishes to, with its token.

    Raises:
        HeldByAnotherRoot: Another root writes a key space.
        StoreError: The store refuses a write, or has lost publications from before the savepoint.
    """
    stream = start.current.stream_folder
    if not start.resumes:
        # So that a stream that is killed before the store is filled can be resumed.
        start.run.write(stream, paths.STREAM_BEGINS)
        fills = start_over(config, start.handoff, progress, take_over=take_over)
        offline = _offline_of_new_stream(config, start, progress)
        start = replace(start, run=replace(start.run, offline=offline))
        # Last, so that `tidemill stream --resume` repeats all of this after a kill.
        start.run.write(stream)
        show_live_clock(config, start.run)
        _change_current(start, {"stream": start.current.stream})
        (stream / paths.STREAM_BEGINS).unlink()
        return start, fills
    for name in paths.STREAM_OUTPUTS:
        for path in (stream / name).glob("**/*"):
            if (segment_of(path.name) or 0) >= start.segment and path.is_file():
                path.unlink()
    remove_savepoints(stream, but=start.folder)
    for log in offline_logs(config, start).values():
        log.cut_back(start.segment, start.handoff.frontiers[log.directory.parent.name])
    # Register here, once: workers only write rows.
    open_store(config.project, config.places, clock="replay")
    database = open_database(config.online_store)
    try:
        if not keeps_frontiers(config.online_store):
            fills, _ = begin_fills(config, database, start.handoff, lambda _: 0)
        else:
            fills = resumed_fills(config, database, start.run)
        fills = take_token(config, database, fills, take_over=take_over)
        # Read after the token was taken: an elder writer cannot move them any more.
        shown = frontiers_of(database, fills)
    finally:
        database.close()
    if keeps_frontiers(config.online_store):
        _check_store(start, shown)
    return start, fills


def _change_current(start: Start, numbers: Mapping[str, int]) -> None:
    """Let the record name other folders, unless another generation has begun."""
    root = start.current.root
    with changing(root):
        found = read_current(root)
        if found.generation == start.current.generation:
            changed = {"stream": found.stream, "offline": found.offline, **numbers}
            write_current(replace(found, stream=changed["stream"], offline=changed["offline"]))


def offline_logs(config: Configuration, start: Start) -> dict[str, OfflineLog]:
    """Return the offline logs that a stream adds to, by view; none if it adds to none."""
    if start.run.offline is None:
        return {}
    folder = replace(start.current, offline=start.run.offline).offline_root
    return {view.name: OfflineLog.of(folder, view) for view in config.project.views}


def _offline_of_new_stream(config: Configuration, start: Start, progress: Progress) -> int | None:
    """Return the number of the folder of offline logs that a new stream adds to; None for none.

    It adds to the current logs if they are history that ends where it begins. Otherwise readers
    keep these until the new stream has caught up (`offline_caught_up`), and it adds to others that
    end where it begins: links to the history in them, if a stream that began there has added the
    rest; else history is written again. Without any log it adds to none.
    """
    frontiers = start.handoff.frontiers
    logs = {
        view.name: OfflineLog.of(start.current.offline_root, view) for view in config.project.views
    }
    if not any(log.directory.exists() for log in logs.values()):
        return None
    spans = {name: log.ends() for name, log in logs.items()}
    added = _added_by(start.current)
    if added is None and all(spans[name] == frontiers[name] for name in logs):
        return start.current.offline
    others = replace(start.current, offline=start.current.next_number("offline"))
    began_there = added is not None and added.began == start.run.began
    if began_there and all(_covers(spans[name], frontiers[name]) for name in logs):
        for view in config.project.views:
            copy = OfflineLog.of(others.offline_root, view)
            logs[view.name].link_to(copy)
            copy.cut_back(0, frontiers[view.name])
    else:
        _write_history(config, start.handoff, others, progress)
    return others.offline


def _added_by(current: Current) -> StreamRun | None:
    """Return the record of the stream that has added to the offline logs; None if none has."""
    for folder in sorted(current.folder.glob("stream-??????")):
        run = StreamRun.read(folder)
        if run is not None and run.offline == current.offline:
            return run
    return None


def _write_history(
    config: Configuration, handoff: Handoff, current: Current, progress: Progress
) -> None:
    """Write the offline logs of all views up to where a stream begins."""
    views = config.project.views
    with progress.stage("write the offline log", len(views) * config.shards, "shards") as stage:

        def done(view: str, _: int) -> None:
            stage.note(view)
            stage.advance(1)

        log_history(
            views,
            stream_log(current, config.project),
            current.offline_root,
            shards=config.shards,
            until_us={view: min(frontiers) for view, frontiers in handoff.frontiers.items()},
            positions=handoff.positions,
            done=done,
        )


def _covers(ends: Sequence[int], frontiers: Sequence[int]) -> bool:
    return len(ends) == len(frontiers) and all(
        end >= frontier for end, frontier in zip(ends, frontiers, strict=True)
    )


def offline_caught_up(config: Configuration, start: Start) -> bool:
    """Let joins read the logs that a stream adds to, once none ends before the one that they read.

    Returns:
        Whether joins read them now.
    """
    shown = read_current(start.current.root)
    if start.run.offline is None or shown.generation != start.current.generation:
        return False
    if shown.offline == start.run.offline:
        return True
    for view in config.project.views:
        mine = offline_logs(config, start)[view.name].ends()
        read = OfflineLog.of(shown.offline_root, view).ends()
        if not _covers(mine, read):
            return False
    _change_current(start, {"offline": start.run.offline})
    return True


def offline_ends(config: Configuration, start: Start) -> dict[tuple[str, int], int] | None:
    """Return how far the offline logs that a stream adds to reach, by view and shard.

    None if it adds to none.
    """
    if start.run.offline is None:
        return None
    return {
        (view, shard): end_us
        for view, log in offline_logs(config, start).items()
        for shard, end_us in enumerate(log.ends())
    }


def _check_store(start: Start, shown: Mapping[tuple[str, int], int]) -> None:
    for view, frontiers in start.handoff.frontiers.items():
        for shard, frontier in enumerate(frontiers):
            stored = shown.get((view, shard), TIME_MIN)
            if stored < frontier:
                raise LostPublications(
                    f"online store, view {view!r}, shard {shard}: its frontier is "
                    f"{write_instant(stored)}, but the stream continues from "
                    f"{write_instant(frontier)}: it has lost the publications in "
                    "between; run `tidemill republish`, then resume"
                )


def received(run: StreamRun, replayed: StreamPolls) -> dict[str, int]:
    """Count each source's rows from the beginning of the stream to the end of a replay."""
    stop = by_source(replayed, replayed.stop)
    return {name: sum(ends) - sum(run.positions[name]) for name, ends in stop.items()}


def event_counts(
    config: Configuration, run: StreamRun, replayed: StreamPolls
) -> dict[str, EventCounts]:
    """Count each stream's events from the beginning of the stream to the end of a replay."""
    log, stop = stream_log(config.current, config.project), by_source(replayed, replayed.stop)
    with scratch_folder(config.root, "counts") as folder:
        return {
            stream.name: count_logged(
                log,
                stream,
                config.project.views_of(stream.name),
                run.positions[stream.name],
                stop[stream.name],
                folder,
            )
            for stream in config.project.streams
        }


def joiners_at(config: Configuration, folder: Path) -> Joiners:
    """Return the joiners as they are in a folder of states; empty for those of a build.

    Raises:
        StateError: As `pipelines.stream.state_files.read_joiner`.
    """
    stream = config.stream
    joiners = Joiners.empty(config.project, config.shards, stream.answer_within_us, stream.joiners)
    joiners.read(folder)
    return joiners


def keep_savepoint(
    config: Configuration,
    start: Start,
    before: Handoff,
    joiners: Joiners,
    reached: Reached,
    releases: Iterable[Mapping[str, Any]],
) -> Handoff:
    """Write the record of a savepoint, which makes it count; remove the savepoints before it.

    Args:
        config: The configuration.
        start: The start of the run.
        before: The record of the states before it.
        joiners: The joiners as they are at the savepoint.
        reached: What its states contain.
        releases: The evidence of the releases since ``before`` (`pipelines.stream.release_line`).

    Returns:
        The record.

    Raises:
        StateMismatch: The states of the joiners are not those of one savepoint.
    """
    segment = before.segment + 1
    folder = savepoint_folder(start.current.stream_folder, segment)
    reached_us = joiners.frontiers()
    # A shard that has released nothing since keeps its frontier.
    frontiers = {
        view.name: np.maximum(before.frontiers[view.name], reached_us[index]).tolist()
        for index, view in enumerate(config.project.views)
    }
    marks = {name: list(of_view) for name, of_view in before.marks.items()}
    for release in releases:
        marks[release["view"]][release["shard"]] = release["mark"]
    handoff = Handoff(
        kind="stop",
        as_of_us=reached.as_of_us,
        positions=reached.positions,
        views={view.name: view.hash for view in config.project.views},
        shards=config.shards,
        segment=segment,
        frontiers=frontiers,
        polls=reached.polls,
        marks=marks,
        began=start.run.began,
        mode=start.run.mode,
        files=file_hashes(folder, _linked(start, before, folder)),
        generation=start.run.generation,
        digests=cut_digests(stream_log(start.current, config.project), reached.positions),
    )
    handoff.write(folder)
    Savepoint.of(handoff).write(start.current.stream_folder)
    remove_savepoints(start.current.stream_folder, before=segment)
    return handoff


def _linked(start: Start, before: Handoff, folder: Path) -> dict[str, str]:
    """Return the hashes of the files that a savepoint shares with the one before."""
    former = savepoint_folder(start.current.stream_folder, before.segment)
    return {
        name: digest
        for name, digest in before.files.items()
        if (former / name).exists()
        and (folder / name).exists()
        and (former / name).samefile(folder / name)
    }
