"""A function in a process of its own that is killed at a chosen step of its work on files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from tests.support.fork_server import processes

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
    """Do the work in another process to its end; return its steps.

    Args:
        work: What can be pickled: the process begins without the threads and locks of this one.
    """
    read, write = processes().Pipe(duplex=False)
    process = processes().Process(target=_do, args=(work, None, write))
    process.start()
    write.close()
    try:
        found: list[str] = read.recv()
    except EOFError:  # it has failed, and said why
        found = []
    process.join()
    assert process.exitcode == 0
    return found


def killed_at(step: int, work: Callable[[], object]) -> None:
    """Do the work in another process, which is killed at a step; see `steps_of`."""
    process = processes().Process(target=_do, args=(work, step, None))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _do(work: Callable[[], object], kill_at: int | None, told: Connection | None) -> None:
    # What is compiled on the way is no step of the work, and nothing here loses its power.
    sys.dont_write_bytecode = True
    setattr(os, "fsync", _does_nothing)  # noqa: B010
    steps = Steps(kill_at)
    work()
    if told is not None:
        told.send(steps.names)
        told.close()


def _does_nothing(_: int) -> None:
    return
