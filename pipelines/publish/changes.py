"""Appending the publications of releases to the offline log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import Project
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.wire_format import Published
from tidemill.serving.offline.log import OfflineLog


def append_changes(
    project: Project, offline_root: Path, shards: int, run: Sequence[Published], segment: int = 0
) -> None:
    """Append the publications of successive releases of a (view, shard) to the offline log.

    The publications must be made with `Publish.EVERY`: afterwards the log states that it has every
    change between the frontiers of the first and the last release. Repeating a release changes
    nothing.

    Args:
        project: The definitions.
        offline_root: The folder of the offline logs.
        shards: The number of shards of each view.
        run: The releases, by number without a gap (`pipelines.publish.newest_rows.release_runs`).
        segment: The segment of the stream.

    Raises:
        OutputConflict: A release was appended before with other rows.
        LostPublications: The log ends before the run begins.
        StoreError: The log has another number of shards.
    """
    first, last = run[0], run[-1]
    view = project.view(first.view)
    OfflineLog.of(offline_root, view).append(
        view,
        {
            release.number: named_publications(view, release.rows)
            for release in run
            if release.rows.num_rows
        },
        shard=first.shard,
        shards=shards,
        since_us=TIME_MIN if first.since_us is None else first.since_us,
        until_us=last.frontier_us,
        segment=segment,
    )
