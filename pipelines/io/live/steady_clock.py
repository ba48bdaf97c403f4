"""The machine's clock, which is not believed at once when it steps forward.

A live reader claims by the machine's clock what silent partitions are proven to, and when rows are
received. If a clock is an hour ahead for a second, the frontier is, too: the answers of the next
hour are as of an instant to come, when windows are empty, and all events are late. The promises:

* A clock that steps forward is followed only once it has stayed there for `HOLD_S`. Until then the
  time goes on as if it had not stepped; of silent partitions that much less is proven.
* A clock that steps back is followed at once: that claims less, and readers never go back
  themselves.
* A step is said, with its size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from tidemill.features.contract import SECOND

HOLD_S: Final = 60.0
"""So long a clock must stay where it has stepped to."""
STEP_US: Final = 10 * SECOND
"""A clock that runs ahead by less is one that is being corrected, or was read late."""

_log = logging.getLogger(__name__)


def wall_clock_us() -> int:
    """Return the machine's clock in microseconds since 1970."""
    return time.time_ns() // 1_000


class SteadyClock:
    """Tells the time in microseconds since 1970.

    Args:
        wall_us: The machine's clock, in microseconds since 1970.
        seconds: A clock that never steps, in seconds.
        say: Is told of a step forward.
    """

    def __init__(
        self,
        wall_us: Callable[[], int] = wall_clock_us,
        seconds: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = _log.warning,
    ) -> None:
        self._wall_us, self._seconds, self._say = wall_us, seconds, say
        self._told_us, self._told_s = wall_us(), seconds()
        self._stepped_s: float | None = None

    def __call__(self) -> int:
        """Return the time."""
        wall_us, now_s = self._wall_us(), self._seconds()
        expected_us = self._told_us + round((now_s - self._told_s) * SECOND)
        self._told_us, self._told_s = self._believed(wall_us, expected_us, now_s), now_s
        return self._told_us

    def _believed(self, wall_us: int, expected_us: int, now_s: float) -> int:
        step_us = wall_us - expected_us
        if step_us < STEP_US:
            self._stepped_s = None
            return wall_us
        if self._stepped_s is None:
            self._stepped_s = now_s
            self._say(
                f"the clock of this machine has stepped forward by {step_us / SECOND:,.0f} s: it "
                f"is believed once it has stayed there for {HOLD_S:.0f} s"
            )
        if now_s - self._stepped_s < HOLD_S:
            return expected_us
        self._stepped_s = None
        return wall_us
