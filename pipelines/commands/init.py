"""`tidemill init`: a small project to start from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write a small project to start from.")
@click.argument("name")
@click.option(
    "--path",
    "parent",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Parent of the new folder; the working directory by default.",
)
def init(name: str, parent: Path) -> None:
    """Write a small working project, with events to try it on, to the folder NAME."""
    from tidemill.pipelines.commands.scaffold import write_project

    folder = write_project(name, parent)
    click.echo(f"{folder} is written; its README.md describes it. Next:\n")
    click.echo(f"  cd {folder}\n  tidemill validate")
