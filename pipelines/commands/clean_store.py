"""`tidemill clean-store`: drop key spaces that nobody refers to."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command("clean-store", short_help="Drop key spaces that nobody refers to.")
@click.option("--yes", is_flag=True, help="Drop them; without it they are only shown.")
@options.config
@options.root
def clean_store(config_path: Path, root: Path | None, yes: bool) -> None:
    """Drop the key spaces of the online store that no version in the registry refers to.

    A reader or a stream of an old definition may still use one: look at how old it is.
    """
    config = stages.load(config_path, root)
    from tidemill.pipelines.commands.apply_plan import orphan_tables
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.serving.registry.orphaned_spaces import drop_orphans, find_orphans

    project, places = config.project, config.places
    found = find_orphans(project, places)
    if not found:
        click.echo("every key space is referred to by a version in the registry")
        return
    print_tables(orphan_tables(found), sys.stdout)
    if not yes:
        click.echo("--yes drops them, with their rows and frontiers")
        return
    for name in drop_orphans(project, places, found):
        click.echo(f"dropped {name}")
