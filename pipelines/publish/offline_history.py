"""The change-point log of history: every past publication, for Feast's point-in-time joins.

The kernel runs over one shard after the other: the shard's events, sorted and cut into slices. The
change points of a slice (`Publish.EVERY`) are written before the next slice is computed, so memory
holds the events of one shard and the publications of one slice. The log is read once per shard.

No event of history is late. History ends at the frontier from which the stream continues; from
there `append_changes` adds the publications of the stream's releases, where a late event counts
from the frontier at which it was applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.columns import concat, keep
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import DIGEST, TIME, matrix_of, prepare_events, with_key
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.stream.publications import named_publications
from tidemill.serving.offline.log import OfflineLog

SLICE_EVENTS: Final = 65_536
"""How many events make a slice. An event causes one publication and, later, at most one more for
each window of the view."""


def log_history(
    views: Sequence[FeatureView],
    log: Log,
    offline_root: Path,
    *,
    shards: int,
    until_us: Mapping[str, int],
    positions: Mapping[str, Sequence[int]] | None = None,
    done: Callable[[str, int], None] | None = None,
) -> dict[str, int]:
    """Write the change-point log of all history.

    Args:
        views: The views whose logs are written.
        log: The log of accepted events.
        offline_root: The folder of offline logs; it has none of these views.
        shards: How many shards each view has.
        until_us: View to the instant at which its log ends and the stream continues.
        positions: Source to the position at which history ends in each partition; None for all
            rows. Later rows belong to the stream, late or not.
        done: Called with view and shard after each.

    Returns:
        View to the number of its change points.
    """
    rows = {}
    for view in views:
        target = OfflineLog.of(offline_root, view)
        rows[view.name] = 0
        for shard in range(shards):
            rows[view.name] += log_shard(
                view,
                log,
                target,
                shard=shard,
                shards=shards,
                until_us=until_us[view.name],
                positions=None if positions is None else positions[view.stream.name],
            )
            if done is not None:
                done(view.name, shard)
    return rows


def log_shard(
    view: FeatureView,
    log: Log,
    target: OfflineLog,
    *,
    shard: int,
    shards: int,
    until_us: int,
    positions: Sequence[int] | None = None,
) -> int:
    """Write the change-point log of one shard of one view; arguments as for `log_history`.

    Returns:
        The number of change points.
    """
    plan = make_plan(view)
    events = _shard_events(view, plan, log, shard, shards, until_us, positions)
    state = State(plan)
    rows = 0
    for number, (batch, until) in enumerate(_slices(events, until_us)):
        published = advance(state, batch, None, until, Publish.EVERY).publications
        if published.num_rows:
            part = f"history-{shard:05d}-of-{shards:05d}-{number:06d}"
            target.write(view, named_publications(view, published), part)
            rows += published.num_rows
    target.reach(shard, shards, since_us=TIME_MIN, until_us=until_us)
    return rows


def _shard_events(
    view: FeatureView,
    plan: Plan,
    log: Log,
    shard: int,
    shards: int,
    until_us: int,
    positions: Sequence[int] | None,
) -> pa.RecordBatch | None:
    """Read the events of a shard: prepared, deduplicated, sorted by time."""
    stream = view.stream
    found: list[pa.RecordBatch] = []
    for partition in range(log.partitions(stream.name)):
        reader = log.open(stream.name, partition)
        first = 0
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            room = batch.num_rows if positions is None else positions[partition] - first
            first += batch.num_rows
            rows = batch.slice(0, max(room, 0)).select(list(stream.schema))
            times = hashing.bits(rows.column(stream.event_time))
            shard_of = hashing.shard_of(hashing.key_bytes(rows.column(view.key)), shards)
            mine = (shard_of == shard) & (times < until_us)
            if (keyed := with_key(view, rows)) is not None:
                mine &= keyed
            found.append(prepare_events(plan, view, keep(rows, mine)))
    events = concat(found)
    if events is None:
        return None
    kept = first_occurrences(matrix_of(events.column(DIGEST)).view(np.uint64))
    times = hashing.bits(events.column(TIME))[kept]
    return events.take(pa.array(kept[np.argsort(times, kind="stable")]))


def _slices(
    events: pa.RecordBatch | None, until_us: int
) -> Iterator[tuple[pa.RecordBatch | None, int]]:
    """Cut events between distinct times; yield each slice with its frontier, ``until_us`` last."""
    if events is not None:
        times: Int64Array = hashing.bits(events.column(TIME))
        first = 0
        while len(times) - first > SLICE_EVENTS:
            cut = int(np.searchsorted(times, times[first + SLICE_EVENTS], "left"))
            if cut == first:
                cut = int(np.searchsorted(times, times[first], "right"))
            if cut == len(times):
                break
            yield events.slice(first, cut - first), int(times[cut])
            first = cut
        events = events.slice(first)
    yield events, until_us
