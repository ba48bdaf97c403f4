"""`tidemill demo`: every stage of an installed project."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Final

import click

from tidemill.pipelines.commands import options, stages

DEMO_ROOT: Final = Path("demo")
"""Where `tidemill demo` writes, in the working directory: the folder of an installed project's YAML
file may be read-only."""


@click.command(short_help="Run every stage of an installed project.")
@click.argument("name", required=False)
@click.option("--sample", is_flag=True, help="Use a few days of the data only.")
@options.speed
@options.engine_here
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEMO_ROOT,
    show_default=True,
    help="Folder for all outputs.",
)
@click.option(
    "--seeds",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many models to train, each with a seed of its own.",
)
@options.quiet
def demo(
    name: str | None,
    sample: bool,
    speed: float | None,
    engine: str | None,
    root: Path,
    seeds: int | None,
    quiet: bool,
) -> None:
    """Run every stage of an installed project: backfill, train, stream, verify, report.

    NAME is the name of the project; leave it out if only one is installed. The last line is
    `N mismatches in M values`; the exit status is 1 unless N is 0.
    """
    from tidemill.pipelines.config.installed_projects import installed_project

    config = stages.load(installed_project(name), root)
    if seeds is not None:
        training = dataclasses.replace(config.training, seeds=seeds)
        config = dataclasses.replace(config, training=training)
    from tidemill.pipelines.commands import whole_loop as stage
    from tidemill.pipelines.run import paths
    from tidemill.pipelines.run.tables import print_tables

    figures = stage.demo(config, stages.progress(quiet), sample=sample, speed=speed, engine=engine)
    print_tables([stage.overview(figures)], sys.stdout)
    click.echo(f"every figure: {root / paths.SUMMARY}; pictures: {figures['report']}")
    stages.end_with_verdict(figures["verify"])
