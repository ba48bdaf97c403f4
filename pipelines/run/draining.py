"""Draining: the first Ctrl-C, SIGTERM or SIGHUP asks a live stream to end in order.

The second one ends it. SIGHUP comes when a terminal is closed: what would be shown there is then
written nowhere. After `nohup` it stays ignored.

Without a block of `draining` both signals end a command at once (`pipelines.commands.signals`).
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a process to end."""
STREAM: Final = (
    "the stream takes what it has read, keeps its state and ends; a second one ends it at once, "
    "without a savepoint"
)


def heard() -> list[signal.Signals]:
    """Return the signals that ask this process to end: without SIGHUP after `nohup`."""
    is_kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in ENDING if not (is_kept and number == signal.SIGHUP)]


def leave_closed_terminal(number: int) -> None:
    """After SIGHUP, discard what would be written to a terminal: it would be an error.

    Args:
        number: The signal that has come.
    """
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (sys.__stdout__, sys.__stderr__):
        if output is None:
            continue
        with suppress(OSError, ValueError):  # it may have no file
            if stat.S_ISCHR(os.fstat(output.fileno()).st_mode):  # `isatty` is false by now
                os.dup2(nowhere, output.fileno())
    os.close(nowhere)


@contextmanager
def draining(say: Callable[[str], None], what: str = STREAM) -> Iterator[threading.Event]:
    """Set the yielded event at the first signal while the block runs.

    Args:
        say: Tells a person what happens; called in a thread. A handler of a signal interrupts the
            main thread anywhere, also amid writing to the same terminal.
        what: What happens, and what a second signal does.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python delivers signals to the main thread only
        return
    numbers = heard()
    before = {number: signal.getsignal(number) for number in numbers}
    names: list[str] = []
    has_news = threading.Event()

    def tell() -> None:
        has_news.wait()
        for name in names:
            say(f"{name}: {what}")

    def ask(number: int, _: FrameType | None) -> None:
        leave_closed_terminal(number)
        names.append(signal.Signals(number).name)
        asked.set()
        has_news.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    # Started before: a handler may not start one, since it may interrupt another such start.
    teller = threading.Thread(target=tell, name="draining", daemon=True)
    teller.start()
    for number in numbers:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        has_news.set()
        teller.join()
