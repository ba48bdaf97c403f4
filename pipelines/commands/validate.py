"""`tidemill validate`: read every source and say what is rejected."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Read every source and say what is rejected.")
@options.opened
def validate(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Read every source, count its rows, and say which are rejected and why."""
    configuration = stages.load(config_path, root)
    from tidemill.pipelines.ingest.ingest import ingest

    progress = stages.progress(quiet)
    stages.run_stage(
        "validate", configuration, lambda: ingest(configuration, progress, write_log=False)
    )
