"""The state of a shard, put together from the states of its parts.

It has the bytes of the state of an operator that has taken all rows received before its instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import Project
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.dedupe import FORGET_FROM, UInt64Array
from tidemill.features.kernel.encoding import EncodedEntities, encode_merged
from tidemill.features.kernel.tiles.state import Counters
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.spill import SpillFile
from tidemill.pipelines.recovery.log_parts import wait_us
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import OperatorCounters, ShardOperator
from tidemill.pipelines.stream.operator_state import Remembered, encode_snapshot_of
from tidemill.pipelines.stream.state_files import write_handoff_of


def write_state(project: Project, plan: HistoryPlan, view: int, shard: int, folder: Path) -> int:
    """Write the state of a shard, from which a stream starts.

    Args:
        project: The project.
        plan: The plan; the states of the shard's parts are written.
        view: The view's place in the project.
        shard: The shard.
        folder: The folder of the states.

    Returns:
        The number of events that it has taken.
    """
    definition = project.views[view]
    pieces = range(shard, plan.pieces(definition.name), plan.shards)
    parts = [SpillFile(plan.state_path(definition.name, piece)) for piece in pieces]
    counts = np.sum([part.read_array("counts", np.int64) for part in parts], axis=0).tolist()
    operator = _operator(project, plan, view, shard)
    rows, ids = _remembered(operator, parts, distinct=counts[1])
    conflicts = counts[1] - ids.distinct
    operator.counters = OperatorCounters(
        events=counts[0], duplicates=counts[0] - counts[1], conflicts=conflicts
    )
    operator.state.counters = Counters(events=counts[2])
    waiting = _waiting(operator, parts)
    operator.events = [] if waiting is None else [waiting]
    operator.begin()
    state = encode_merged(
        operator.plan,
        [
            EncodedEntities(
                part.read_array("changed", np.int64),
                part.read_array("words", np.int64),
                part.read_array("keys", np.uint8),
            )
            for part in parts
        ],
        operator.state.frontier_us,
        operator.state.counters,
    )
    write_handoff_of(folder, operator, encode_snapshot_of(operator.key, state, rows, ids.kept))
    return int(counts[0])


def _operator(project: Project, plan: HistoryPlan, view: int, shard: int) -> ShardOperator:
    """Make the operator, at the positions and watermarks of the state."""
    definition = project.views[view]
    sources = (definition.stream, project.request)
    options = FeaturizeOptions(
        run="handoff",
        shards=plan.shards,
        partitions={name: len(lengths) for name, lengths in plan.lengths.items()},
        publish=False,
    )
    operator = make_operator(project, operator_key(project, view, shard, plan.shards), options)
    operator.expected = [stop for source in sources for stop in plan.stops[source.name]]
    operator.watermarks = [
        max(plan.as_of_us - source.out_of_orderness_us, TIME_MIN)
        for source in sources
        for _ in plan.stops[source.name]
    ]
    operator.state.frontier_us = plan.as_of_us - wait_us(project, definition)
    return operator


class _Ids(NamedTuple):
    """The remembered ids, and how many distinct ones there were."""

    kept: Remembered
    distinct: int


def _remembered(
    operator: ShardOperator, parts: Sequence[SpillFile], distinct: int
) -> tuple[Remembered, _Ids]:
    """Return what `ShardOperator.rows_seen` and `ids_seen` hold: young rows, each once."""
    inputs = operator.inputs
    oldest = min(operator.watermarks[: inputs.event_partitions]) - inputs.lateness_us
    digests = [part.read_array("digests", np.uint64).reshape(-1, 2) for part in parts]
    times = [part.read_array("times", np.int64) for part in parts]
    rows = _young(np.concatenate(digests), np.concatenate(times), oldest, distinct)
    del digests
    first = [part.read_array("ids", np.uint64) for part in parts]
    shared = _repeated(np.concatenate(first))
    pairs, when, places = [], [], []
    alone = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
    found = [alone]
    for part, mine, at in zip(parts, first, times, strict=True):
        ids = np.stack([mine, part.read_array("ids again", np.uint64)], axis=1)
        again = np.isin(mine, shared)
        found.append((ids[~again], at[~again]))
        pairs.append(ids[again])
        when.append(at[again])
        places.append(part.read_array("places", np.int64)[again])
    candidates, instants = np.concatenate(pairs), np.concatenate(when)
    order = np.lexsort((np.concatenate(places), candidates[:, 1], candidates[:, 0]))
    sorted_ids = candidates[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (sorted_ids[1:] != sorted_ids[:-1]).any(axis=1)
    found.append((sorted_ids[is_first], instants[order][is_first]))
    ids, at = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return rows, _Ids(_young(ids, at, oldest, len(ids)), len(ids))


def _young(pairs: UInt64Array, times: Int64Array, oldest_us: int, distinct: int) -> Remembered:
    """Forget old rows as `features.kernel.dedupe.PairSet` does."""
    if distinct < FORGET_FROM:
        return pairs, times
    young = times >= oldest_us
    return pairs[young], times[young]


def _repeated(hashes: UInt64Array) -> UInt64Array:
    """Return the values that occur more than once; ``hashes`` is sorted in place."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _waiting(operator: ShardOperator, parts: Sequence[SpillFile]) -> pa.RecordBatch | None:
    """Return the events that wait for the frontier, in the order of the log."""
    found = [
        rows
        for part in parts
        if (rows := part.read_rows("waiting", operator.event_schema)) is not None
    ]
    rows = concat(found)
    if rows is None:
        return None
    # Taken rows have buffers of their own length, and so the bytes of an operator's rows.
    places = np.concatenate([part.read_array("waiting places", np.int64) for part in parts])
    return rows.take(pa.array(np.argsort(places, kind="stable")))
