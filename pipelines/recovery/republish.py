"""Publishing whole shards to the online store, from state.

The promises:

* All entities of a state are written first, and then the shard's frontier. Before the frontier is
  written, readers see that the age of the rows is unknown; a killed run is simply repeated.
* The store orders rows itself, so a stream may write at the same time: rows that the store has
  already, and newer rows, stay.
* The rows are those that the stream published, byte for byte, also after late events. The
  publication of a late event is valid from the frontier at which it was applied, so releases are
  repeated as the release log states them; where no event was late, many at once.
* One shard at a time is in memory, and its rows are written in chunks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import NoKeySpace, StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.log import POSITION, Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.publish.store_writer import retry_while_unavailable
from tidemill.pipelines.recovery.handoff import (
    Handoff,
    StreamRun,
    check_handoff,
    check_log,
    last_states,
)
from tidemill.pipelines.recovery.log_parts import source_partitions
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.sequence import SequencedBatch, event_rows
from tidemill.pipelines.stream.state_files import read_handoff
from tidemill.serving.online.backends import missing_guarantees, open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.parcels import online_rows, parcel_of
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import FeastPlace, OnlinePlace

CHUNK_ROWS: Final = 10_000
"""Rows of one write."""
STEP_ROWS: Final = 262_144
"""About how many rows of the log are applied in one step."""


def republish(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Publish every entity again, as of the last release of each shard.

    Missing key spaces are created. A stream may run at the same time.

    Returns:
        Counts.

    Raises:
        StateMismatch: There are no states, or they are not those that the stream began with.
        StoreError: The store refuses a write.
    """
    project, current = config.project, config.current
    folder, handoff = last_states(current)
    check_handoff(folder, handoff, project, config.shards)
    check_log(folder, handoff, Log(current.build_folder), handoff.positions)
    releases = _releases_by_shard(current.stream_folder)
    began = StreamRun.read(current.stream_folder)
    begins_with = handoff.id if handoff.kind == "backfill" else handoff.began
    if releases and (began is None or began.began != begins_with):
        raise StateMismatch(
            f"the releases in {current.stream_folder} are not of a stream that began with the "
            f"states in {folder}: a backfill has replaced them since; run `tidemill stream`"
        )
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    open_store(config.project, config.places, clock="replay")
    return publish_states(config, folder, progress, releases)


def mend_store(config: Configuration, progress: Progress) -> bool:
    """Publish everything again if the store is behind the last releases of a run.

    This happens if the store lost writes after the last release that could repair them.

    Returns:
        Whether everything was published again.

    Raises:
        StoreUnavailable: The store is unavailable for longer than `Configuration.give_up_after_us`.
        StoreError: The store refuses a write.
    """
    if not keeps_frontiers(config.online_store):
        return False

    def mended() -> bool:
        try:
            shown = shown_frontiers(config)
        except NoKeySpace:
            shown = {}
        released: dict[tuple[str, int], int] = {}
        for entry in read_releases(config.current.stream_folder):
            key = (entry["view"], entry["shard"])
            released[key] = max(released.get(key, TIME_MIN), entry["frontier_us"])
        if all(shown.get(key, TIME_MIN) >= frontier for key, frontier in released.items()):
            return False
        progress.say(
            "the online store has lost writes since the last releases; publishing everything again"
        )
        republish(config, progress)
        return True

    name = open_database(config.online_store).name
    return retry_while_unavailable(mended, name, config.give_up_after_us)


def start_over(config: Configuration, handoff: Handoff, progress: Progress) -> None:
    """Bring the online store to the beginning of a stream: the entities as of the backfill.

    A store that already has exactly these frontiers is left as it is. Any other store, which an
    earlier run or another backfill has filled, is emptied and filled again; in between its readers
    find no rows.
    """
    place = config.online_store
    open_store(config.project, config.places, clock="replay")
    if keeps_frontiers(config.online_store):
        expected = {
            (view, shard): frontier
            for view, frontiers in handoff.frontiers.items()
            for shard, frontier in enumerate(frontiers)
        }
        if shown_frontiers(config) == expected:
            return
    spaces = [KeySpace.of(config.project.name, view) for view in config.project.views]
    database = open_database(place)
    database.drop(spaces)
    database.create(spaces)
    database.close()
    publish_states(config, config.current.build_folder / paths.STATES, progress, {})


def keeps_frontiers(place: OnlinePlace) -> bool:
    """Tell whether an online store keeps frontiers: Feast's own stores do not."""
    return not isinstance(place, FeastPlace)


def shown_frontiers(config: Configuration) -> dict[tuple[str, int], int]:
    """Return the frontiers in the online store, by view and shard; empty if it keeps none.

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


def publish_states(
    config: Configuration,
    folder: Path,
    progress: Progress,
    releases: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Publish every entity of every shard, as of the last of its releases.

    Args:
        config: The configuration; the project is registered.
        folder: The states to start from.
        progress: Shows progress.
        releases: By view and shard: the stream's releases; those before the states are ignored. A
            shard without releases is published as of its state.

    Returns:
        Counts.
    """
    project, log = config.project, Log(config.current.build_folder)
    options = FeaturizeOptions(
        run="publish",
        shards=config.shards,
        partitions=source_partitions(log, project),
        publish=False,
    )
    database = open_database(config.online_store)
    entities = written = 0
    total = len(project.views) * config.shards
    with progress.stage("publish every entity", total=total, unit="shards") as stage:
        for index, view in enumerate(project.views):
            stage.note(view.name)
            for shard in range(config.shards):
                key = operator_key(project, index, shard, config.shards)
                operator = make_operator(project, key, options)
                read_handoff(folder, operator)
                bring_forward(project, view, log, operator, releases.get((view.name, shard), ()))
                entities += operator.state.n_entities
                written += publish_shard(database, project, view, operator)
                stage.advance(1)
    database.close()
    return {"entities": entities, "written": written, "shards": total}


def publish_shard(
    database: OnlineDatabase, project: Project, view: FeatureView, operator: ShardOperator
) -> int:
    """Write all entities of an operator, and then their frontier.

    Returns:
        The number of rows that changed the store.
    """
    shard, everything = operator.key.shard, operator.everything()
    space = KeySpace.of(project.name, view)
    written = 0
    last = max(everything.num_rows - 1, 0) // CHUNK_ROWS * CHUNK_ROWS
    for start in range(0, last, CHUNK_ROWS):
        some = named_publications(view, everything.slice(start, CHUNK_ROWS))
        written += database.write(space, online_rows(view, some, shard))
    parcel = parcel_of(
        project.name,
        view,
        named_publications(view, everything.slice(last)),
        shard=shard,
        shard_count=operator.key.shards,
        since_us=None,
        frontier_us=operator.state.frontier_us,
    )
    return written + sum(database.publish([parcel]))


def _releases_by_shard(root: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    out: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in read_releases(root):
        out[entry["view"], entry["shard"]].append(entry)
    return out


def bring_forward(
    project: Project,
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    releases: Iterable[Mapping[str, Any]],
) -> None:
    """Repeat the releases after an operator's state.

    Args:
        project: The project.
        view: The operator's view.
        log: The log with the events.
        operator: The operator; after the call its state is that of the last release.
        releases: The releases from the release log, sorted by number.

    Raises:
        StateMismatch: A release is missing.
    """
    ahead = [entry for entry in releases if entry["number"] > operator.number]
    numbers = [entry["number"] for entry in ahead]
    if numbers != list(range(operator.number + 1, operator.number + 1 + len(ahead))):
        raise StateMismatch(
            f"{operator.key}: the release log has releases {numbers[:3]}... after "
            f"{operator.number}, with gaps, so it is unknown what was published: run "
            "`tidemill stream` again"
        )
    if not ahead:
        return
    positions = np.array([entry["positions"] for entry in ahead], np.int64)
    frontiers = np.array([entry["frontier_us"] for entry in ahead], np.int64)
    for end in _step_ends(view, log, operator, positions, frontiers):
        batches = list(_batches(project, view, log, operator, positions[end].tolist()))
        operator.catch_up(batches, int(frontiers[end]))
    operator.number = numbers[-1]


def _step_ends(
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    positions: Int64Array,
    frontiers: Int64Array,
) -> list[int]:
    """Return the last release of each step: the releases of a step can be applied at once.

    An event's change point is the later of the instant after the event and the frontier before its
    release. Releases applied at once all have the frontier before the first of them. So a release
    that applies a late event must be the first of its step.
    """
    first_of_step = np.zeros(len(frontiers) + 1, np.bool_)
    first_of_step[-1] = True
    before = np.concatenate([[operator.state.frontier_us], frontiers])
    for partition in range(operator.inputs.event_partitions):
        start, stop = operator.expected[partition], int(positions[-1, partition])
        rows = log.read(view.stream.name, partition, [view.stream.event_time, view.key])
        event_times, keys = one_batch(rows.slice(start, stop - start)).columns
        times = hashing.bits(event_times)
        applied = np.searchsorted(positions[:, partition], np.arange(start, stop), "right")
        late = (times + 1 < before[applied]) & _of_shard(operator, keys)
        first_of_step[applied[late]] = True
    taken = positions[:, : operator.inputs.event_partitions].sum(axis=1).tolist()
    since = sum(operator.expected[: operator.inputs.event_partitions])
    for release in range(1, len(frontiers)):
        if taken[release] - since > STEP_ROWS:
            first_of_step[release] = True
        if first_of_step[release]:
            since = taken[release - 1]
    return [int(at) - 1 for at in np.flatnonzero(first_of_step) if at > 0]


def _of_shard(operator: ShardOperator, keys: pa.Array) -> BoolArray:
    shards = hashing.shard_of(hashing.key_bytes(keys), operator.key.shards)
    found: BoolArray = shards == operator.key.shard
    return found


def _batches(
    project: Project,
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    until: Sequence[int],
) -> Iterator[SequencedBatch]:
    """Read an operator's events up to some positions; requests without rows."""
    events = operator.inputs.event_partitions
    for index, stop in enumerate(until):
        is_request = index >= events
        partition = index - events if is_request else index
        start = operator.expected[index]
        rows = None
        if not is_request and stop > start:
            logged = one_batch(log.read(view.stream.name, partition).slice(start, stop - start))
            mine = logged.filter(pa.array(_of_shard(operator, logged.column(view.key))))
            rows = _event_rows(
                project,
                view,
                operator,
                PollPart(view.stream.name, partition, start, stop, TIME_MIN, mine),
            )
        # The release log has no watermarks. The old watermark is low enough that the operator
        # forgets no row too early.
        watermark = operator.watermarks[index]
        yield SequencedBatch(is_request, partition, start, stop, watermark, 0, rows)


def _event_rows(
    project: Project, view: FeatureView, operator: ShardOperator, part: PollPart
) -> pa.RecordBatch | None:
    """Validate rows of the log as the stream does, and prepare them for the operator."""
    (judged,) = validated_poll(project, Poll(0, (part,)))[0].parts
    if judged.rows is None:
        return None
    positions = hashing.bits(judged.rows.column(POSITION))
    declared = judged.rows.select(list(view.stream.schema))
    return event_rows(operator.plan, view, declared, positions)
