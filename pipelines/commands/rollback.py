"""`tidemill rollback`: let the bundle score that did before the live one."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages
from tidemill.pipelines.commands.promote import say


@click.command(short_help="Let the bundle before score again.")
@options.config
@options.root
def rollback(config_path: Path, root: Path | None) -> None:
    """Let the bundle score again that did before the live one in this stream.

    It is `tidemill promote` of that bundle: what the live one has scored stays scored by it.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.recovery.promotion import before_that, promote

    version = before_that(config)
    say(version, promote(config, version))
