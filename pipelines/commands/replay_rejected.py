"""`tidemill replay-rejected`: rejected records out, mended ones in."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command("replay-rejected", short_help="Mend rejected records, feed them in.")
@click.option(
    "--mended",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An exported file, its payloads mended: feed it in.",
)
@options.opened
def replay_rejected(config_path: Path, root: Path | None, quiet: bool, mended: Path | None) -> None:
    """Export rejected records to be mended, or feed mended ones in again.

    Without --mended the records are written to a file, whose payloads are yours to edit; with it
    they are fed in.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.ingest.replay_rejected import replay

    progress = stages.progress(quiet)
    stages.run_stage(
        "replay-rejected",
        config.root,
        lambda: replay(config, progress, mended=mended),
    )
