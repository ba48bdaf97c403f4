"""The contract of time: what "as of" means.

What is promised here:

* Times are UTC, int64 microseconds. Hops are aligned to the UTC epoch.
* The value of a feature with window ``W`` and hop ``h`` as of ``t`` covers the events ``e`` with
  ``floor((t - W) / h) * h <= e < t``. The head is exact; the tail moves on the hop grid.
* So a value changes only at ``e + 1`` for an event at ``e``, or at a hop boundary: it is
  piecewise constant between its *change points*.
* At equal times a hop boundary comes first, then a request, then an event; events at equal times
  go by their id as UTF-8 bytes.
* Acceptance of an event is a function of the log alone (`accept`).

This module has the rules that plain Python needs. The compiled kernel has its rules in
`features.kernel.tiles.layout`, the oracle has all of them in plain Python.
`tests/features/contract_test.py` tests the kernel rule by rule, `tests/laws/contract_laws_test.py`
compares it with the formulas.
"""

from __future__ import annotations

import datetime
import enum
import functools
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
"""Minus infinity as a time: before every event (also the frontier of a shard at the start)."""
TIME_MAX: Final = 2**62
"""Plus infinity as a time: after every event (also the watermark of a partition that ended)."""

EARLIEST_EVENT: Final = -62_135_596_800_000_000
"""0001-01-01T00:00:00Z: an event time before it is out of range."""
LATEST_EVENT: Final = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z: an event time after it is out of range."""

LONGEST_DURATION: Final = 10**18
"""The longest duration (about 31,000 years): the sum of a time and durations fits int64."""

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
"""No number in a duration needs more digits; Python refuses to read more than 4,300."""


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
    duration_us = _microseconds(text)
    if duration_us is None:
        raise DefinitionError(
            f"{what} {shown(text)} is not a duration; write digits and a unit out of "
            f"{', '.join(_UNITS)}, for example '5m', '36h' or '1d12h'"
        )
    if duration_us > LONGEST_DURATION:
        raise DefinitionError(
            f"{what} {shown(text)} is too long; take at most {LONGEST_DURATION // DAY}d"
        )
    return duration_us


@functools.lru_cache(maxsize=1_024)
def _microseconds(text: str) -> int | None:
    """Return a duration, perhaps more than the longest; None if the text is none."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    numbers = [number.lstrip("0") or "0" for number, _ in parts]
    if any(len(number) > _DIGITS for number in numbers):
        return LONGEST_DURATION + 1
    units = (_UNITS[unit] for _, unit in parts)
    return sum(int(number) * unit_us for number, unit_us in zip(numbers, units, strict=True))


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
        OverflowError: The time is not from `EARLIEST_EVENT` to `LATEST_EVENT`.

    >>> moment_of(90 * MINUTE).isoformat()
    '1970-01-01T01:30:00+00:00'
    """
    return _EPOCH + time_us * _MICROSECOND


def write_instant(time_us: int) -> str:
    """Write a time as every output and message shows it: ISO 8601, UTC, decimals only if needed.

    The frontier before every event and the one after every event are named.

    >>> write_instant(90 * MINUTE), write_instant(1)
    ('1970-01-01T01:30:00Z', '1970-01-01T00:00:00.000001Z')
    >>> write_instant(TIME_MIN), write_instant(TIME_MAX)
    ('before all time', 'the end of time')
    """
    if time_us <= TIME_MIN:
        return "before all time"
    if time_us >= TIME_MAX:
        return "the end of time"
    unit = "us" if time_us % SECOND else "s"
    return f"{np.datetime64(time_us, 'us').astype(f'datetime64[{unit}]')}Z"


def time_of(moment: datetime.datetime) -> int:
    """Return the time of a datetime; one without a zone is UTC.

    >>> time_of(moment_of(90 * MINUTE)) // MINUTE
    90
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // _MICROSECOND


def window_tail(as_of_us: int, window_us: int, hop_us: int) -> int:
    """Return the first time that a window covers as of ``as_of_us``: it moves on the hop grid."""
    return (as_of_us - window_us) // hop_us * hop_us


@dataclass(frozen=True)
class Acceptance:
    """Which of a partition's next rows are accepted, and the highest accepted time after them.

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
    """Decide which rows of a partition are accepted; a function of the log alone.

    Args:
        times_us: int64, ``(rows,)``: event times in log order.
        received_us: int64, ``(rows,)``: when the log received each row; None if the log does not
            record it: then no row is ahead.
        highest_us: The highest accepted time before these rows (`TIME_MIN` at the start).
        tolerance_us: ``out_of_orderness + allowed_lateness``, in microseconds.
        max_ahead_us: How far a time may be past its receipt, in microseconds.

    Returns:
        The decision for each row. A row that is ahead moves no watermark.
    """
    if received_us is None:
        ahead: BoolArray = np.zeros(len(times_us), np.bool_)
    else:
        ahead = times_us > received_us + max_ahead_us
    usable = np.where(ahead, TIME_MIN, times_us)
    highest = np.maximum.accumulate(np.concatenate([[highest_us], usable]))
    # A row that is too late is below the highest time and cannot raise it, so the maximum over all
    # usable rows is the highest *accepted* time.
    too_late = ~ahead & (times_us < highest[:-1] - tolerance_us)
    return Acceptance(too_late, ahead, int(highest[-1]))


class ReadStatus(enum.Enum):
    """The status of a view's row in an online read, named as in Feast's ``FieldStatus``."""

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
        valid_until_us: When the row stops being valid.
        max_staleness_us: How far the frontier may lag behind the clock.

    Returns:
        ``PRESENT`` or ``OUTSIDE_MAX_AGE``.
    """
    fresh = clock_us - frontier_us <= max_staleness_us and valid_until_us > frontier_us
    return ReadStatus.PRESENT if fresh else ReadStatus.OUTSIDE_MAX_AGE
