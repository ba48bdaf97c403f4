"""The change-point log of history: every past publication, for Feast's point-in-time joins.

The kernel runs over one shard after the other: the shard's events, sorted and cut into slices. The
change points of a slice (`Publish.EVERY`) are written before the next slice is computed. The events
of a large shard are sorted in runs, in files, and merged; so memory holds the state of one shard
and the events and publications of one slice. The log is read once per shard.

No event of history is late. History ends at the frontier from which the stream continues; from
there `append_changes` adds the publications of the stream's releases, where a late event counts
from the frontier at which it was applied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.io.merging import Run, merged
from tidemill.pipelines.stream.publications import named_publications
from tidemill.serving.offline.log import OfflineLog

RUN_EVENTS: Final = 262_144
"""Events of a run."""
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
    work: Path | None = None,
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
        work: A folder for the events of a large shard; None keeps them in memory.

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
                work=work,
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
    work: Path | None = None,
) -> int:
    """Write the change-point log of one shard of one view; arguments as for `log_history`.

    Returns:
        The number of change points.
    """
    plan = make_plan(view)
    state = State(plan)
    rows = 0
    with _runs_folder(work) as folder:
        runs = _sorted_runs(view, plan, log, shard, shards, until_us, positions, folder)
        events = _distinct(merged(runs, _times, _by_time))
        for number, (batch, until) in enumerate(_slices(events, until_us)):
            published = advance(state, batch, None, until, Publish.EVERY).publications
            if published.num_rows:
                part = f"history-{shard:05d}-of-{shards:05d}-{number:06d}"
                target.write(view, named_publications(view, published), part)
                rows += published.num_rows
    target.reach(shard, shards, since_us=TIME_MIN, until_us=until_us)
    return rows


@contextmanager
def _runs_folder(work: Path | None) -> Iterator[Path | None]:
    if work is None:
        yield None
        return
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="runs-") as folder:
        yield Path(folder)


def _times(events: pa.RecordBatch) -> Int64Array:
    return hashing.bits(events.column(TIME))


def _by_time(events: pa.RecordBatch) -> pa.RecordBatch:
    """Sort events by time; those of one instant keep their order, that of the log."""
    times = _times(events)
    if (times[1:] >= times[:-1]).all():
        return events
    return events.take(pa.array(np.argsort(times, kind="stable")))


def _sorted_runs(
    view: FeatureView,
    plan: Plan,
    log: Log,
    shard: int,
    shards: int,
    until_us: int,
    positions: Sequence[int] | None,
    folder: Path | None,
) -> list[Run]:
    """Read the events of a shard, in the order of the log: prepared, in runs sorted by time."""
    runs: list[Run] = []
    waiting: list[pa.RecordBatch] = []

    def end_run(path: Path | None) -> None:
        if (rows := concat(waiting)) is not None and rows.num_rows:
            runs.append(Run(_by_time(rows), path))
        waiting.clear()

    for mine in _shard_events(view, plan, log, shard, shards, until_us, positions):
        waiting.append(mine)
        if folder is not None and sum(rows.num_rows for rows in waiting) >= RUN_EVENTS:
            end_run(folder / f"{len(runs):06d}.arrow")
    end_run(None)
    return runs


def _shard_events(
    view: FeatureView,
    plan: Plan,
    log: Log,
    shard: int,
    shards: int,
    until_us: int,
    positions: Sequence[int] | None,
) -> Iterator[pa.RecordBatch]:
    stream = view.stream
    for partition, length in enumerate(log.lengths(stream.name)):
        stop = length if positions is None else min(positions[partition], length)
        for start in range(0, stop, BLOCK_ROWS):
            rows = log.read_span(stream.name, partition, start, min(start + BLOCK_ROWS, stop))
            rows = rows.select(list(stream.schema))
            times = hashing.bits(rows.column(stream.event_time))
            shard_of = hashing.shard_of(hashing.key_bytes(rows.column(view.key)), shards)
            mine = (shard_of == shard) & (times < until_us)
            if (keyed := with_key(view, rows)) is not None:
                mine &= keyed
            yield prepare_events(plan, view, keep(rows, mine))


def _distinct(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Keep the first of equal events; they come in the order of their times."""
    last = np.zeros((0, 2), np.uint64)
    last_us = TIME_MIN
    for rows in batches:
        times = _times(rows)
        if int(times[0]) != last_us:
            last = last[:0]
        digests = np.concatenate([last, matrix_of(rows.column(DIGEST)).view(np.uint64)])
        kept = first_occurrences(digests)
        kept = kept[kept >= len(last)] - len(last)
        last_us = int(times[-1])
        instant = times == last_us
        last = digests if instant.all() else digests[len(last) :][instant]
        if len(kept) == rows.num_rows:
            yield rows
        elif len(kept):
            yield rows.take(pa.array(kept))


def _slices(
    batches: Iterable[pa.RecordBatch], until_us: int
) -> Iterator[tuple[pa.RecordBatch | None, int]]:
    """Cut events between distinct times; yield each slice with its frontier, ``until_us`` last.

    Args:
        batches: Events, in order of time.
        until_us: The frontier after the last slice.
    """
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count <= SLICE_EVENTS:
            continue
        rows = pa.concat_batches(waiting)
        times = _times(rows)
        first = 0
        while len(times) - first > SLICE_EVENTS:
            cut = int(np.searchsorted(times, times[first + SLICE_EVENTS], "left"))
            if cut == first:
                cut = int(np.searchsorted(times, times[first], "right"))
            if cut == len(times):
                break
            yield rows.slice(first, cut - first), int(times[cut])
            first = cut
        waiting, count = [rows.slice(first)], len(times) - first
    yield concat(waiting), until_us
