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
@click.option("--kafka", is_flag=True, help="Its sources go on in topics of Kafka.")
@click.option(
    "--bootstrap",
    metavar="HOST:PORT",
    default="127.0.0.1:9092",
    show_default=True,
    help="With --kafka: where the broker is; `tidemill up` starts one there.",
)
@click.option("--dataflow", is_flag=True, help="Add a folder with a Flex Template of Dataflow.")
def init(name: str, parent: Path, kafka: bool, bootstrap: str, dataflow: bool) -> None:
    """Write a small working project, with events to try it on, to the folder NAME.

    With --kafka the project has its history in files and goes on in topics, with a producer. With
    --dataflow it has a Dockerfile, metadata and entry point of a Flex Template, too.
    """
    from tidemill.pipelines.commands.scaffold import write_project

    folder = write_project(name, parent, bootstrap if kafka else None, dataflow=dataflow)
    click.echo(f"{folder} is written; its README.md describes it. Next:\n")
    click.echo(f"  cd {folder}\n  tidemill {'up' if kafka else 'validate'}")
