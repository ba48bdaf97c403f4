"""Instants as text."""

from __future__ import annotations

from tidemill.features.contract import moment_of


def instant(time_us: int) -> str:
    """Format an instant with microseconds; as a number if it is outside the calendar."""
    try:
        return moment_of(time_us).isoformat(timespec="microseconds")
    except OverflowError:
        return str(time_us)
