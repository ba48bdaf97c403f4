"""A function in a process of its own that is killed at a chosen step of its work on files."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

STEPS: Final = frozenset({"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "open"})
"""Audit events that are steps: what changes the names of files, and every file that is written."""


class Steps:
    """Counts the steps of this process; kills it at one of them.

    Args:
        kill_at: The number of the step that is not made; None for none.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.names: list[str] = []
        self._kill_at = kill_at
        sys.addaudithook(self._note)

    def _note(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in STEPS or (event == "open" and not _writes(given)):
            return
        self.names.append(f"{event} {' '.join(map(str, given))}")
        if len(self.names) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()


def _writes(given: tuple[Any, ...]) -> bool:
    flags = given[2] if len(given) > 2 and isinstance(given[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def steps_of(work: Callable[[], object]) -> list[str]:
    """Do the work in another process to its end; return its steps."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            steps = Steps()
            work()
            os.write(write, "\n".join(steps.names).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - this process ends here, so it says why
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        found = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return found.split("\n")


def killed_at(step: int, work: Callable[[], object]) -> None:
    """Do the work in another process, which is killed at a step."""
    if not (child := os.fork()):
        try:
            Steps(step)
            work()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
