"""Comparing the online store: every entity, read through Feast's own SDK, with batch values.

With the published frontier as the clock, the status of an entity must be:

* ``PRESENT``, with the batch value as of its shard's frontier, from the events that its last
  release had. Anchored features are finished on both sides
  (`serving.online.reader.finish_anchored`).
* ``OUTSIDE_MAX_AGE``, without values, if its shard is behind the others by more than the view's
  ``max_staleness``.
* ``NOT_FOUND``, only if it has no event before the frontier: the stream publishes the entities of
  the handed-over states when it begins, every other at its first event, and empty windows too.

The rows that are in what a stream has published follow from the marks in the store
(`pipelines.verify.outputs.compare_rows`). What a backfill has published has no releases
(`pipelines.recovery.later_states`): such rows are compared as of the frontiers that the store says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import (
    EARLIEST_EVENT,
    TIME_MIN,
    BoolArray,
    Int64Array,
    ReadStatus,
)
from tidemill.features.definitions import ARROW_TYPES, FeatureView
from tidemill.features.feast_objects import field_name
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import UInt8Array
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import RECEIVED
from tidemill.pipelines.recovery.later_states import published_until
from tidemill.pipelines.run.progress import Progress, StageProgress
from tidemill.pipelines.verify.compare_predictions import differ, patterns
from tidemill.pipelines.verify.diagnosis import written
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.source_history import History, SourceHistory
from tidemill.serving.files.locks import is_locked
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import finish_anchored
from tidemill.serving.online.rows import Frontiers, KeySpace, online_keys
from tidemill.serving.registry.registration import feast_name, open_store

Applied: TypeAlias = Callable[[FeatureView, SourceHistory, Frontiers], BoolArray]
"""Tells which rows of a view's stream are in what readers see: bool, ``(rows,)``."""

_BATCH: Final = 1_000


@dataclass(frozen=True, eq=False)
class Reading:
    """The answer of Feast's SDK for entities of a view.

    Attributes:
        columns: Stored values in the order of the view's columns, each ``(entities,)``.
        statuses: The status of each entity; if its fields differ, all of them.
    """

    columns: list[pa.Array]
    statuses: list[str]


class StoreCounts(NamedTuple):
    """How much was compared.

    Attributes:
        entities: Entities read, over all views.
        values: Values compared.
        not_found: Entities that must have no row.
        outside_max_age: Entities whose shard must count as stale.
    """

    entities: int = 0
    values: int = 0
    not_found: int = 0
    outside_max_age: int = 0

    def as_figures(self) -> dict[str, int]:
        """Return the counts by the names that they have in the figures of a proof."""
        return {f"store_{name}": count for name, count in self._asdict().items()}


def check_store(
    config: Configuration,
    history: History,
    applied: Applied,
    views: Collection[str],
    progress: Progress,
    findings: Findings,
    is_still: Callable[[str], bool] | None = None,
) -> StoreCounts:
    """Read every entity of some views, and compare.

    Args:
        config: The configuration.
        history: The history that the rows of these views are from.
        applied: Tells which rows of the source are in what readers see.
        views: The views.
        progress: Where progress is shown.
        findings: Takes the mismatches.
        is_still: Tells whether nothing was published to a view meanwhile; None if nobody can.
    """
    project = config.project
    store = open_store(project, config.places, clock="replay")
    database = open_database(config.online_store)
    total = StoreCounts()
    with progress.stage("read the store back", None, "entities") as stage:
        for view in project.views:
            if view.name not in views:
                continue
            stage.note(view.name)
            (snapshot,) = database.read([(KeySpace.of(project.name, view), [])])
            source, frontiers = history.of(view), snapshot.frontiers
            rows = source.rows.filter(pa.array(applied(view, source, frontiers)))
            rows = rows.filter(pc.is_valid(rows.column(view.key)))
            found_now = Findings()
            found = _check_view(rows, store, view, frontiers, config.shards, found_now, stage)
            if is_still is not None and not is_still(view.name):
                progress.say(f"view {view.name}: {_why_not_compared(config)}")
                continue
            findings.merge(found_now)
            total = StoreCounts(*map(operator.add, total, found))
    database.close()
    return total


def _why_not_compared(config: Configuration) -> str:
    """Say why the rows of a view that are not still are not compared."""
    if is_locked(config.current.stream_lock):
        return (
            "the stream publishes while it is read, so its rows in the online store are not "
            "compared"
        )
    return (
        "its rows in the online store are of releases that no savepoint holds (the stream was "
        "killed, or another writer has taken over), and are not compared: run `tidemill stream "
        "--resume`, and verify again"
    )


def received_before(
    config: Configuration, view: FeatureView, source: SourceHistory, frontiers: Frontiers
) -> BoolArray:
    """Tell which rows a backfill that published has applied: a frontier follows from their end.

    Args:
        config: The configuration.
        view: The view.
        source: The history of its stream.
        frontiers: What the store says.

    Returns:
        bool, ``(rows,)``.
    """
    until_us = published_until(config, view, frontiers.highest)
    applied: BoolArray = source.words(RECEIVED) < until_us
    return applied


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _check_view(
    rows: pa.Table,
    store: Any,
    view: FeatureView,
    frontiers: Frontiers,
    shards: int,
    findings: Findings,
    stage: StageProgress,
) -> StoreCounts:
    keys = _one_array(pc.unique(rows.column(view.key)))
    # An empty store has no number of shards.
    of_keys = hashing.shard_of(hashing.key_bytes(keys), frontiers.shard_count or shards)
    raw = online_keys(view.entity.join_key, keys)
    instants = np.array(list(map(frontiers.of, of_keys.tolist(), raw)), np.int64)
    # A shard without a frontier has no instant: its entities are OUTSIDE_MAX_AGE.
    right = values_at(view, rows, keys, np.maximum(instants, EARLIEST_EVENT))
    expected = expected_statuses(view, frontiers, rows, keys, instants)
    stage.note(f"{view.name}: {len(keys):,} entities")
    reading = read_through_feast(store, view, keys, stage)
    finished = [
        finish_anchored(column, values, instants)
        for column, values in zip(view.columns, reading.columns, strict=True)
    ]
    seen = patterns(finished) if len(keys) else right
    compare_readings(view, keys, instants, expected, reading.statuses, seen, right, findings)
    present = [status == ReadStatus.PRESENT.name for status in expected]
    return StoreCounts(
        entities=len(keys),
        values=sum(present) * len(view.columns),
        not_found=expected.count(ReadStatus.NOT_FOUND.name),
        outside_max_age=expected.count(ReadStatus.OUTSIDE_MAX_AGE.name),
    )


def expected_statuses(
    view: FeatureView, frontiers: Frontiers, rows: pa.Table, keys: pa.Array, instants: Int64Array
) -> list[str]:
    """Return the status that a reader must find for each entity.

    Args:
        view: The view.
        frontiers: What the store says.
        rows: The events that are in what readers see, at least one of each entity.
        keys: The entities.
        instants: int64, ``(entities,)``: the frontier of each.
    """
    times = rows.column(view.stream.event_time).cast(pa.int64())
    first = rows.select([view.key]).append_column("time", times)
    first = first.group_by(view.key).aggregate([("time", "min")])
    earliest = dict(zip(first[view.key].to_pylist(), first["time_min"].to_pylist(), strict=True))
    now = frontiers.highest
    out = []
    for key, frontier in zip(keys.to_pylist(), instants.tolist(), strict=True):
        if earliest[key] >= frontier:
            out.append(ReadStatus.NOT_FOUND.name)
        elif frontier <= TIME_MIN or now - frontier > view.max_staleness_us:
            out.append(ReadStatus.OUTSIDE_MAX_AGE.name)
        else:
            out.append(ReadStatus.PRESENT.name)
    return out


def read_through_feast(
    store: Any, view: FeatureView, keys: pa.Array, stage: StageProgress | None = None
) -> Reading:
    """Read entities by Feast's ``FeatureStore.get_online_features``, in batches.

    Args:
        store: A ``feast.FeatureStore`` (`serving.registry.registration.open_store`).
        view: The view.
        keys: Entity keys, ``(rows,)``, without nulls.
        stage: Where progress is shown.

    Returns:
        The stored values (anchors are not finished; null where the status is not ``PRESENT``)
        and the statuses.
    """
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    names = [field_name(column) for column in view.columns]
    # While another definition is promoted, the code's definition has a name of its own.
    registered = feast_name(store, view)
    values: list[list[int | float | None]] = [[] for _ in names]
    statuses: list[str] = []
    for start in range(0, len(keys), _BATCH):
        some = keys.slice(start, _BATCH).to_pylist()
        response = store.get_online_features(
            features=[f"{registered}:{name}" for name in names],
            entity_rows=[{view.entity.join_key: key} for key in some],
        ).proto
        by_name = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
        vectors = [by_name[name] for name in names]
        for place, vector in enumerate(vectors):
            values[place] += [_plain(value) for value in vector.values]
        for row in range(len(some)):
            found = {FieldStatus.Name(vector.statuses[row]) for vector in vectors}
            statuses.append(found.pop() if len(found) == 1 else "/".join(sorted(found)))
        if stage is not None:
            stage.advance(len(some))
    return Reading(
        [
            pa.array(column, ARROW_TYPES[definition.dtype])
            for column, definition in zip(values, view.columns, strict=True)
        ],
        statuses,
    )


def _plain(value: Any) -> int | float | None:
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    number: int | float = getattr(value, kind)
    return number


def compare_readings(
    view: FeatureView,
    keys: pa.Array,
    instants: Int64Array,
    expected: Sequence[str],
    statuses: Sequence[str],
    seen: tuple[Int64Array, UInt8Array],
    right: tuple[Int64Array, UInt8Array],
    findings: Findings,
) -> None:
    """Compare what was read for entities with what they must have.

    Args:
        view: The view.
        keys: The entities.
        instants: int64, ``(entities,)``: the frontier of each.
        expected: The status that each must have.
        statuses: The status that was found.
        seen: Patterns and nulls of the values that were found, ``(entities, columns)``.
        right: Those that are right.
        findings: Takes the mismatches.
    """
    different = differ(seen, right)
    for row, (should, status) in enumerate(zip(expected, statuses, strict=True)):
        key, frontier = str(keys[row].as_py()), int(instants[row])
        if should != status:
            # The status is wrong, so count every value of this entity as wrong.
            findings.add(
                Mismatch(
                    "store", key, view.name, "status", frontier, status, should,
                    _status_cause(should, status), entity=key,
                ),
                len(view.columns),
            )  # fmt: skip
        elif should == ReadStatus.PRESENT.name and different[row].any():
            for column in np.flatnonzero(different[row]).tolist():
                definition = view.columns[column]
                dtype = definition.dtype
                findings.add(
                    Mismatch(
                        "store", key, view.name, definition.name, frontier,
                        written(seen, row, column, dtype), written(right, row, column, dtype),
                        "the stored row is not the newest publication of the entity", entity=key,
                    )
                )  # fmt: skip


def _status_cause(should: str, status: str) -> str:
    if status == ReadStatus.NOT_FOUND.name:
        return "the entity has events before the frontier and no row in the store"
    if should == ReadStatus.NOT_FOUND.name:
        return "the entity has a row in the store and no event before the frontier"
    if status == ReadStatus.OUTSIDE_MAX_AGE.name:
        return "the stored row is older than the frontier: it should have been replaced"
    return "the status does not follow from frontier, clock and max_staleness"
