"""The state of a shard, put together from the states of its parts.

It has the bytes of the state of an operator that has taken all rows received before its instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.dedupe import FORGET_FROM, UInt64Array
from tidemill.features.kernel.encoding import EncodedEntities, encode_merged
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.spill import SpillFile
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_state import encode_snapshot_of
from tidemill.pipelines.stream.state_files import write_handoff_of
from tidemill.pipelines.stream.waiting_rows import WaitingRows


def write_state(project: Project, plan: HistoryPlan, view: int, shard: int, folder: Path) -> None:
    """Write the state of a shard, from which a stream starts.

    Args:
        project: The project.
        plan: The plan; the states of the shard's parts are written.
        view: The view's place in the project.
        shard: The shard.
        folder: The folder of the states.
    """
    definition = project.views[view]
    pieces = range(shard, plan.pieces(definition.name), plan.shards)
    parts = [plan.spilled(plan.state_path(definition.name, piece)) for piece in pieces]
    operator = _operator(project, plan, view, shard)
    waiting = _waiting(operator, parts)
    operator.events = WaitingRows(waiting)
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
    digests, times = _remembered(operator, parts)
    write_handoff_of(folder, operator, encode_snapshot_of(operator.key, state, digests, times))


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
    operator.watermarks = [at for source in sources for at in plan.watermarks[source.name]]
    operator.state.frontier_us = plan.frontier_us(project, definition)
    return operator


def _remembered(
    operator: ShardOperator, parts: Sequence[SpillFile]
) -> tuple[UInt64Array, Int64Array]:
    """Return what `ShardOperator.rows_seen` holds: the events that may come again."""
    inputs = operator.inputs
    oldest = min(operator.watermarks[: inputs.event_partitions]) - inputs.lateness_us
    times = [part.read_array("times", np.int64) for part in parts]
    forgets = sum(map(len, times)) >= FORGET_FROM
    digests = []
    for number, part in enumerate(parts):
        kept = times[number] >= oldest if forgets else slice(None)
        digests.append(part.read_array("digests", np.uint64).reshape(-1, 2)[kept])
        times[number] = times[number][kept]
    return np.concatenate(digests), np.concatenate(times)


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
