"""Ctrl-C, SIGTERM and SIGHUP: an orderly end, reported in one line.

A signal raises ``KeyboardInterrupt`` in the main thread, so a stage cleans up as after an error: it
removes half-written files and stops Prism. An engine may turn that exception into an error of its
own; therefore the signal is also recorded, and a recorded signal takes precedence over the error. A
second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tidemill.pipelines.run.draining import heard, leave_closed_terminal

_STATUS = 128
"""The exit status is this plus the number of the signal, as in a shell."""


@dataclass
class Stop:
    """The signal that the process received, if any."""

    number: int | None = None

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return _STATUS + (self.number or 0)

    @property
    def line(self) -> str:
        """The line to print."""
        if self.number in (signal.SIGTERM, signal.SIGHUP):
            return f"stopped by {signal.Signals(self.number).name}; what was finished is kept"
        return "interrupted; what was finished is kept"


@contextmanager
def heeded() -> Iterator[Stop]:
    """Raise ``KeyboardInterrupt`` in the block on a signal to end, and record which it was."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return

    def end(number: int, _: FrameType | None) -> None:
        leave_closed_terminal(number)
        stop.number = number
        for again in before:
            signal.signal(again, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in heard()}
    try:
        yield stop
    finally:
        if stop.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
