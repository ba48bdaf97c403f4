"""`tidemill verify`: recompute everything that was served, and compare."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Recompute everything that was served, and compare.")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Number of requests that the plain-Python oracle recomputes, too.",
)
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="When the oracle ends at the latest; what it has not reached is stated.",
)
@options.opened
def verify(config_path: Path, root: Path | None, quiet: bool, sample: int, deadline: float) -> None:
    """Recompute everything that was served from the raw files, and compare bit for bit.

    That is: features, scores, releases, publications, both stores, the training table and the
    states. The last line is `N mismatches in M values`, where M counts served features (of the
    training table if nothing was served); the exit status is 1 unless N is 0.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.verify import verify as stage

    progress = stages.progress(quiet)
    figures = stages.run_stage(
        "verify",
        config.root,
        lambda: stage.verify(config, progress, sample=sample, deadline_s=deadline),
    )
    stages.end_with_verdict(figures)
