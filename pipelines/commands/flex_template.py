"""The entry point of a Flex Template of Dataflow: the launcher's flags, as a command line.

The launcher runs `dataflow/launch.py` of a project (`tidemill init --dataflow`) in the image of the
workers, with the template's parameters and with Beam's flags, all as ``--NAME=VALUE``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

_OURS: Final = ("config", "root", "mode", "translate", "replaces")
_OF_LAUNCHER: Final = ("runner", "streaming", "template_location", "requirements_file")
"""What the launcher says of any template, and `tidemill stream` sets, or has no use for."""


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

    Args:
        flags: The launcher's flags.
        project: The folder of the project.
    """
    from tidemill.pipelines.commands.cli import main

    main(arguments(flags, project))
    raise AssertionError("a command ends with its status")
