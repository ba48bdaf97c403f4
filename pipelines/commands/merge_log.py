"""`tidemill merge-log`: few files of the many of the offline log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from datetime import datetime


@click.command("merge-log", short_help="Make few files of the offline log's many.")
@click.option(
    "--before",
    metavar="DATE",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Merge the days before DATE (UTC); by default those that get no more rows, which are the "
    "days before the one that the slowest shard of the view has reached.",
)
@click.option("--dry-run", is_flag=True, help="Say what would become of how many files.")
@options.opened
def merge_log(
    config_path: Path, root: Path | None, quiet: bool, before: datetime | None, dry_run: bool
) -> None:
    """Make few files of the many that the stream leaves in the offline log.

    One for each day and segment of the stream. History reads the same before, meanwhile and after;
    the stream may run meanwhile, and can still go on from its last savepoint or start over. The
    rows of one day and segment are in memory together.
    """
    config = stages.load(config_path, root)
    from tidemill.pipelines.history import merge_log as stage
    from tidemill.pipelines.run.paths import OFFLINE
    from tidemill.pipelines.run.tables import print_tables

    merged = stage.merge_log(
        config.project,
        config.root / OFFLINE,
        stages.progress(quiet),
        before=None if before is None else before.date().isoformat(),
        dry_run=dry_run,
    )
    print_tables(stage.merged_tables(merged, dry_run=dry_run), sys.stdout)
