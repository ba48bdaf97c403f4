"""Processes of servers: started in the background, known again for certain, ended.

A process is identified by its number *and* the time at which it started, because the system gives
the number of a process that has ended to another one. `RunningProcess` does nothing to a process
whose start time is not the recorded one.

A server is started in two steps: a shell waits in its place, with the number that the server will
have, until the caller has recorded it; then the shell becomes the server. If the caller dies in
between, the shell ends, so there is never a server that no record names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tidemill.features.errors import ServerNotStarted, ServerNotStopped

_KILL_S: Final = 30.0
_LOOK_S: Final = 0.02
_WAITING: Final = 'read -r go && [ "$go" = go ] && exec "$@" < /dev/null'
_GUARD: Final = 'read -r nothing; kill -KILL "$1"'
_TAIL_BYTES: Final = 2_000

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RunningProcess:
    """A process, also one that another process has started.

    Attributes:
        pid: Its number.
        started: When it started, as the system shows it.
    """

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Tell whether it runs; a process that got its number later does not count."""
        found = _look(self.pid)
        if found is None or found[1] != self.started:
            return False
        if found[0]:
            return True
        with contextlib.suppress(ChildProcessError):  # then another process has started it
            os.waitpid(self.pid, os.WNOHANG)
        return False

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal.

        Returns:
            False if it does not run any more.
        """
        try:
            handle = os.pidfd_open(self.pid) if sys.platform == "linux" else None
        except ProcessLookupError:
            return False
        try:
            # Between this look and the signal the handle keeps naming the same process.
            if not self.is_alive():
                return False
            if handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True

    def end(self, patience_s: float) -> bool:
        """End it: SIGTERM, and SIGKILL if it still runs after some seconds.

        Args:
            patience_s: How long it may take after SIGTERM; 0.0 kills it at once.

        Returns:
            False if it did not run.

        Raises:
            ServerNotStopped: It survives SIGKILL, as a process that waits for a disk does.
        """
        if patience_s > 0.0:
            if not self.send(signal.SIGTERM):
                return False
            self.send(signal.SIGCONT)
            if self._ends_within(patience_s):
                return True
        if not self.send(signal.SIGKILL):
            return patience_s > 0.0
        if not self._ends_within(_KILL_S):
            raise ServerNotStopped(
                f"process {self.pid} still runs {_KILL_S:.0f} s after SIGKILL: it waits for the "
                "system, such as for a disk; look at it with `ps`, and try again"
            )
        return True

    def _ends_within(self, seconds: float) -> bool:
        deadline_s = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_LOOK_S)
        return True


def running_process(pid: int) -> RunningProcess | None:
    """Return the process that has a number now; None if there is none."""
    found = _look(pid)
    return RunningProcess(pid, found[1]) if found is not None and found[0] else None


def _look(pid: int) -> tuple[bool, str] | None:
    """Look at a process.

    Returns:
        Whether it runs (one that has ended is listed until its parent asks for its status), and
        when it started: on Linux the id of the boot and the clock ticks since then, else what
        ``ps`` shows, whose resolution is one second. None if there is no such process.
    """
    if sys.platform != "linux":
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        state, _, started = shown.stdout.strip().partition(" ")
        return (not state.startswith("Z"), started.strip()) if state else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the name in parentheses, which may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    # Killed threads close the files that they share after the first of them is listed as ended.
    ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return not ended, f"{boot} {fields[19]}"


def start(
    command: Sequence[str | Path],
    log: Path,
    before: Callable[[RunningProcess], None] | None = None,
) -> RunningProcess:
    """Start a server in the background, in a session of its own: Ctrl-C does not reach it.

    Args:
        command: The program and its arguments, with absolute paths.
        log: Where its output is appended; its folder exists.
        before: Called before the program runs, with the process that it is going to be.

    Raises:
        ServerNotStarted: The process could not be started.
    """
    with log.open("ab") as output:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _WAITING, "tidemill-server", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=log.parent,  # the caller's folder may be removed
            start_new_session=True,
        )
    assert shell.stdin is not None
    try:
        process = running_process(shell.pid)
        if process is None:
            raise ServerNotStarted(f"the process of {command[0]} ended at once; {last_words(log)}")
        if before is not None:
            before(process)
        shell.stdin.write(b"go\n")
    finally:
        with contextlib.suppress(BrokenPipeError):
            shell.stdin.close()
        # `RunningProcess` waits for it; the object would warn that it still runs.
        shell.returncode = 0
    return process


def await_answer(
    name: str,
    where: str,
    log: Path,
    timeout_s: float,
    is_alive: Callable[[], bool],
    ask: Callable[[], Answer],
    is_ours: Callable[[Answer], bool] = bool,
) -> None:
    """Wait until a server that was started answers.

    Args:
        name: The server, for errors.
        where: Where it is to answer, such as ``on port 6379``.
        log: Its log.
        timeout_s: How long it may take.
        is_alive: Tells whether its process runs.
        ask: Asks whoever is there.
        is_ours: Tells whether an answer is that of the server; it raises what is wrong with
            another one.

    Raises:
        ServerNotStarted: The process ended, or did not answer in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = ask()
        # A process that could not bind its port has ended, whoever answers there.
        if not is_alive():
            raise ServerNotStarted(f"{name} ended while it started; {last_words(log)}")
        if is_ours(answer):
            return
        if time.monotonic() > deadline_s:
            raise ServerNotStarted(
                f"{name} did not answer {where} within {timeout_s:.0f} s; {last_words(log)}"
            )
        time.sleep(_LOOK_S)


class Guard:
    """Kills a process when this one dies, by whatever signal.

    A shell reads from a pipe that we hold open and never write to. When our process dies, the pipe
    closes, and the shell kills the server.

    Args:
        process: The server.
    """

    def __init__(self, process: RunningProcess) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "tidemill-guard", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the guard, before the server is ended: its number may be given to another process."""
        self._shell.kill()
        self._shell.communicate()


def last_words(log: Path) -> str:
    """Return where a log is and how it ends, for an error message."""
    if not log.exists():
        return f"it has left no log at {log}"
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = file.read().decode("utf-8", errors="replace").strip()
    return f"its log {log} ends with:\n{tail or '(nothing)'}"
