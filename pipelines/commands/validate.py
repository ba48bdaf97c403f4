"""`tidemill validate`: read every source and report rejected records."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Read every source and report rejected records.")
@options.opened
def validate(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Read every source, count its rows, and report how many are rejected and why."""
    config = stages.load(config_path, root)
    from tidemill.pipelines.ingest.ingest import validate_sources

    progress = stages.progress(quiet)
    stages.run_stage("validate", config.root, lambda: validate_sources(config, progress))
