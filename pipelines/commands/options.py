"""The options that several commands take, each said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tidemill.pipelines.config.choices import ENGINES

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
    help="Where everything is written, instead of the file's root.",
)
quiet = click.option("--quiet", is_flag=True, help="Print results and errors only.")
speed = click.option(
    "--speed",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Replay at N times real time; as fast as possible by default.",
)
engine = click.option(
    "--engine", type=click.Choice(ENGINES), help="The Beam engine that runs the stream."
)


def opened(command: _Command) -> _Command:
    """Give a command the options that say which configuration and where, and ``--quiet``."""
    return config(root(quiet(command)))
