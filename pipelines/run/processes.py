"""Forked processes that share the work of a stage, so that all cores are used.

They are forked before this process has started a thread: a fork takes along one thread only, and
whatever lock another one holds is never released in it. So they are made at the start of a command;
a process that has threads already does all work itself. (The threads that OpenBLAS and jemalloc
start on import do no harm: both libraries prepare for forks.) They live as long as their parent:
they are killed when it is, by whatever signal.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Final

import pyarrow as pa

from tidemill.features import errors
from tidemill.serving.cores import usable_cores

MOST: Final = 4
"""How many processes there are at most, because each needs memory for its own piece of work."""

_SET_PARENT_DEATH_SIGNAL: Final = 1

_FAILURES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pa.ArrowException,
)
"""Faults of the program or of the machine, which the parent raises again."""

Handler = Callable[[str], str]
"""What a process does with a task: a text, such as JSON; so is the result."""


class Processes:
    """Processes that wait for tasks.

    Args:
        count: How many.
        handler: What each does with a task.
    """

    def __init__(self, count: int, handler: Handler) -> None:
        self._connections: list[Connection] = []
        context = multiprocessing.get_context("fork")
        self._processes = []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, [*self._connections, here], handler), daemon=True
            )
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def map(self, tasks: Sequence[str]) -> list[str]:
        """Do tasks, each in the process that is free first; return their results, in order.

        Raises:
            TidemillError: A task has raised this.
            RuntimeError: A task has failed otherwise, or a process has ended.
        """
        results = [""] * len(tasks)
        todo = iter(enumerate(tasks))
        at_work: dict[Connection, int] = {}

        def give(connection: Connection) -> None:
            for number, task in todo:
                connection.send_bytes(task.encode())
                at_work[connection] = number
                return

        for connection in self._connections:
            give(connection)
        while at_work:
            for ready in wait(list(at_work)):
                connection = next(one for one in at_work if one is ready)
                results[at_work.pop(connection)] = self._receive(connection)
                give(connection)
        return results

    def _receive(self, connection: Connection) -> str:
        try:
            kind, text = json.loads(connection.recv_bytes())
        except EOFError:
            process = self._processes[self._connections.index(connection)]
            process.join()
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise RuntimeError(
                f"a process that shared the work has ended ({how}); the system kills processes "
                "when it is out of memory: free some, and run the command again"
            ) from None
        if kind is None:
            return str(text)
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, errors.TidemillError):
            raise known(text)
        raise RuntimeError(text)

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()


def _serve(connection: Connection, others: Sequence[Connection], handler: Handler) -> None:
    _die_with_parent()
    for other in others:
        other.close()
    # The terminal sends them to all processes: the parent decides, and ends the others.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pa.set_cpu_count(1)
    while True:
        try:
            task = connection.recv_bytes().decode()
        except EOFError:
            return
        reply: tuple[str | None, str]
        try:
            reply = None, handler(task)
        except errors.TidemillError as error:
            reply = type(error).__name__, str(error)
        except _FAILURES as error:
            reply = type(error).__name__, "".join(traceback.format_exception(error))
        connection.send_bytes(json.dumps(reply).encode())


def _die_with_parent() -> None:
    """Let the system kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if parent == 1 or os.getppid() != parent:
            os._exit(1)


_running: list[Processes] = []


def running() -> Processes | None:
    """Return the processes that share the work of this one; None if there are none."""
    return _running[-1] if _running else None


@contextmanager
def sharing(handler: Handler) -> Iterator[None]:
    """Share work with forked processes while the block runs, where that is possible.

    Args:
        handler: What a process does with a task.
    """
    count = min(usable_cores(), MOST)
    if count < 2 or threading.active_count() > 1:
        yield
        return
    processes = Processes(count, handler)
    _running.append(processes)
    try:
        yield
    finally:
        _running.remove(processes)
        processes.close()
