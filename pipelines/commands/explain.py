"""`tidemill explain`: what one prediction was made of."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Show what a prediction was made of.")
@click.argument("prediction_id")
@options.config
@options.root
def explain(config_path: Path, root: Path | None, prediction_id: str) -> None:
    """Show what one prediction was made of: values, events, and the values recomputed.

    PREDICTION_ID is the id of its request.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.pipelines.verify import explain as stage

    print_tables(stage.explain(config, prediction_id).tables(), sys.stdout)
