"""`tidemill validate`: read every source and report rejected records."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Read every source and report rejected records.")
@options.opened
def validate(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Read every source, count its rows, and report how many are rejected and why.

    Fails if more of a source's rows are rejected than its max_rejected allows.
    """
    config = stages.load(config_path, root)
    from tidemill.features.errors import TooManyRejected
    from tidemill.pipelines.ingest.ingest import validate_sources
    from tidemill.pipelines.run.summary import write_summary

    progress = stages.progress(quiet)
    try:
        stages.run_stage("validate", config.root, lambda: validate_sources(config, progress))
    except TooManyRejected as error:
        # The figures are of the rejected records, which were replaced.
        write_summary(config.root, "validate", error.figures)
        raise
