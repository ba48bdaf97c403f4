"""`tidemill train`: train a model on the backfilled features."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Train and evaluate a model; write a bundle.")
@options.batch_engine
@options.beam_flags
@options.opened
def train(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    engine: str | None,
    beam_flags: tuple[str, ...],
) -> None:
    """Train a model on the backfilled features, evaluate it, and write a bundle.

    With --engine flink, where the training rows are analysed, flags of Beam may follow after --,
    such as -- --job_endpoint=HOST:PORT.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.training import train as stage

    progress = stages.progress(quiet)
    stages.run_stage(
        "train",
        config.root,
        lambda: stage.train(config, progress, engine=engine, beam_flags=beam_flags),
    )
