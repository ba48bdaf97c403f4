"""`tidemill republish`: publish every entity again, from state."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Publish every entity again, from state.")
@options.opened
def republish(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Fill the online store again from state, as of the last releases of the stream.

    For a store that was emptied, or has lost writes. The stream may run meanwhile: what is newer in
    the store stays.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.recovery import republish as stage

    progress = stages.progress(quiet)
    stages.run_stage("republish", config.root, lambda: stage.republish(config, progress))
