"""`tidemill status`: how the stream is, and what it waits for."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from tidemill.pipelines.config.configuration import Configuration

_EVERY_S: Final = 2.0


@click.command(short_help="Show how the stream is, and what it waits for.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@options.config
@options.root
def status(config_path: Path, root: Path | None, as_json: bool, watch: bool) -> None:
    """Show how the stream is: of each view whether it has caught up, and what it waits for.

    The stream may run, or not. The brokers are asked where the topics end; one that does not answer
    within some seconds is named. A terminal gets one screen, which counts what has no room.
    """
    if as_json and watch:
        raise click.UsageError("--json and --watch do not go together")
    config = stages.load_for_existing_run(config_path, root)
    if watch and sys.stdout.isatty():
        _watch(config)
        return
    from tidemill.pipelines.status.collect import collect

    while True:
        standing = collect(config)
        if as_json:
            click.echo(json.dumps(standing.content(), indent=2))
        else:
            from rich.console import Console

            from tidemill.pipelines.status.screen import render

            console = Console(file=sys.stdout, highlight=False)
            lines = console.height - 1 if console.is_terminal else None
            columns = console.width if console.is_terminal else 100
            console.print(render(standing, columns, lines), soft_wrap=not console.is_terminal)
        if not watch:
            return
        time.sleep(_EVERY_S)


def _watch(config: Configuration) -> None:
    from rich.console import Console
    from rich.live import Live

    from tidemill.pipelines.status.collect import collect
    from tidemill.pipelines.status.screen import render

    console = Console(file=sys.stdout, highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            standing = collect(config)
            live.update(render(standing, console.width, console.height - 1), refresh=True)
            time.sleep(_EVERY_S)
