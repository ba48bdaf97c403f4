"""Events of a run: what a person who reads the log should know, under a name to search for.

An event is a log record of Python's `logging` with a name and fields. In a log of texts it is its
message; in a log of JSON (`pipelines.telemetry.json_log`) it has all of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

EVENT: Final = "tidemill_event"
FIELDS: Final = "tidemill_fields"
"""The attributes of a log record that hold an event's name and fields."""
SAY_EVERY_S: Final = 10.0
"""How often an event that goes on is logged, at most, in seconds."""


def log_event(
    log: logging.Logger, event: str, message: str, *, level: int = logging.INFO, **fields: Any
) -> None:
    """Log an event.

    Args:
        log: The logger of the module in which it happens.
        event: Its name, such as ``savepoint``.
        message: What happened, as a sentence.
        level: How important it is; texts below WARNING are not shown on a terminal.
        **fields: JSON values.
    """
    log.log(level, "%s", message, extra={EVENT: event, FIELDS: fields})


class RareWarning:
    """Counts what goes on, and logs it at once and then at most every `SAY_EVERY_S`; thread-safe.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._said: dict[str, float] = {}

    def due(self, name: str, count: int) -> int | None:
        """Count something; return how many have come since it was last logged, if that is due.

        Args:
            name: What is counted.
            count: How many have come.

        Returns:
            The number to log; None if nothing is to be logged yet.
        """
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count
            now = self._clock()
            if now - self._said.get(name, float("-inf")) < SAY_EVERY_S:
                return None
            self._said[name] = now
            return self._counts.pop(name)
