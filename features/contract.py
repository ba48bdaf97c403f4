"""The contract of time: the specification of "as of".

The kernel computes the same rules in compiled code (`features.kernel.tiles.layout`), and labels are
joined in Arrow; `tests/laws/contract_laws_test.py` compares both with the functions of this page.

* Times are UTC, int64 microseconds. Hops are aligned to the UTC epoch.
* The value of a feature with window ``W`` and hop ``h`` as of ``t`` covers the events ``e`` with
  ``floor((t - W) / h) * h <= e < t``. The head is exact; the tail moves on the hop grid.
* So a value changes only at ``e + 1`` for an event at ``e``, or at a hop boundary: it is
  piecewise constant between its *change points*.
* At equal times a hop boundary comes first, then a request, then an event; events at equal times
  are ordered by their ids as UTF-8 bytes.
* Acceptance of an event is a function of the log alone (`accept`).
"""

from __future__ import annotations

import datetime
import enum
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tidemill.features.errors import DefinitionError, found, shown

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MICROSECOND: Final = 1
MILLISECOND: Final = 1_000
SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

TIME_MIN: Final = -(2**62)
"""Minus infinity as a time: before every event (the frontier of a shard that waits)."""
TIME_MAX: Final = 2**62
"""Plus infinity as a time: after every event (the watermark of a partition that ended)."""

EARLIEST_EVENT: Final = -62_135_596_800_000_000
"""0001-01-01T00:00:00Z: earlier event times are out of range."""
LATEST_EVENT: Final = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z: later event times are out of range."""

LONGEST_DURATION: Final = 10**18
"""The longest duration (about 31,000 years), so that a time plus durations fits int64."""

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)
_UNITS: Final = {
    "us": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
    "d": DAY,
    "w": 7 * DAY,
}
_DURATION: Final = re.compile(r"([0-9]+)(us|ms|s|m|h|d|w)")
_DIGITS: Final = 30
"""The most digits of a number in a duration: Python raises for more than 4,300."""


def parse_duration(text: str, what: str = "duration") -> int:
    """Parse a duration such as ``"5m"``, ``"36h"`` or ``"1d12h"``.

    Args:
        text: Digits and units (``us ms s m h d w``; a day is 24 hours), concatenated.
        what: What the duration is for; used in the error.

    Returns:
        The duration in microseconds.

    Raises:
        DefinitionError: The text is not a duration, or is longer than `LONGEST_DURATION`.

    >>> parse_duration("1h30m") // MINUTE
    90
    """
    if not isinstance(text, str):
        raise DefinitionError(
            f"{what} must be a text such as '5m' or '1d'; {found(text)}; "
            "write the unit: '5m', not 5"
        )
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise DefinitionError(
            f"{what} {shown(text)} is not a duration; write digits and a unit out of "
            f"{', '.join(_UNITS)}, for example '5m', '36h' or '1d12h'"
        )
    numbers = [number.lstrip("0") or "0" for number, _ in parts]
    if all(len(number) <= _DIGITS for number in numbers):
        units = (_UNITS[unit] for _, unit in parts)
        duration_us = sum(int(n) * unit_us for n, unit_us in zip(numbers, units, strict=True))
        if duration_us <= LONGEST_DURATION:
            return duration_us
    raise DefinitionError(
        f"{what} {shown(text)} is too long; take at most {LONGEST_DURATION // DAY}d"
    )


def format_duration(duration_us: int) -> str:
    """Write a duration with the largest units that leave no remainder.

    >>> format_duration(90 * MINUTE)
    '90m'
    """
    for unit in ("w", "d", "h", "m", "s", "ms"):
        if duration_us and duration_us % _UNITS[unit] == 0:
            return f"{duration_us // _UNITS[unit]}{unit}"
    return f"{duration_us}us"


def moment_of(time_us: int) -> datetime.datetime:
    """Return a time as a datetime of UTC.

    Raises:
        OverflowError: It is not between `EARLIEST_EVENT` and `LATEST_EVENT`.

    >>> moment_of(90 * MINUTE).isoformat()
    '1970-01-01T01:30:00+00:00'
    """
    return _EPOCH + time_us * _MICROSECOND


def time_of(moment: datetime.datetime) -> int:
    """Return the time of a datetime; one without a zone is UTC.

    >>> time_of(moment_of(90 * MINUTE)) // MINUTE
    90
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // _MICROSECOND


def hop_index(time_us: int, hop_us: int) -> int:
    """Return the index of the hop that holds ``time_us`` (hops start at the UTC epoch)."""
    return time_us // hop_us


def window_tail(as_of_us: int, window_us: int, hop_us: int) -> int:
    """Return the first time that a window covers as of ``as_of_us``; it is on the hop grid."""
    return (as_of_us - window_us) // hop_us * hop_us


def covers(event_us: int, as_of_us: int, window_us: int, hop_us: int) -> bool:
    """Tell whether the window as of ``as_of_us`` covers an event at ``event_us``."""
    return window_tail(as_of_us, window_us, hop_us) <= event_us < as_of_us


def event_change_point(event_us: int, frontier_us: int = TIME_MIN) -> int:
    """Return the first instant at which an event counts.

    An event in order counts one microsecond after it happened; a late event (before the frontier
    at which it is applied) counts from that frontier.
    """
    return max(event_us + 1, frontier_us)


def expiry(tile_index: int, window_us: int, hop_us: int) -> int:
    """Return the hop boundary at which a tile leaves a window."""
    return (tile_index + 1) * hop_us + window_us


def as_of(request_us: int, frontier_us: int) -> int:
    """Return the instant that an answer is for: the request time, or the frontier if it is late."""
    return max(request_us, frontier_us)


class Rank(enum.IntEnum):
    """The order of things that happen at the same microsecond."""

    HOP_BOUNDARY = 0
    REQUEST = 1
    EVENT = 2


@dataclass(frozen=True)
class Acceptance:
    """The decision on a partition's next rows, and the watermark after them.

    Attributes:
        too_late: bool, ``(rows,)``: more than out-of-orderness + lateness below the highest
            accepted time before it.
        ahead: bool, ``(rows,)``: more than ``max_ahead`` past the time of receipt.
        highest_us: The highest accepted time after these rows.
    """

    too_late: BoolArray
    ahead: BoolArray
    highest_us: int

    @property
    def accepted(self) -> BoolArray:
        """bool, ``(rows,)``: the rows that count."""
        accepted: BoolArray = ~(self.too_late | self.ahead)
        return accepted


def accept(
    times_us: Int64Array,
    received_us: Int64Array | None,
    highest_us: int,
    tolerance_us: int,
    max_ahead_us: int,
) -> Acceptance:
    """Decide which rows of a partition are accepted, from the log alone.

    Args:
        times_us: int64, ``(rows,)``: event times in log order.
        received_us: int64, ``(rows,)``: when the log received each row; None if the log does not
            record it: then no row is ahead.
        highest_us: The highest accepted time before these rows (`TIME_MIN` at the start).
        tolerance_us: ``out_of_orderness + allowed_lateness``, in microseconds.
        max_ahead_us: How far a time may be after its receipt, in microseconds.

    Returns:
        The decision for each row. A row that is ahead moves no watermark.
    """
    if received_us is None:
        ahead: BoolArray = np.zeros(len(times_us), np.bool_)
    else:
        ahead = times_us > received_us + max_ahead_us
    usable = np.where(ahead, TIME_MIN, times_us)
    highest = np.maximum.accumulate(np.concatenate([[highest_us], usable]))
    # A row that is too late is below the highest time and never changes it, so the maximum over all
    # usable rows is the highest *accepted* time.
    too_late = ~ahead & (times_us < highest[:-1] - tolerance_us)
    return Acceptance(too_late, ahead, int(highest[-1]))


class ReadStatus(enum.Enum):
    """The status of a view's row in an online read (the names of Feast's ``FieldStatus``)."""

    PRESENT = "PRESENT"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


def read_status(
    clock_us: int, frontier_us: int, valid_until_us: int, max_staleness_us: int
) -> ReadStatus:
    """Judge a row's age against a declared clock.

    Args:
        clock_us: The reader's declared clock: the wall clock live, the frontier in a replay.
        frontier_us: The published frontier of the row's view and shard.
        valid_until_us: The end of the row's validity.
        max_staleness_us: How far the frontier may be behind the clock.

    Returns:
        ``PRESENT`` or ``OUTSIDE_MAX_AGE``.
    """
    fresh = clock_us - frontier_us <= max_staleness_us and valid_until_us > frontier_us
    return ReadStatus.PRESENT if fresh else ReadStatus.OUTSIDE_MAX_AGE


def label_holds(request_us: int, label_us: int, horizon_us: int) -> bool:
    """Tell whether a label belongs to a request: after it, and within the horizon."""
    return request_us < label_us <= request_us + horizon_us
