"""Processes that are forked from one which has imported what they need: importing takes seconds.

They begin without the threads, locks and connections of the process that starts them.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import beam_memo
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.commands.feast_import import leave_out_checks
from tidemill.pipelines.telemetry import run_id

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

_START_S: Final = 120.0


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


class Started:
    """A command of `tidemill` that runs in a process of its own, with the methods of a `Popen`.

    Args:
        arguments: The command line, without the program's name.
        folder: The folder in which it runs.
        log: The file that it prints to, at its end.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path) -> None:
        self._process = processes().Process(
            target=_run, args=(tuple(arguments), folder, log, dict(os.environ))
        )
        self._process.start()
        deadline_s = time.monotonic() + _START_S
        # Signals are sent to its session, as those of a terminal are.
        while self.poll() is None and not self._leads():
            assert time.monotonic() < deadline_s, f"{arguments} does not begin"
            time.sleep(0.001)

    def _leads(self) -> bool:
        try:
            return os.getpgid(self.pid) == self.pid
        except ProcessLookupError:  # it has just ended
            return False

    @property
    def pid(self) -> int:
        """The number of the process, and of its group."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            TimeoutExpired: It has not ended in time, in seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tidemill", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def run_command(arguments: Sequence[str], folder: Path, within_s: float = 300) -> Ended:
    """Run a command of `tidemill` in a folder, in a process of its own, to its end."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "printed"
        process = Started(arguments, folder, path)
        with suppress(subprocess.TimeoutExpired):
            try:
                process.wait(within_s)
            finally:
                process.kill()
        return Ended(process.wait(), path.read_text())


def _run(arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    # What is to be done at the end of the server is not to be done at the end of this process.
    atexit._clear()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    _be_another_run()
    try:
        main(arguments)
    finally:
        # A process that is forked by `multiprocessing` does not do this by itself.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def _be_another_run() -> None:
    """Let this process have an id of its own, which a process that is started chooses."""
    before = run_id.RUN_ID
    importlib.reload(run_id)
    for name, module in sys.modules.items():
        if name.startswith("tidemill.") and getattr(module, "RUN_ID", None) == before:
            vars(module)["RUN_ID"] = run_id.RUN_ID
