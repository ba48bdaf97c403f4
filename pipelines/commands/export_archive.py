"""`tidemill export-archive`: bring Delta tables of the archive up to it."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Bring Delta tables of the archive up to it.")
@click.option(
    "--to",
    "folder",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of the export: a Delta table of each source.",
)
@options.wait
@options.opened
def export_archive(
    config_path: Path, root: Path | None, quiet: bool, folder: Path, wait: bool
) -> None:
    """Bring the Delta tables in FOLDER up to the archive; they are made by the first run.

    A run adds to each table what is new in the archive, takes away what is no longer in it, all in
    one commit, and deletes the files that the table no longer names. A stream may write the archive
    meanwhile. Repeat it as often as the tables shall be up to date.

    It needs deltalake: install tidemill[delta].
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.export import export_archive as stage

    progress = stages.progress(quiet)
    stages.run_stage(
        "export-archive",
        config.root,
        lambda: stage.export_archive(config, folder, progress, wait=wait),
    )
