"""Calling what may never return, for a bounded time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


def call_within(seconds: float, call: Callable[[], None], name: str) -> None:
    """Call a function in a thread, and raise what it raises.

    A call that does not return in time is left behind in its thread, which ends with the process.

    Args:
        seconds: How long to wait for it.
        call: The function.
        name: The thread's name.

    Raises:
        TimeoutError: It did not return in time.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 the caller raises it
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=run, daemon=True, name=name).start()
    try:
        failure = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{name} did not end within {seconds:g} s") from None
    if failure is not None:
        raise failure
