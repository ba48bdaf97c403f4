"""Which fills of the online store a run writes: those that it can go on with, else new ones.

* A stream that starts goes on with a fill whose marks are those of its states; for any other view
  it begins a fill beside the one that readers see, to which they are switched when it has caught
  up.
* A stream that resumes finds the fills that it wrote before: being filled by its root, else the
  current ones, begun with the same states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from tidemill.features.definitions import FeatureView
from tidemill.features.errors import DamagedFile, LostPublications, StateVersionError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run.holder import this_holder
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import (
    Fill,
    FillState,
    NewFill,
    PartState,
    slices_for,
)
from tidemill.serving.online.refusals import held
from tidemill.serving.online.rows import KeySpace

EntitiesOf = Callable[[str], int]
"""View to about how many entities a shard of it has."""


def key_spaces(config: Configuration) -> list[KeySpace]:
    """Return the key spaces of the project's views, in their order."""
    return [KeySpace.of(config.project.name, view) for view in config.project.views]


def begin_fills(
    config: Configuration, database: OnlineDatabase, handoff: Handoff, entities_of: EntitiesOf
) -> tuple[RunFills, list[Fill]]:
    """Choose the fills of a stream that starts with the states of a backfill.

    Fills that this root began before and does not go on with are removed.

    Args:
        config: The configuration; the project is registered.
        database: The online store.
        handoff: The record of the states.
        entities_of: The size of new fills.

    Returns:
        The fills, without a writer yet, and those of them that must be filled.

    Raises:
        StoreFull: There is no room for the new fills.
        StoreError: The store refuses.
    """

    def goes_on(fill: Fill, shard: int, state: PartState) -> bool:
        frontier_us = handoff.frontiers[fill.space.view][shard]
        mark = bytes.fromhex(handoff.marks[fill.space.view][shard])
        return state == PartState(mark, frontier_us)

    run, made = _chosen(config, database, handoff, goes_on, entities_of)
    # From here on the rows are those of this generation and mode (`take_token`).
    generation, mode = handoff.generation, config.stream.mode
    fills = {
        view: replace(fill, generation=generation, mode=mode) for view, fill in run.fills.items()
    }
    return replace(run, fills=fills), made


def bootstrap_fills(
    config: Configuration, database: OnlineDatabase, handoff: Handoff, entities_of: EntitiesOf
) -> tuple[RunFills, list[Fill]]:
    """Choose the fills of a backfill that publishes: new ones where readers see another history.

    The fill that readers see stays as it is if it was begun with the same states and has reached
    them, unless rows after the states were corrected too and readers have been shown them. So does
    the one that the root's stream writes, with whatever states it began: the stream goes on with
    it. One that readers do not see yet is left to the stream, too.

    Returns:
        As `begin_fills`.
    """
    run = StreamRun.read(config.current.stream_folder)
    stream = None if run is None or run.ended else run

    def has_reached(fill: Fill, shard: int, state: PartState) -> bool:
        if not fill.is_current:
            return False  # a stream that began over fills it: no reader sees it yet
        frontier_us = handoff.frontiers[fill.space.view][shard]
        if state.frontier_us is None or state.frontier_us < frontier_us:
            return False
        return state.frontier_us == frontier_us or is_of_log(config, fill)

    return _chosen(config, database, handoff, has_reached, entities_of, stream)


def is_of_log(config: Configuration, fill: Fill) -> bool:
    """Tell whether all rows that a fill can hold stand in the current log, as they were.

    Args:
        config: The configuration.
        fill: A fill of one of its views.

    Returns:
        Whether the fill was begun in the current generation, or the log of the fill's generation
        has the same rows of the view's stream. False if that log is no longer there.
    """
    current = config.current
    if fill.generation == current.generation:
        return True
    before = replace(current, generation=fill.generation).newest_build
    log, source = Log(before), config.project.view(fill.space.view).stream.name
    if source not in log.sources():
        return False
    try:
        ends = log.lengths(source)
        found = log.prefix_digest(source, ends)
    except (DamagedFile, StateVersionError):
        return False  # then nothing shows that they are the same
    return found == stream_log(current, config.project).prefix_digest(source, ends)


def fills_of_run(
    config: Configuration, database: OnlineDatabase, handoff: Handoff | StreamRun
) -> tuple[RunFills, list[str]]:
    """Find the fills that the root's stream writes.

    Args:
        config: The configuration; the project is registered.
        database: The online store.
        handoff: The record of the states of the backfill that the stream began with.

    Returns:
        The fills, with the writers that stand, and the views without one.
    """
    chosen: dict[str, Fill] = {}
    missing = []
    for view in config.project.views:
        found = [
            fill
            for fill in _candidates(config, database, view.name)
            if fill.shards == config.shards
            and _same_history(view, handoff, fill)
            and (
                fill.generation == handoff.generation
                or (isinstance(handoff, Handoff) and is_of_log(config, fill))
            )
        ]
        if found:
            # One that is being filled is newer than the current one.
            chosen[view.name] = min(found, key=lambda fill: fill.is_current)
        else:
            missing.append(view.name)
    return RunFills(chosen), missing


def resumed_fills(config: Configuration, database: OnlineDatabase, handoff: StreamRun) -> RunFills:
    """Find the fills of a stream that resumes.

    Raises:
        LostPublications: The store has none for a view.
    """
    found, missing = fills_of_run(config, database, handoff)
    if missing:
        raise LostPublications(
            f"{database.name}: no key space of view {', '.join(missing)} was filled from the "
            "states that this stream began with: the store was emptied, lost writes, or was filled "
            "from another history; run `tidemill republish`, then resume"
        )
    return found


def new_fills(
    config: Configuration,
    database: OnlineDatabase,
    handoff: Handoff | StreamRun,
    views: Sequence[str],
    entities_of: EntitiesOf,
) -> list[Fill]:
    """Begin fills of views, from the states of a backfill.

    Their mode is that of the stream, or the configured one if none has begun.
    """
    made = []
    for view in config.project.views:
        if view.name in views:
            entities = entities_of(view.name)
            made.append(
                NewFill(
                    space=KeySpace.of(config.project.name, view),
                    shards=config.shards,
                    slices=slices_for(entities),
                    generation=handoff.generation,
                    cuts=cuts_of(view, handoff),
                    mode=handoff.mode or config.stream.mode,
                    expected_rows=entities * config.shards,
                )
            )
    return database.begin_fills(made)


def take_token(
    config: Configuration, database: OnlineDatabase, run: RunFills, *, take_over: bool
) -> RunFills:
    """Take the token of all fills of a run, and of those that readers see instead, in one step.

    So a writer of what readers see ends before the run begins, and cannot run ahead of it.

    Raises:
        HeldByAnotherRoot: Another root writes one of them.
    """
    fills = list(run.fills.values())
    fills += [
        fill
        for fill in database.fills(key_spaces(config))
        if fill.is_current and fill.id != run.fills[fill.space.view].id
    ]
    writer = database.take_token(fills, this_holder(config.root), take_over=take_over)
    return run.written_by(writer)


def check_holders(config: Configuration, database: OnlineDatabase) -> None:
    """Check that no other root writes what readers see.

    Raises:
        HeldByAnotherRoot: One does.
    """
    root = this_holder(config.root).root
    for fill in database.fills(key_spaces(config)):
        if fill.is_current and fill.writer is not None and fill.writer.holder.root != root:
            raise held(database.name, fill, fill.writer.holder)


def _chosen(
    config: Configuration,
    database: OnlineDatabase,
    handoff: Handoff,
    fits: Callable[[Fill, int, PartState], bool],
    entities_of: EntitiesOf,
    stream: StreamRun | None = None,
) -> tuple[RunFills, list[Fill]]:
    """Choose the fills that fit, and begin others; remove those that neither fit nor are read.

    Args:
        config: The configuration.
        database: The online store.
        handoff: The record of the states.
        fits: Tells of each part of a fill whether it fits.
        entities_of: The size of new fills.
        stream: The record of a stream that goes on, whose fills fit and are not removed.
    """
    chosen: dict[str, Fill] = {}
    for view in config.project.views:
        candidates = _candidates(config, database, view.name)
        unfit = []
        for fill in candidates:
            (states,) = database.part_states([fill])
            of_stream = _is_of_stream(view, stream, fill)
            if (
                view.name not in chosen
                and fill.shards == config.shards
                and (of_stream or _same_history(view, handoff, fill))
                and all(fits(fill, part // fill.slices, at) for part, at in enumerate(states))
            ):
                chosen[view.name] = fill
            elif not (fill.is_current or of_stream):
                unfit.append(fill)
        _remove(config, database, unfit, candidates)
    views = [view.name for view in config.project.views]
    missing = [name for name in views if name not in chosen]
    made = new_fills(config, database, handoff, missing, entities_of) if missing else []
    chosen |= {fill.space.view: fill for fill in made}
    run = RunFills({name: chosen[name] for name in views})
    return run, made


def _remove(
    config: Configuration, database: OnlineDatabase, unfit: Sequence[Fill], all_: Sequence[Fill]
) -> None:
    """Remove fills of a view; whoever writes them finds that they were taken, not lost."""
    if not unfit:
        return
    holder = this_holder(config.root)
    # The token of what readers see stays when the fill is gone, and says who removed it.
    shown = [
        fill
        for fill in all_
        if fill.is_current and (fill.writer is None or fill.writer.holder.root == holder.root)
    ]
    database.take_token([*unfit, *shown], holder)
    database.drop_fills(unfit)


def _candidates(config: Configuration, database: OnlineDatabase, view: str) -> list[Fill]:
    """Return the current fill of a view, and those that this root is filling."""
    space = KeySpace.of(config.project.name, config.project.view(view))
    root = this_holder(config.root).root
    return [
        fill
        for fill in database.fills([space])
        if fill.is_current
        or (
            fill.state is FillState.FILLING
            and fill.writer is not None
            and fill.writer.holder.root == root
        )
    ]


def cuts_of(view: FeatureView, handoff: Handoff | StreamRun) -> str:
    """Return the cut that a view's rows are made from; only its own stream matters.

    Those of a view that a stream has taken over from another version of the project are made from
    the cut that the stream before began with.
    """
    if isinstance(handoff, StreamRun) and view.name in (handoff.fill_cuts or {}):
        return (handoff.fill_cuts or {})[view.name]
    source = view.stream.name
    return json.dumps(
        {"positions": {source: handoff.positions[source]}, "digest": handoff.digests[source]},
        sort_keys=True,
    )


def _same_history(view: FeatureView, handoff: Handoff | StreamRun, fill: Fill) -> bool:
    """Tell whether a fill was begun with states of the same rows."""
    return fill.cuts == cuts_of(view, handoff)


def _is_of_stream(view: FeatureView, stream: StreamRun | None, fill: Fill) -> bool:
    """Tell whether a stream that goes on writes a fill."""
    if stream is None or (stream.views or {}).get(view.name) != view.hash:
        return False
    return fill.generation == stream.generation and _same_history(view, stream, fill)
