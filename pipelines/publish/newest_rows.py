"""Joining the publications of successive releases, and reducing them to the newest rows."""

from __future__ import annotations

from collections.abc import Iterable

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


def joined_releases(releases: Iterable[Published]) -> list[Published]:
    """Join the publications of releases of one (view, shard), given in any order, into runs.

    Successive releases form one run, which continues from where its first release does. A release
    of the whole shard continues from nothing and takes in the older releases. A run ends where a
    release is missing, so that the store detects the gap.

    Args:
        releases: The releases; at least one.

    Returns:
        The runs, each as one release, in order.
    """
    # In eager mode a release that only answers may keep the frontier: sort it after the others.
    ordered = sorted(
        releases, key=lambda one: (one.frontier_us, one.since_us is not None, one.since_us or 0)
    )
    runs = [ordered[:1]]
    for one in ordered[1:]:
        if one.since_us is None:
            runs = [[release for run in runs for release in run] + [one]]
        elif one.since_us <= runs[-1][-1].frontier_us:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [
        run[-1]._replace(since_us=_since(run), rows=pa.concat_batches([one.rows for one in run]))
        for run in runs
    ]


def joined_by_shard(releases: Iterable[Published]) -> list[Published]:
    """Join the releases of each (view, shard) with `joined_releases`."""
    of_shards: dict[tuple[int, int], list[Published]] = {}
    for one in releases:
        of_shards.setdefault((one.view, one.shard), []).append(one)
    return [run for mine in of_shards.values() for run in joined_releases(mine)]


def _since(run: list[Published]) -> int | None:
    known = [one.since_us for one in run if one.since_us is not None]
    return min(known) if len(known) == len(run) else None
