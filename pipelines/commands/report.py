"""`tidemill report`: write the report of a root."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Write the report of a root: one HTML file.")
@options.config
@options.root
def report(config_path: Path, root: Path | None) -> None:
    """Write report.html below the root: the results of its stages, and how to read them.

    The report shows what the root holds now, whichever stages have run, and says what is missing.
    The file refers to no other file or server. Running the command again replaces it.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.report.page import report_of_root

    click.echo(f"report: {report_of_root(config)}")
