"""A program that continues the stream of a proof run, paced, until it is killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.proof_run import configuration, score_without_models
from tidemill.pipelines.commands.feast_import import leave_out_checks
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream

POLL_ROWS = 200
"""The rows of a poll: a poll is sent when all of its rows are due, and there are a few thousand."""


def main(folder: str, root: str, engine: str, resume: str, speed: str, joiners: str) -> None:
    """Run it.

    Args:
        folder: Where the sources are.
        root: The run's root.
        engine: ``fnapi`` or ``prism``.
        resume: ``resume`` to go on, anything else to start over.
        speed: How many times faster than real time.
        joiners: How many joiners it has.
    """
    leave_out_checks()
    score_without_models(pytest.MonkeyPatch())
    config = configuration(Path(folder), Path(root))
    options = replace(config.stream, joiners=int(joiners), poll_rows=POLL_ROWS)
    config = replace(config, stream=options)
    stream(
        config,
        QuietProgress(),
        engine=engine,
        speed=float(speed),
        resume=resume == "resume",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
