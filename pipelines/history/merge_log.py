"""Merging the small files that a stream writes to the offline log.

Safe at any time, also while a stream and readers run (`serving.offline.merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tidemill.features.definitions import Project
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.tables import Table
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.offline.merge import merge_day, planned_merge


class MergedLog(NamedTuple):
    """The result of merging the log of a view.

    Attributes:
        view: The view.
        before: The days before this one were merged, ``YYYY-MM-DD``; None for all days.
        days: How many days were merged; None if the view has no log.
        files_before: How many files these days had.
        files_after: How many files they have now.
    """

    view: str
    before: str | None
    days: int | None
    files_before: int
    files_after: int


def merge_log(
    project: Project,
    offline_root: Path,
    progress: Progress,
    *,
    before: str | None = None,
    dry_run: bool = False,
) -> list[MergedLog]:
    """Merge days of each view's log; only the logs of the code's definitions.

    Args:
        project: The definitions.
        offline_root: The folder of offline logs.
        progress: Where progress is shown.
        before: The days before this one, ``YYYY-MM-DD``; None for those that get no more rows.
        dry_run: Only count files, and change nothing.

    Returns:
        One result a view.

    Raises:
        StoreError: A file of a log is damaged.
        InputError: The files of a log have different columns.
    """
    out = []
    for view in project.views:
        log = OfflineLog.of(offline_root, view)
        until = log.ended_before() if before is None else before
        days = [day for day in log.days() if until is None or day < until]
        files_before = files_after = 0
        name = f"{'look at' if dry_run else 'merge'} the offline log of {view.name}"
        with progress.stage(name, total=len(days), unit="days") as stage:
            for day in days:
                join_key = view.entity.join_key
                merge = planned_merge(log, day) if dry_run else merge_day(log, join_key, day)
                files_before += merge.before
                files_after += merge.after
                stage.note(day)
                stage.advance(1)
        known = len(days) if log.directory.exists() else None
        out.append(MergedLog(view.name, until, known, files_before, files_after))
    return out


def merged_tables(merged: Sequence[MergedLog], *, dry_run: bool) -> list[Table]:
    """Return the results as a table."""
    columns = ("view", "days before", "days", "files", "would be" if dry_run else "are now")
    rows = [
        (one.view, "no log", "", "", "")
        if one.days is None
        else (
            one.view,
            one.before or "all",
            f"{one.days:,}",
            f"{one.files_before:,}",
            f"{one.files_after:,}",
        )
        for one in merged
    ]
    return [Table("offline log", columns, rows, frozenset([2, 3, 4]))]
