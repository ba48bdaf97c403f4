"""Progress as events of the log, for a log of JSON."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from tidemill.pipelines.run.progress import StageProgress
from tidemill.pipelines.telemetry.events import log_event

_log: Final = logging.getLogger(__name__)


class LogProgress:
    """Logs the start and the end of each stage, and what is said.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "rows"
    ) -> Iterator[StageProgress]:
        """Log the start and the end; see `Progress.stage`."""
        began, count = self._clock(), _Count(total)
        log_event(_log, "stage_started", f"{name}: started", stage=name, unit=unit, total=total)
        how = "failed"
        try:
            yield count
            how = "done"
        finally:
            seconds = round(self._clock() - began, 3)
            log_event(
                _log,
                f"stage_{how}",
                f"{name}: {how} after {seconds:g} s",
                stage=name,
                unit=unit,
                count=count.done,
                seconds=seconds,
                note=count.last_note,
            )

    def say(self, text: str) -> None:
        """Log a text; see `Progress.say`."""
        log_event(_log, "said", text)


class _Count:
    """Counts; several threads use it at once."""

    def __init__(self, total: int | None) -> None:
        self.done, self.total, self.last_note = 0, total, ""
        self._lock = threading.Lock()

    def advance(self, count: int = 1) -> None:
        with self._lock:
            self.done += count

    def expect(self, total: int) -> None:
        self.total = total

    def note(self, text: str) -> None:
        self.last_note = text
