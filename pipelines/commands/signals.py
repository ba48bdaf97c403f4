"""Ctrl-C and SIGTERM: an end in order, said in one line.

A signal raises in the main thread, so that every stage ends as it does after an error: half-written
files are removed, Prism is stopped. Engines turn what is raised inside a step into an error of
their own, so the signal is also remembered, and counts before any error that it has led to. A
second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_STATUS = 128
"""A process that a signal ends has this status and the signal's number, as a shell says it."""


@dataclass
class Stop:
    """The signal that came, if one did."""

    number: int | None = None

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM."""
        return _STATUS + (self.number or 0)

    @property
    def line(self) -> str:
        """What is said of it."""
        if self.number == signal.SIGTERM:
            return "stopped by SIGTERM; what was finished is kept"
        return "interrupted; what was finished is kept"


@contextmanager
def heeded() -> Iterator[Stop]:
    """Raise ``KeyboardInterrupt`` in the block on SIGINT and SIGTERM, and remember which it was."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python hands signals to the main thread only
        return

    def end(number: int, _: FrameType | None) -> None:
        stop.number = number
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        if stop.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
