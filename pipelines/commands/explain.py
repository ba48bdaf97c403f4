"""`tidemill explain`: how one prediction was made."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Show how one prediction was made.")
@click.argument("prediction_id")
@options.config
@options.root
def explain(config_path: Path, root: Path | None, prediction_id: str) -> None:
    """Show the feature values of one prediction, recompute them, and list the events behind them.

    PREDICTION_ID is the id of the prediction's request.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.pipelines.verify import explain as stage

    print_tables(stage.explain(config, prediction_id).tables(), sys.stdout)
