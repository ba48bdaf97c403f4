"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tidemill.pipelines.config.choices import BATCH_ENGINES, ENGINES, ENGINES_HERE

_Command = TypeVar("_Command", bound=Callable[..., Any])

config = click.option(
    "--config",
    "config_path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=Path("tidemill.yaml"),
    show_default=True,
    help="The configuration file.",
)
root = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for all outputs; replaces `root` of the configuration file.",
)
quiet = click.option("--quiet", is_flag=True, help="Print only results and errors.")
speed = click.option(
    "--speed",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Replay N times faster than real time; by default as fast as possible.",
)
engine = click.option("--engine", type=click.Choice(ENGINES), help="Beam engine for the stream.")
engine_here = click.option(
    "--engine", type=click.Choice(ENGINES_HERE), help="Beam engine for the stream."
)
batch_engine = click.option(
    "--engine", type=click.Choice(BATCH_ENGINES), help="Beam engine; results do not depend on it."
)
beam_flags = click.argument(
    "beam_flags", metavar="[-- BEAM_FLAGS...]", nargs=-1, type=click.UNPROCESSED
)
translate = click.option(
    "--translate",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --engine dataflow: write the job and its steps to DIR, and run nothing.",
)
replaces = click.option(
    "--replaces",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --translate: say which steps of the job in DIR the new one could take over.",
)

wait = click.option(
    "--wait", is_flag=True, help="Wait for another process that does the same, instead of failing."
)
servers_folder = click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".tidemill") / "servers",
    show_default=True,
    help="Where the servers keep their data, logs and record.",
)


def opened(command: _Command) -> _Command:
    """Give a command ``--config``, ``--root`` and ``--quiet``."""
    return config(root(quiet(command)))
