"""Joining the publications of successive releases, and reducing them to the newest rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.kernel.prepare import KEY
from tidemill.pipelines.stream.wire_format import Published


def newest_per_entity(kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Keep each entity's newest publication by (event_timestamp, revision).

    Repeats of it are kept too: the store checks that they are equal.
    """
    if kernel.num_rows < 2:
        return kernel
    order = pc.sort_indices(
        kernel,
        sort_keys=[
            (KEY, "ascending"),
            ("event_timestamp", "ascending"),
            ("revision", "ascending"),
        ],
    )
    ordered = kernel.take(order)
    keys = ordered.column(KEY)
    last = np.ones(ordered.num_rows, np.bool_)
    last[:-1] = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy(
        zero_copy_only=False
    )
    ends = np.flatnonzero(last)
    newest = ends[np.searchsorted(ends, np.arange(ordered.num_rows))]
    times, revisions = (ordered.column(name).to_numpy() for name in ("event_timestamp", "revision"))
    return ordered.filter(pa.array((times == times[newest]) & (revisions == revisions[newest])))


def release_runs(releases: Iterable[Published]) -> list[list[Published]]:
    """Sort releases of one (view, shard), given in any order, into runs.

    Releases with successive numbers form one run. A run ends where a release is missing, so that
    the store detects the gap. A repeated release counts once.

    Args:
        releases: The releases; at least one.

    Returns:
        The runs, in order; the releases of each in order.
    """
    known = {one.number: one for one in releases}
    ordered = [known[number] for number in sorted(known)]
    runs = [ordered[:1]]
    for one in ordered[1:]:
        if one.number == runs[-1][-1].number + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


def joined_release(run: Sequence[Published]) -> Published:
    """Join the publications of a run: it builds on what its first release builds on."""
    known = [one.since_us for one in run if one.since_us is not None]
    return run[-1]._replace(
        mark_before=run[0].mark_before,
        since_us=min(known) if len(known) == len(run) else None,
        rows=pa.concat_batches([one.rows for one in run]),
    )


def runs_by_shard(releases: Iterable[Published]) -> list[list[Published]]:
    """Sort the releases of each (view, shard) into runs with `release_runs`."""
    of_shards: dict[tuple[str, int], list[Published]] = {}
    for one in releases:
        of_shards.setdefault((one.view, one.shard), []).append(one)
    return [run for mine in of_shards.values() for run in release_runs(mine)]
