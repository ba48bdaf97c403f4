"""`tidemill backfill`: compute the features of all history."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Compute the features of all history.")
@click.option(
    "--publish", is_flag=True, help="Fill the online store and the offline log from history, too."
)
@options.batch_engine
@options.beam_flags
@options.wait
@options.opened
def backfill(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    publish: bool,
    engine: str | None,
    wait: bool,
    beam_flags: tuple[str, ...],
) -> None:
    """Compute the features of every past request, and the state from which the stream starts.

    With --engine flink, flags of Beam may follow after --, such as -- --parallelism=2.
    """
    config = stages.load(config_path, root)
    from tidemill.pipelines.history import backfill as stage
    from tidemill.pipelines.run.run_record import remember

    remember(config.root, sample=False)
    progress = stages.progress(quiet)
    stages.run_stage(
        "backfill",
        config.root,
        lambda: stage.backfill(
            config, progress, publish, wait, engine=engine, beam_flags=beam_flags
        ),
    )
