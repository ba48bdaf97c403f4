"""Connections that belong to one thread of one process: a forked process opens its own."""

from __future__ import annotations

import os
import threading
from typing import Generic, TypeVar

Key = TypeVar("Key")
Opened = TypeVar("Opened")


class PerThread(threading.local, Generic[Key, Opened]):
    """The connections of the current thread, by the place that they lead to."""

    def __init__(self) -> None:
        self._opened: dict[Key, tuple[int, Opened]] = {}
        self._inherited: list[Opened] = []

    def get(self, key: Key) -> Opened | None:
        """Return the connection that this thread of this process has opened, if any."""
        pid, opened = self._opened.get(key, (0, None))
        return opened if pid == os.getpid() else None

    def put(self, key: Key, opened: Opened) -> None:
        """Keep a connection of this thread."""
        self.pop(key)
        self._opened[key] = (os.getpid(), opened)

    def pop(self, key: Key) -> Opened | None:
        """Remove the connection of this thread, and return it so that it can be closed."""
        pid, opened = self._opened.pop(key, (0, None))
        if pid == os.getpid() or opened is None:
            return opened
        # Keep a parent process's connection open: closing it here would disturb its locks.
        self._inherited.append(opened)
        return None
