"""`tidemill stream`: answer requests on the stream."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages
from tidemill.pipelines.config.choices import MODES


@click.command(short_help="Answer requests on the stream.")
@options.speed
@options.engine
@click.option("--mode", type=click.Choice(MODES), help="Wait for the frontier, or answer at once.")
@click.option(
    "--until",
    metavar="TIME",
    help="Stop before what was received from TIME on, such as 2026-02-20T00:00:00Z, and keep the "
    "state to go on from.",
)
@click.option("--resume", is_flag=True, help="Go on from where the stream stopped or was killed.")
@options.opened
def stream(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    speed: float | None,
    engine: str | None,
    mode: str | None,
    until: str | None,
    resume: bool,
) -> None:
    """Answer requests on the stream: features, publications, predictions.

    It starts over from the handed-over state: what an earlier run left is removed, also from the
    online store. With --resume it goes on instead.
    """
    until_us = None if until is None else _instant_us(until)
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.stream_run import stream as stage

    progress = stages.progress(quiet)
    stages.run_stage(
        "stream",
        config.root,
        lambda: stage.stream(
            config,
            progress,
            speed=speed,
            engine=engine,
            mode=mode,
            until_us=until_us,
            resume=resume,
        ),
    )


def _instant_us(text: str) -> int:
    from tidemill.features.definitions import TIMESTAMP
    from tidemill.features.rows import text_values

    found = text_values.parse_one(text, TIMESTAMP, None)
    if type(found) is not int:
        raise click.BadParameter(
            f"found {text!r}, expected a date and time with its offset such as "
            "2026-02-20T00:00:00Z",
            param_hint="'--until'",
        )
    return found
