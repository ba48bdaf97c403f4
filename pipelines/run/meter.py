"""Counters of a running pipeline, to show its progress in the same process.

Some engines report Beam's metrics only at the end. Workers in another process have a meter of their
own, so nothing but the display may depend on it.
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
        """Add ``count``."""
        with self._lock:
            self._counts[run, name] += count

    def reach(self, run: str, name: str, count: int) -> None:
        """Raise a count to ``count``; it never falls."""
        with self._lock:
            self._counts[run, name] = max(self._counts[run, name], count)

    def forget(self, run: str) -> None:
        """Set the counts of a run to zero."""
        with self._lock:
            for place in [place for place in self._counts if place[0] == run]:
                del self._counts[place]

    def read(self, run: str, name: str) -> int:
        """Return the count."""
        with self._lock:
            return self._counts[run, name]


METER: Final = Meter()
"""This process's meter."""
