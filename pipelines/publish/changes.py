"""Appending the publications of releases to the offline log."""

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
    """Append the publications of successive releases of a (view, shard) to the offline log.

    The publications must be made with `Publish.EVERY`: afterwards the log states that it has every
    change between the frontiers of the first and the last release. Repeating a run replaces it.

    Args:
        project: The definitions.
        offline_root: The folder of the offline logs.
        shards: The number of shards of each view.
        run: Successive releases as one (`pipelines.publish.newest_rows.joined_releases`).
        segment: The segment of the stream.

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
