"""Publishing whole shards to the online store, from state.

The promises:

* Each part of a shard is written in one step with its mark and frontier. A fill that nobody reads
  is written in chunks, and its frontiers with the last of them. A killed run is simply repeated.
* A republication writes under the token that stands, and ends when another writer takes it. A
  stream may write at the same time: a part that is further already stays as it is. Of a live
  stream that runs or was killed it is what savepoints have sealed.
* The rows are those that the stream published, byte for byte
  (`pipelines.recovery.released_states`).
* Without releases to repeat, one shard at a time is in memory; else all of them, as in the stream.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import BehindReaders, NoKeySpace, StateError, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_writer import retry_while_unavailable
from tidemill.pipelines.recovery.handoff import (
    START_OVER,
    Handoff,
    StreamRun,
    check_handoff,
    check_log,
    last_states,
    read_record,
)
from tidemill.pipelines.recovery.later_states import (
    find_later,
    later_operators,
    publishing_options,
)
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.release_log import last_releases
from tidemill.pipelines.recovery.released_states import released_operators, releases_by_shard
from tidemill.pipelines.recovery.savepoints import what_is_lost
from tidemill.pipelines.recovery.store_fills import (
    EntitiesOf,
    begin_fills,
    fills_of_run,
    key_spaces,
    new_fills,
    take_token,
)
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import this_holder
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.pipelines.stream.featurize_options import (
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.state_files import read_handoff
from tidemill.serving.generations.current import Current
from tidemill.serving.online.backends import missing_guarantees, open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import Fill, PartState
from tidemill.serving.online.parcels import in_chunks, parcels_of
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import FeastPlace, OnlinePlace

CHUNK_ROWS: Final = 1_000
"""Rows of one step into a fill that nobody reads: a Redis serves readers in between."""


def republish(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Publish every entity again, as of the last release of each shard.

    Missing key spaces are created. A stream may run at the same time.

    Returns:
        Counts.

    Raises:
        StateMismatch: There are no states, or they are not those that the stream began with.
        StoreError: The store refuses a write.
    """
    folder, handoff = last_states(config.current)
    try:
        return _republish(config, progress, folder, handoff)
    except StateError:
        if last_states(config.current)[0] == folder:
            raise
    # A stream runs, and has replaced the savepoint meanwhile. Keep the files of the next one.
    with scratch_folder(config.root, "republish") as scratch:
        folder, handoff = _kept_states(config.current, scratch)
        return _republish(config, progress, folder, handoff)


def _kept_states(current: Current, scratch: Path) -> tuple[Path, Handoff]:
    """Link the newest states into a folder, where the stream does not remove them."""
    while True:
        folder, handoff = last_states(current)
        kept = scratch / paths.SAVEPOINTS / folder.name
        try:
            shutil.copytree(folder, kept, copy_function=os.link)
        except OSError:
            shutil.rmtree(kept, ignore_errors=True)
            if last_states(current)[0] == folder:
                raise
        else:
            return kept, handoff


def _republish(
    config: Configuration, progress: Progress, folder: Path, handoff: Handoff
) -> dict[str, Any]:
    project, current = config.project, config.current
    began = StreamRun.read(current.stream_folder)
    if began is not None and (lost := what_is_lost(current.stream_folder, began, folder, handoff)):
        if handoff.kind == "stop":
            raise StateMismatch(f"{lost}; {START_OVER}")
        # The releases can be repeated from the beginning too; their marks prove it.
        progress.say(f"{lost}: the polls of the stream are repeated from its beginning instead")
    check_handoff(folder, handoff, project, config.shards)
    check_log(folder, handoff, stream_log(current, project), handoff.positions)
    releases = releases_by_shard(current.stream_folder)
    begins_with = handoff.id if handoff.kind == "backfill" else handoff.began
    if releases and (began is None or began.began != begins_with):
        raise StateMismatch(
            f"the releases in {current.stream_folder} are not of a stream that began with the "
            f"states in {folder}: a backfill has replaced them since; run `tidemill stream`"
        )
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    open_store(config.project, config.places, clock="replay")
    database = open_database(config.online_store)
    try:
        run, made = _standing_fills(config, database)
        # The fills of a stream end where its releases do.
        shown = shown_frontiers(config) if began is None else None
        counts = publish_states(config, database, folder, progress, releases, run, shown=shown)
        if made:
            database.switch(made, run.writer(made[0].space.view))
    finally:
        database.close()
    return counts


def _standing_fills(config: Configuration, database: OnlineDatabase) -> tuple[RunFills, list[Fill]]:
    """Return the fills that the stream writes, under its token, and those that are new.

    Where there is none (the store was emptied, say), one is begun in its place.
    """
    handoff = _began(config.current)
    run, missing = fills_of_run(config, database, handoff)
    made = []
    if missing:
        made = new_fills(config, database, handoff, missing, entities_in(config))
        run = replace(run, fills={**run.fills, **{fill.space.view: fill for fill in made}})
    without = [fill for fill in run.fills.values() if fill.writer is None]
    if without:
        writer = database.take_token(without, this_holder(config.root))
        taken = {fill.space.view: replace(fill, writer=writer) for fill in without}
        run = replace(run, fills={**run.fills, **taken})
    return run, made


def _began(current: Current) -> Handoff | StreamRun:
    """Return the record of where the fills of a root begin: its stream's, else the build's."""
    run = StreamRun.read(current.stream_folder)
    return read_record(current.build_folder / paths.STATES) if run is None else run


def mend_store(config: Configuration, progress: Progress) -> bool:
    """Publish everything again if the store is behind the last releases of a run; switch readers.

    The store is behind if it lost writes after the last release that could repair them. Readers are
    switched to the run's fills if these have caught up.

    Returns:
        Whether everything was published again.

    Raises:
        StoreUnavailable: The store is unavailable for longer than `Configuration.give_up_after_us`.
        StoreError: The store refuses a write.
    """
    if not keeps_frontiers(config.online_store):
        return False

    def mended() -> bool:
        shards = len(config.project.views) * config.shards
        last = last_releases(config.current.stream_folder, shards)
        run, behind = RunFills({}), True
        database = open_database(config.online_store)
        try:
            handoff = _began(config.current)
            run, missing = fills_of_run(config, database, handoff)
            behind = bool(missing) or _is_behind(database, run, last)
        except NoKeySpace:
            pass  # it was emptied: nothing is reached
        finally:
            database.close()
        if not behind:
            switch_if_caught_up(config, run, progress)
            return False
        progress.say(
            "the online store has lost writes since the last releases; publishing everything again"
        )
        republish(config, progress)
        return True

    name = open_database(config.online_store).name
    return retry_while_unavailable(mended, name, config.give_up_after_us)


def _is_behind(
    database: OnlineDatabase, run: RunFills, last: Mapping[tuple[str, int], Mapping[str, Any]]
) -> bool:
    """Tell whether a part is behind the last release of its shard.

    It is where its frontier is, and where its mark is of an earlier release with that frontier,
    which a republication beside the stream has written.
    """
    for place, slices in _slices(database, run):
        if (release := last.get(place)) is None:
            continue
        for state in slices:
            reached_us = TIME_MIN if state.frontier_us is None else state.frontier_us
            mark = None if state.mark is None else state.mark.hex()
            frontier_us = int(release["frontier_us"])
            is_earlier = reached_us == frontier_us and mark != release.get("mark", mark)
            if reached_us < frontier_us or is_earlier:
                return True
    return False


def switch_if_caught_up(config: Configuration, run: RunFills, progress: Progress) -> RunFills:
    """Switch readers to the fills of a run, or say what they wait for.

    Raises:
        HeldByAnotherRoot: Another root writes a fill that readers see.
        StoreError: The store refuses.
    """
    if not run.unread:
        return run
    database = open_database(config.online_store)
    writer = run.writer(run.unread[0].space.view)
    try:
        return run.updated(database.switch(list(run.fills.values()), writer))
    except BehindReaders as error:
        progress.say(str(error))
        return run
    finally:
        database.close()


def start_over(
    config: Configuration, handoff: Handoff, progress: Progress, *, take_over: bool = False
) -> RunFills:
    """Prepare the online store for the beginning of a stream: the entities as of the backfill.

    A fill that has exactly the marks of the states is gone on with. Any other view gets a new fill,
    which readers are switched to when the stream has caught up with what they see; until then they
    see the old one.

    Args:
        config: The configuration.
        handoff: The record of the states.
        progress: Shows progress.
        take_over: Whether to take key spaces that another root writes.

    Raises:
        HeldByAnotherRoot: Another root writes a key space.
        StoreFull: There is no room for the new fills.
        StoreError: The store refuses a write.
    """
    place = config.online_store
    open_store(config.project, config.places, clock="replay")
    database = open_database(place)
    try:
        if not keeps_frontiers(place):
            database.drop(key_spaces(config))
            database.create(key_spaces(config))
        run, made = begin_fills(config, database, handoff, entities_in(config))
        run = take_token(config, database, run, take_over=take_over)
        if made:
            publish_states(
                config,
                database,
                config.current.build_folder / paths.STATES,
                progress,
                {},
                run,
                [fill.space.view for fill in made],
            )
    finally:
        database.close()
    return switch_if_caught_up(config, run, progress)


def keeps_frontiers(place: OnlinePlace) -> bool:
    """Tell whether an online store keeps frontiers: Feast's own stores do not."""
    return not isinstance(place, FeastPlace)


def shown_frontiers(config: Configuration) -> dict[tuple[str, int], int]:
    """Return the frontiers that readers see, by view and shard; empty if the store keeps none.

    Raises:
        StoreError: The store cannot be read.
    """
    if not keeps_frontiers(config.online_store):
        return {}
    views = config.project.views
    database = open_database(config.online_store)
    snapshots = database.read([(KeySpace.of(config.project.name, view), []) for view in views])
    database.close()
    return {
        (view.name, shard): frontier
        for view, snapshot in zip(views, snapshots, strict=True)
        for shard, frontier in snapshot.frontiers.by_shard.items()
    }


def frontiers_of(database: OnlineDatabase, run: RunFills) -> dict[tuple[str, int], int]:
    """Return the frontiers of the fills of a run, by view and shard; the least of its slices.

    A shard of which a slice has no frontier is left out.
    """
    found = {}
    for place, slices in _slices(database, run):
        known = [state.frontier_us for state in slices if state.frontier_us is not None]
        if len(known) == len(slices):
            found[place] = min(known)
    return found


def _slices(
    database: OnlineDatabase, run: RunFills
) -> Iterator[tuple[tuple[str, int], Sequence[PartState]]]:
    """Yield view and shard, and how far each of its slices is, of all that a run writes."""
    fills = list(run.fills.values())
    for fill, states in zip(fills, database.part_states(fills), strict=True):
        for shard in range(fill.shards):
            yield (
                (fill.space.view, shard),
                states[shard * fill.slices : (shard + 1) * fill.slices],
            )


def entities_in(config: Configuration) -> EntitiesOf:
    """Return a function that counts the entities of a view's first shard at the handoff.

    Shards are cut by a hash of the key, so all of a view have about the same size.
    """
    project = config.project
    options = publishing_options(config)

    def entities(view: str) -> int:
        index = [one.name for one in project.views].index(view)
        operator = make_operator(project, operator_key(project, index, 0, config.shards), options)
        read_handoff(config.current.build_folder / paths.STATES, operator)
        return operator.state.n_entities

    return entities


def publish_states(
    config: Configuration,
    database: OnlineDatabase,
    folder: Path,
    progress: Progress,
    releases: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    run: RunFills,
    views: Collection[str] | None = None,
    shown: Mapping[tuple[str, int], int] | None = None,
) -> dict[str, Any]:
    """Publish every entity of every shard, as of the last of its releases.

    Args:
        config: The configuration; the project is registered.
        database: The online store.
        folder: The states to start from.
        progress: Shows progress.
        releases: By view and shard: the stream's releases; those before the states are ignored. A
            shard without releases is published as of its state.
        run: The fills that are written.
        views: The views to publish; None for all.
        shown: If there are no releases: by view and shard, the frontiers that readers see. States
            that are behind them are brought forward (`pipelines.recovery.later_states`).

    Returns:
        Counts.
    """
    project = config.project
    names = [view.name for view in project.views if views is None or view.name in views]
    later = None
    if not releases:
        later = find_later(config, read_record(folder), names, shown or {})
    if later is None:
        operators = released_operators(config, folder, read_record(folder), releases, names)
    else:
        operators = later_operators(config, folder, later, names)
    entities = written = 0
    total = len(names) * config.shards
    with progress.stage("publish every entity", total=total, unit="shards") as stage:
        for operator in operators:
            stage.note(operator.key.view)
            entities += operator.state.n_entities
            written += publish_shard(database, project.view(operator.key.view), operator, run)
            stage.advance(1)
    return {"entities": entities, "written": written, "shards": total}


def publish_shard(
    database: OnlineDatabase, view: FeatureView, operator: ShardOperator, run: RunFills
) -> int:
    """Write all entities of an operator with the mark and the frontier of its last release.

    Returns:
        The number of rows that changed the store.

    Raises:
        SupersededWriter: Another writer has taken the fill.
        StoreError: The store refuses.
    """
    fill, shard, frontier_us = run.fills[view.name], operator.key.shard, operator.state.frontier_us
    parcels = parcels_of(
        fill,
        run.writer(view.name),
        view,
        named_publications(view, operator.everything()),
        shard=shard,
        mark_before=None,
        mark=operator.mark,
        attempt=None,
        frontier_us=frontier_us,
    )
    if fill.is_current:
        return sum(database.publish(parcels))
    return sum(sum(database.publish(in_chunks(parcel, CHUNK_ROWS))) for parcel in parcels)
