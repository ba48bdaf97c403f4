"""Elements with their time, for what a stage yields at the end of a bundle."""

from __future__ import annotations

from typing import Any

from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue


def windowed(value: Any, time_us: int) -> WindowedValue:
    """Return an element of the global window.

    Args:
        value: The element.
        time_us: Its time; the nearest that Beam has if it has no such time.
    """
    stamp = Timestamp(micros=min(max(time_us, MIN_TIMESTAMP.micros), MAX_TIMESTAMP.micros))
    return WindowedValue(value, stamp, [GlobalWindow()])
