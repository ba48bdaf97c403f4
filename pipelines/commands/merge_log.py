"""`tidemill merge-log`: merge the small files of the offline log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from datetime import datetime


@click.command("merge-log", short_help="Merge the small files of the offline log.")
@click.option(
    "--before",
    metavar="DATE",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Merge the days before DATE (UTC). By default, the days that get no more rows: those "
    "before the day that the view's slowest shard has reached.",
)
@click.option("--dry-run", is_flag=True, help="Only count the files before and after.")
@options.opened
def merge_log(
    config_path: Path, root: Path | None, quiet: bool, before: datetime | None, dry_run: bool
) -> None:
    """Merge the many files that the stream writes to the offline log: one per day and segment.

    Readers get the same rows before, during and after the merge. The stream may run at the same
    time, and can still resume from its last savepoint or start over. The command holds the rows of
    one day and segment in memory.
    """
    config = stages.load(config_path, root)
    from tidemill.pipelines.history import merge_log as stage
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.serving.generations.current import find_current
    from tidemill.serving.stores.places import OFFLINE

    current = find_current(config.root)
    # Without a build the only logs are those that Feast's write path has begun, where the registry
    # names them.
    offline_root = config.root / OFFLINE if current is None else current.offline_root
    merged = stage.merge_log(
        config.project,
        offline_root,
        stages.progress(quiet),
        before=None if before is None else before.date().isoformat(),
        dry_run=dry_run,
    )
    print_tables(stage.merged_tables(merged, dry_run=dry_run), sys.stdout)
