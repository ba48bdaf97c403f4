"""`tidemill replay-rejected`: export rejected records, read repaired ones back in."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command("replay-rejected", short_help="Export rejected records; read repaired ones in.")
@click.option(
    "--mended",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An exported file with repaired payloads, to be read in.",
)
@options.opened
def replay_rejected(config_path: Path, root: Path | None, quiet: bool, mended: Path | None) -> None:
    """Export rejected records for repair, or read repaired records back in.

    Without --mended, write the records of each source to a file; repair the payloads in it. With
    --mended, read that file.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.ingest.replay_rejected import replay

    progress = stages.progress(quiet)
    stages.run_stage(
        "replay-rejected",
        config.root,
        lambda: replay(config, progress, mended=mended),
    )
