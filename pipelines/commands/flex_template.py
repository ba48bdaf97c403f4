"""The entry point of a Flex Template of Dataflow: the launcher's flags, as a command line.

The launcher runs `dataflow/launch.py` of a project (`tidemill init --dataflow`) in the image of the
workers, with the template's parameters and with Beam's flags, all as ``--NAME=VALUE``.

A launcher takes the job that a program writes, submits it itself, and ends. The program of a stream
keeps the root, and runs as long as its job: it can run in the same image, and not in a launcher.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import click

_OURS: Final = ("config", "root", "mode", "translate", "replaces")
_OF_LAUNCHER: Final = ("runner", "streaming", "template_location", "requirements_file")
"""What the launcher says of any template, and `tidemill stream` sets, or has no use for."""
_IN_LAUNCHER: Final = (
    "error: a launcher of a Flex Template ends before its job runs, and its disk with it; the "
    "program of a stream has the root, and runs as long as its job. Nothing was submitted: run "
    "`tidemill stream --engine dataflow` in this image on a machine that keeps the root "
    "(docs/dataflow.md), or give the parameter translate, which writes the job"
)


def arguments(flags: Sequence[str], project: Path) -> list[str]:
    """Return the command line of `tidemill` for the flags of a launcher.

    Args:
        flags: The launcher's flags.
        project: The folder of the project.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in _OURS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--resume", choices=("true", "false"), default="false")
    for name in _OF_LAUNCHER:
        parser.add_argument(f"--{name}", nargs="?", const="", dest=f"launcher_{name}")
    given, beam = parser.parse_known_args(list(flags))
    if given.config is None:
        given.config = str(project / "tidemill.yaml")
    options = [f"--{name}={value}" for name in _OURS if (value := getattr(given, name)) is not None]
    if given.resume == "true":
        options.append("--resume")
    return ["stream", "--engine=dataflow", *options, "--", *beam]


def launch(flags: Sequence[str], project: Path) -> NoReturn:
    """Make the job of a project's stream; exits as `tidemill stream` does.

    A launcher only has the job written: what it asks for without ``--translate`` is refused.

    Args:
        flags: The launcher's flags.
        project: The folder of the project.
    """
    given = {flag.partition("=")[0] for flag in flags}
    if "--template_location" in given and "--translate" not in given:
        click.echo(_IN_LAUNCHER, err=True)
        sys.exit(1)
    from tidemill.pipelines.commands.cli import main

    main(arguments(flags, project))
    raise AssertionError("a command ends with its status")
