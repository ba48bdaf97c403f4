"""Processes that are forked from one which has imported what they need: importing takes seconds.

They begin without the threads, locks and connections of the process that starts them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import beam_memo
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.commands.feast_import import leave_out_checks

# The server imports this module first.
leave_out_checks()
beam_memo.remember()

IMPORTED: Final = (
    "tests.support.fork_server",
    "feast.infra.registry.sql",
    "tests.support.killed_command",
    "tests.support.loaded_kernel",
    "tests.support.killed_stream",
    "tidemill.pipelines.commands.backfill",
    "tidemill.pipelines.commands.status",
    "tidemill.pipelines.commands.stream",
    "tidemill.pipelines.commands.verify",
    "tidemill.pipelines.history.backfill",
    "tidemill.pipelines.io.kafka.reader",
    "tidemill.pipelines.stream_run.stream",
    "tidemill.pipelines.verify.verify",
    "tidemill.serving.feast_plugins.online_store",
    "tests.serving.online.fencing_test",
    "tests.serving.online.race_test",
    "tests.serving.online.sqlite.database_test",
)
"""What the server imports. It has no threads then."""


@functools.cache
def processes() -> ForkServerContext:
    """Return what starts processes; there is one server for each process of pytest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


class Ended(NamedTuple):
    """A command that has ended.

    Attributes:
        status: Its exit status.
        printed: What it has printed, and said of errors and progress.
    """

    status: int
    printed: str


def run_command(arguments: Sequence[str], folder: Path, within_s: float = 300) -> Ended:
    """Run a command of `tidemill` in a folder, in a process of its own, to its end."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "printed"
        process = processes().Process(target=_run, args=(tuple(arguments), folder, path))
        process.start()
        process.join(within_s)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, path.read_text())


def _run(arguments: Sequence[str], folder: Path, printed: Path) -> None:
    with printed.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    try:
        main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
