"""`tidemill archive`: bring the archive up to what streams have read."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Bring the archive of topics up to what streams have read.")
@options.opened
def archive(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Add the rows that streams have read of topics to the archive, and put full days together.

    A stream does the same while it runs. Use this when the archive was named later,
    when a stream has said that it is behind, or to end what a kill has interrupted.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.archive import archive as stage

    progress = stages.progress(quiet)
    stages.run_stage("archive", config.root, lambda: stage.archive(config, progress))
