"""`tidemill stream`: run the stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidemill.pipelines.commands import options, stages
from tidemill.pipelines.config.choices import MODES

if TYPE_CHECKING:
    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.pipelines.run.progress import Progress


@click.command(short_help="Run the stream: features, online store, predictions.")
@options.speed
@options.engine
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="exact: answer a request once no earlier event is expected; eager: answer at once.",
)
@click.option(
    "--until",
    metavar="TIME",
    help="Stop with a savepoint before the first row that was received at TIME or later, such as "
    "2026-02-20T00:00:00Z.",
)
@click.option("--resume", is_flag=True, help="Resume from the last savepoint, also after a crash.")
@click.option(
    "--upgrade",
    "upgrades",
    is_flag=True,
    help="Go on with the project as it is now, as `tidemill upgrade` and then --resume: the stream "
    "that runs is stopped as late as possible.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the online store's key spaces from another root, whose stream is refused from then "
    "on.",
)
@click.option(
    "--accept-lost",
    metavar="WHAT",
    multiple=True,
    help="Go on without what a topic has lost, exactly as the error prints it, such as "
    "payments/0@120-179; may be given more than once.",
)
@options.translate
@options.replaces
@options.beam_flags
@options.wait
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
    upgrades: bool,
    take_over: bool,
    accept_lost: tuple[str, ...],
    wait: bool,
    translate: Path | None,
    replaces: Path | None,
    beam_flags: tuple[str, ...],
) -> None:
    """Replay the log as a stream: publish features, answer requests with predictions.

    Without --resume the stream starts over from the state of the backfill, in a folder of its own.
    Readers of the online store see the earlier stream's values until the new one has caught up with
    them.

    With --engine flink or dataflow, flags of Beam may follow after --, such as -- --parallelism=2.
    """
    if replaces is not None and translate is None:
        raise click.UsageError("--replaces compares translations: add --translate DIR")
    until_us = None if until is None else _instant_us(until)
    if accept_lost:
        _check_accepted(accept_lost)
    config = stages.load_for_existing_run(config_path, root)
    if translate is not None:
        from tidemill.pipelines.commands.translated import show_stream

        show_stream(config, engine, beam_flags, mode, translate, replaces, resume=resume)
        return
    from tidemill.pipelines.stream_run import stream as stage

    progress = stages.progress(quiet)
    if upgrades:
        _upgrade(config, progress, wait=wait)
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
            resume=resume or upgrades,
            take_over=take_over,
            wait=wait,
            accept_lost=accept_lost,
            beam_flags=beam_flags,
        ),
    )


def _upgrade(config: Configuration, progress: Progress, *, wait: bool) -> None:
    from tidemill.pipelines.commands import upgrade_plan
    from tidemill.pipelines.upgrade.upgrade import upgrade

    stages.run_stage("upgrade", config.root, lambda: upgrade(config, progress, wait=wait))
    for line in upgrade_plan.promote(config):
        click.echo(f"done: {line}")


def _check_accepted(options: tuple[str, ...]) -> None:
    from tidemill.features.errors import InputError
    from tidemill.pipelines.ingest.lost_messages import check_option

    for option in options:
        try:
            check_option(option)
        except InputError as error:
            raise click.BadParameter(str(error), param_hint="'--accept-lost'") from None


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
