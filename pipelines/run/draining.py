"""Draining: the first Ctrl-C or SIGTERM asks a live stream to end in order; the second one ends it.

Without a block of `draining` both signals end a command at once (`pipelines.commands.signals`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STREAM: Final = (
    "the stream takes what it has read, keeps its state and ends; a second one ends it at once, "
    "without a savepoint"
)


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
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    names: list[str] = []
    has_news = threading.Event()

    def tell() -> None:
        has_news.wait()
        for name in names:
            say(f"{name}: {what}")

    def ask(number: int, _: FrameType | None) -> None:
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
