"""`tidemill lineage`: what an artefact was made from."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Show what an artefact was made from.")
@click.argument("place")
@options.config
@options.root
def lineage(config_path: Path, root: Path | None, place: str) -> None:
    """Show the chain of an artefact: what it was made from, back to the source files.

    PLACE is a file or folder below the root (a build, states, an offline log, predictions, a
    bundle), the version of a bundle, or the id of a request that was answered. Each step is
    compared with what is there now.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.verify.lineage import lineage as chain

    for line in chain(config.root, place).lines():
        click.echo(line)
