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
    configuration = stages.load(config_path, root)
    from tidemill.pipelines.commands import apply_plan as stage
    from tidemill.pipelines.run.tables import print_tables

    found = stage.orphans(configuration)
    if not found:
        click.echo("every key space is referred to by a version in the registry")
        return
    print_tables(stage.orphan_tables(found), sys.stdout)
    if not yes:
        click.echo("--yes drops them, with their rows and frontiers")
        return
    for name in stage.clean(configuration, found):
        click.echo(f"dropped {name}")
