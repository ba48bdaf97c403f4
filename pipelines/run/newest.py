"""Work in a thread on the newest of the values that are noted, which nothing waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """Calls a function with the newest value; one that is noted during a call waits for its end.

    Args:
        work: The function; it raises nothing.
        name: The name of the thread.
        close_s: How long `close` waits, in seconds.
    """

    def __init__(self, work: Callable[[T], None], name: str, close_s: float) -> None:
        self._work, self._close_s = work, close_s
        self._changed = threading.Condition()
        self._noted: list[T] = []
        """The newest value that was not worked on yet, if there is one."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def note(self, value: T) -> None:
        """Let a value be worked on soon, unless a newer one is noted before."""
        with self._changed:
            self._noted = [value]
            self._changed.notify_all()

    def close(self) -> None:
        """Work on what is noted, if that does not take long, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(self._close_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._noted or self._is_closed)
                if not self._noted:
                    return
                value = self._noted.pop()
            self._work(value)
