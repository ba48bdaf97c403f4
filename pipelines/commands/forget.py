"""`tidemill forget`: delete an entity everywhere, with a record that it was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Delete an entity everywhere, with a record.")
@click.argument("entity", required=False)
@click.argument("key", required=False)
@click.option("--finish", is_flag=True, help="Go on with a deletion that was killed.")
@options.opened
def forget(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    entity: str | None,
    key: str | None,
    finish: bool,
) -> None:
    """Delete the entity with a key: rows, states, tables, predictions, stores, rejected records.

    ENTITY is the name of an entity of the project, such as card; KEY is its key. A key that begins
    with a hyphen comes after --. A stream must not run; it goes on afterwards with --resume.

    The record in the folder forgotten below the root counts what was removed, and has no key. The
    command says what is out of its reach.
    """
    if finish == (entity is not None) or (key is None) != (entity is None):
        raise click.UsageError("give ENTITY and KEY, or --finish alone")
    config = stages.load_for_existing_run(config_path, root, finishes=True)
    from tidemill.pipelines.forget import forget as stage

    progress, remains = stages.progress(quiet), list[str]()

    def work() -> dict[str, Any]:
        if entity is None or key is None:
            figures = stage.finish(config, progress)
        else:
            figures = stage.forget(config, entity, key, progress)
        remains.extend(figures.pop("remains", ()))
        return figures

    figures = stages.run_stage("forget", config.root, work)
    if "record" not in figures:
        click.echo("no deletion is half done")
        return
    if not any(figures["removed"].values()):
        click.echo("nothing of it was found below the root or in the online store")
    for one in remains:
        click.echo(f"remains: {one}")
