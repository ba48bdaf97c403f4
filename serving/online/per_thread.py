"""What each thread has opened: neither shared by threads nor used across a fork."""

from __future__ import annotations

import os
import threading
from typing import Generic, TypeVar

Key = TypeVar("Key")
Opened = TypeVar("Opened")


class PerThread(threading.local, Generic[Key, Opened]):
    """Connections of the thread that asks, by the place that they lead to."""

    def __init__(self) -> None:
        self._opened: dict[Key, tuple[int, Opened]] = {}
        self._inherited: list[Opened] = []

    def get(self, key: Key) -> Opened | None:
        """Return what this thread of this process has opened, if anything."""
        pid, opened = self._opened.get(key, (0, None))
        return opened if pid == os.getpid() else None

    def put(self, key: Key, opened: Opened) -> None:
        """Keep what this thread has opened."""
        self.pop(key)
        self._opened[key] = (os.getpid(), opened)

    def pop(self, key: Key) -> Opened | None:
        """Return what this thread has opened, to be closed, and forget it."""
        pid, opened = self._opened.pop(key, (0, None))
        if pid == os.getpid() or opened is None:
            return opened
        # Closing a connection of the parent process here would disturb its locks: keep it open.
        self._inherited.append(opened)
        return None
