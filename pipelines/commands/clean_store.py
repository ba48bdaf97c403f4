"""`tidemill clean-store`: drop unused key spaces."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command("clean-store", short_help="Drop unused key spaces from the online store.")
@click.option("--yes", is_flag=True, help="Drop them. Without this option they are only listed.")
@options.config
@options.root
def clean_store(config_path: Path, root: Path | None, yes: bool) -> None:
    """Drop the key spaces of the online store that no version in the registry refers to.

    The fills of key spaces that readers were switched away from are dropped too.

    A reader or a stream that still runs with an old definition may use one of them: check when each
    was last written.
    """
    config = stages.load(config_path, root)
    from tidemill.pipelines.commands.apply_plan import orphan_tables
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.serving.registry.orphaned_spaces import (
        drop_orphans,
        drop_past_fills,
        find_orphans,
        past_fills,
    )

    project, places = config.project, config.places
    found = find_orphans(project, places)
    past = past_fills(project, places)
    if not found:
        click.echo("every key space is referred to by a version in the registry")
    else:
        print_tables(orphan_tables(found), sys.stdout)
    for fill in past:
        click.echo(f"no longer read: {fill.name}")
    if not found and not past:
        return
    if not yes:
        click.echo("--yes drops them, with their rows and frontiers")
        return
    for name in drop_past_fills(project, places):
        click.echo(f"dropped {name}")
    for name in drop_orphans(project, places, found):
        click.echo(f"dropped {name}")
