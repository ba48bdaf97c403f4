"""`tidemill republish`: fill the online store again from saved state."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Fill the online store again from saved state.")
@options.opened
def republish(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Publish every entity again, with its values as of the stream's last releases.

    Use it when the store was emptied or has lost writes. The stream may run at the same time: newer
    rows in the store stay.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.recovery import republish as stage

    progress = stages.progress(quiet)
    stages.run_stage("republish", config.root, lambda: stage.republish(config, progress))
