"""What the rows of the online store were made from: a stream, or a backfill, of which generation.

After a correction, readers see the rows of the former history until a stream has caught up with
them, or a backfill has published. Each view's rows are proven against the history that they were
made from; the proof says which one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tidemill.features.errors import NoKeySpace
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.release_log import read_release_lines
from tidemill.pipelines.recovery.republish import keeps_frontiers
from tidemill.pipelines.recovery.served_rows import is_begun_with, upgraded_marks
from tidemill.pipelines.recovery.store_fills import cuts_of, is_of_log, key_spaces
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.state_files import state_path
from tidemill.serving.generations.current import Current, streams_of
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.fills import Fill
from tidemill.serving.online.refusals import no_key_space
from tidemill.serving.registry.registration import open_store


class Origin(NamedTuple):
    """What the rows of a view were made from.

    Attributes:
        current: The folders with the log; with a stream if one has published the rows. None if they
            are no longer there.
        is_of_stream: Whether a stream has published them.
        generation: The generation, empty if the store does not know it.
    """

    current: Current | None
    is_of_stream: bool
    generation: str


def find_origins(config: Configuration, streams: Sequence[Current]) -> dict[str, Origin]:
    """Find what the rows of each view that readers see were made from.

    Args:
        config: The configuration.
        streams: The folders of the root's streams that have released, the newest one first.

    Returns:
        By view; empty if nothing was published.

    Raises:
        NoKeySpace: The record of a fill that readers see is gone.
    """
    newest = streams[0] if streams else config.current
    of_newest = Origin(newest, bool(streams), newest.generation)
    if not keeps_frontiers(config.online_store):
        return {view.name: of_newest for view in config.project.views}
    database = open_database(config.online_store)
    if not streams:
        try:
            database.fills(key_spaces(config))
        except NoKeySpace:
            return {}  # nothing was ever published
    open_store(config.project, config.places, clock="replay")  # makes key spaces that are missing
    fills = [fill for fill in database.fills(key_spaces(config)) if fill.is_current]
    marks = {
        fill.space.view: {state.mark.hex() for state in states if state.mark is not None}
        for fill, states in zip(fills, database.part_states(fills), strict=True)
    }
    database.close()
    by_view = {fill.space.view: fill for fill in fills}
    for space in key_spaces(config):
        if space.view not in by_view:  # the record of a fill that readers see was removed
            raise no_key_space(database.name, space)
    published: dict[str, Origin] = {}
    for stream in streams:
        for view, mark in _marks(stream):
            # A mark has no rows in it, so equal polls of two histories have equal marks.
            if mark in marks.get(view, ()) and by_view[view].generation == stream.generation:
                published.setdefault(view, Origin(stream, True, stream.generation))
    for stream in streams_of(config.root):
        if stream in streams:
            continue
        # One that was upgraded has rows before it has released anything, or without ever doing so.
        for view, found in upgraded_marks(stream.stream_folder).items():
            mine = marks.get(view, set())
            if found & mine and by_view[view].generation == stream.generation:
                published.setdefault(view, Origin(stream, True, stream.generation))
    if not streams and not any(marks.values()):
        return {}
    folders = {stream.stream_folder for stream in streams}
    for stream in (*streams, config.current):
        run = StreamRun.read(stream.stream_folder)
        has_released = stream.stream_folder in folders
        if run is None or not (has_released or (run.upgraded_from and not run.ended)):
            continue
        # One that was killed may have published what it has not recorded; one that has released may
        # see its fill as of before, from a copy; and one that goes on with another stream
        # (`pipelines.upgrade`) has rows before it has released anything.
        for definition in config.project.views:
            fill = by_view[definition.name]
            begun = fill.generation == stream.generation
            if begun and fill.cuts == cuts_of(definition, run):
                origin = Origin(stream, True, stream.generation)
                published.setdefault(definition.name, origin)
    return {
        # What has no marks at all was lost or withdrawn: the newest stream says what is missing.
        view.name: published.get(view.name)
        or (_of_backfill(config, by_view[view.name]) if marks.get(view.name) else of_newest)
        for view in config.project.views
    }


def _marks(stream: Current) -> set[tuple[str, str]]:
    def take(entry: Any) -> tuple[str, str]:
        return str(entry["view"]), str(entry["mark"])

    return set(read_release_lines(stream.stream_folder, take))


def _of_backfill(config: Configuration, fill: Fill) -> Origin:
    if is_of_log(config, fill):
        return Origin(_of_build(config.current, fill), False, fill.generation)
    before = replace(config.current, generation=fill.generation, stream=0)
    before = replace(before, build=before.next_number("build") - 1)
    there = bool(fill.generation) and bool(Log(before.build_folder).sources())
    if there and not _has_states(config, before, fill):
        there = False  # a stream that was upgraded made them, and another generation has begun
    return Origin(before if there else None, False, fill.generation)


def _has_states(config: Configuration, current: Current, fill: Fill) -> bool:
    """Tell whether a build has states of a view that are of its present definition."""
    folder, view = current.build_folder / paths.STATES, config.project.view(fill.space.view)
    if not (folder / paths.HANDOFF).exists():
        return False
    handoff = read_record(folder)
    keys = (OperatorKey(view.name, view.hash, shard, fill.shards) for shard in range(fill.shards))
    return (
        handoff.shards == fill.shards
        and handoff.views.get(view.name) == view.hash
        and all(state_path(folder, key).exists() for key in keys)
    )


def _of_build(current: Current, fill: Fill) -> Current:
    """Return the folders with the build that a fill was begun with: a later one may not publish."""
    for number in range(current.build, 0, -1):
        found = replace(current, build=number)
        if not (found.build_folder / paths.STATES / paths.HANDOFF).exists():
            continue
        handoff = read_record(found.build_folder / paths.STATES)
        if is_begun_with(fill, handoff):
            return found
    return current
