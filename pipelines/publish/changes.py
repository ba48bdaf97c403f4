"""What releases publish, appended to the offline log."""

from __future__ import annotations

from pathlib import Path

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import Project
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.wire_format import Published
from tidemill.serving.offline.log import OfflineLog


def append_changes(
    project: Project, offline_root: Path, shards: int, run: Published, segment: int = 0
) -> None:
    """Add what successive releases of a (view, shard) published to the offline log.

    They must have been made with `Publish.EVERY`: the log says afterwards that nothing is missing
    between where the releases began and their last frontier. A repeated run replaces itself.

    Args:
        project: The definitions.
        offline_root: Where offline logs stand.
        shards: How many shards each view has.
        run: Releases that join on, as one (`pipelines.publish.newest_rows.joined_releases`).
        segment: The segment of the stream that they are of.

    Raises:
        LostPublications: The log ends before the run begins.
        StoreError: The log has another number of shards.
    """
    view = project.views[run.view]
    OfflineLog.of(offline_root, view).append(
        view,
        named_publications(view, run.rows),
        shard=run.shard,
        shards=shards,
        since_us=TIME_MIN if run.since_us is None else run.since_us,
        until_us=run.frontier_us,
        segment=segment,
    )
