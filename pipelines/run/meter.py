"""A meter: how far a running pipeline is, for whoever watches it in the same process.

Beam's own metrics are only there at the end on some engines. A worker in another process has a
meter of its own, and a watcher here then sees nothing move; nothing but display depends on it.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final


class Meter:
    """Counts by run and name; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, run: str, name: str, count: int) -> None:
        """Count ``count`` more."""
        with self._lock:
            self._counts[run, name] += count

    def read(self, run: str, name: str) -> int:
        """Return the count."""
        with self._lock:
            return self._counts[run, name]


METER: Final = Meter()
"""This process's meter."""
