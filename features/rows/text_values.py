"""Parsing of texts: a column of texts becomes int64, float64, bool or timestamp values.

What is promised here, for one text:

* int64: ASCII digits with an optional sign, in range. ``1.0`` and ``0x1F`` are refused.
* float64: Python's float syntax (``1``, ``.5``, ``-1.5e-3``) in ASCII and without underscores,
  rounded correctly. NaN is refused, and so are infinities and overflows, each with its reason.
* bool: ``true`` and ``false`` in any case, ``1`` and ``0``.
* timestamp: an ISO 8601 date and time, with ``T`` or a space, seconds and decimals optional, then
  ``Z`` or an offset (``+05:30``, ``+0530``, ``+05``). A time is whole microseconds, so decimals
  after the sixth must be zeros; a leap second is refused. Without an offset it is a local time of
  the given zone: one that the clocks skipped is refused, one that they showed twice is returned
  with both instants (`Parsed.repeated`).
* White space is not stripped.

`parse_one` parses one text. `parse` parses a column at once: regular expressions find the texts
that Arrow parses by the same rules, and `parse_one` takes the others (odd or wrong ones).
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features import zones
from tidemill.features.contract import MINUTE, BoolArray, Int64Array, time_of
from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, INT64, TIMESTAMP
from tidemill.features.rows.local_times import Repeated
from tidemill.features.rows.rejected import Reason

# Texts that Arrow parses by the same rules.
_PLAIN_NUMBER: Final = {
    INT64: r"\A-?[0-9]{1,18}\z",
    FLOAT64: r"\A-?[0-9]{1,17}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?\z",
}
_PLAIN_YEAR: Final = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_PLAIN_LOCAL: Final = (
    rf"\A{_PLAIN_YEAR}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
)
_PLAIN_OFFSET: Final = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LONG_DECIMALS: Final = r"\.[0-9]{7}"
_SPARE_ZEROS: Final = r"(\.[0-9]{6})0+(Z|[+-]|\z)"
_EVERY_MONTH_HAS_IT: Final = r"\A[0-9]{4}-[0-9]{2}-([01][0-9]|2[0-8])"

WHOLE_MICROSECONDS: Final = (
    "whole microseconds: decimals after the sixth must be zeros; round the time"
)
"""What is expected in place of a time with a part of a microsecond."""

_INT: Final = re.compile(r"([+-]?)0*([0-9]+)", re.ASCII)
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_NAN: Final = re.compile(r"[+-]?nan", re.ASCII | re.IGNORECASE)
_INFINITY: Final = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_TIME: Final = re.compile(
    r"(?P<year>[0-9]{4,9})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"[T ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    r"(:(?P<second>[0-9]{2})(\.(?P<decimals>[0-9]{1,6})(?P<finer>[0-9]*))?)?"
    r"(?P<offset>Z|(?P<sign>[+-])(?P<hours>[01][0-9]|2[0-3])(:?(?P<minutes>[0-5][0-9]))?)?",
    re.ASCII,
)


@dataclass(frozen=True, eq=False)
class Parsed:
    """The values of a column of texts.

    Attributes:
        values: int64, float64 or bool, ``(rows,)``; times in microseconds UTC (perhaps outside the
            years 1 to 9999); anything where not valid. Writable.
        valid: bool, ``(rows,)``: there is a value; false for a null. Writable.
        refused: Row to the reason why it has none.
        repeated: The rows with a local time that occurred twice; they are valid, with the first
            instant as value. None for a column of no such rows.
    """

    values: npt.NDArray[Any]
    valid: BoolArray
    refused: dict[int, Reason]
    repeated: Repeated | None = None


def parse(text: pa.Array, dtype: str, zone: str | None) -> Parsed:
    """Parse a column of texts by the rules of this module.

    Args:
        text: string, ``(rows,)``; well-formed UTF-8, nulls allowed.
        dtype: ``int64``, ``float64``, ``bool`` or ``timestamp``.
        zone: The IANA zone of times without an offset; None refuses such times.

    Returns:
        The values, and why a text has none.
    """
    refused: dict[int, Reason] = {}
    last = np.zeros(0, np.int64)
    values: npt.NDArray[Any]
    if dtype == TIMESTAMP:
        values, last, plain, skipped = _plain_times(text, zone)
        if not plain.all() and _matches(text, _LONG_DECIMALS).any():
            text = pc.replace_substring_regex(text, _SPARE_ZEROS, r"\1\2")
            values, last, plain, skipped = _plain_times(text, zone)
        refused = dict.fromkeys(skipped, Reason.NONEXISTENT_LOCAL_TIME)
    elif dtype == BOOL:
        lower = pc.ascii_lower(text)
        values = flags(pc.is_in(lower, value_set=pa.array(["true", "1"])))
        plain = values | flags(pc.is_in(lower, value_set=pa.array(["false", "0"])))
    else:
        plain = _matches(text, _PLAIN_NUMBER[dtype])
        values = _scatter(_take(text, plain).cast(ARROW_TYPES[dtype]), plain)
    valid = plain.copy()
    for row in np.flatnonzero(~plain & flags(pc.is_valid(text))).tolist():
        outcome: Any = _PARSERS[dtype](text[row].as_py(), zone)
        if isinstance(outcome, Reason):
            refused[row] = outcome
        elif dtype == TIMESTAMP:
            (values[row], last[row]), valid[row] = outcome, True
        else:
            values[row], valid[row] = outcome, True
    for row in refused:
        valid[row] = False
    twice = repeated(values, last, valid) if dtype == TIMESTAMP else None
    return Parsed(values, valid, refused, twice)


def parse_one(text: str, dtype: str, zone: str | None) -> int | float | bool | Reason:
    """Parse one text by the rules of this module.

    Returns:
        The value, or the reason for none; `Reason.AMBIGUOUS_LOCAL_TIME` for a time that has two.
    """
    outcome: Any = _PARSERS[dtype](text, zone)
    if dtype == TIMESTAMP and not isinstance(outcome, Reason):
        first, last = outcome
        return int(first) if first == last else Reason.AMBIGUOUS_LOCAL_TIME
    found: int | float | bool | Reason = outcome
    return found


def repeated(first_us: npt.NDArray[Any], last_us: Int64Array, valid: BoolArray) -> Repeated | None:
    """Return the valid rows with two instants; None if there are none."""
    rows = np.flatnonzero(valid & (first_us != last_us))
    return Repeated(rows, first_us[rows], last_us[rows]) if len(rows) else None


def expected_of_time(text: str) -> str | None:
    """Say what was expected in place of a time that is well written and has no value here.

    Returns:
        A sentence's end for a leap second or a part of a microsecond; None for any other text.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    if (match["finer"] or "").strip("0"):
        return WHOLE_MICROSECONDS
    if match["second"] == "60":
        return (
            "seconds from 00 to 59: every day has 86,400 seconds here, and a leap second is none "
            "of them; write the second before or after it"
        )
    return None


def _parse_int(text: str) -> int | Reason:
    match = _INT.fullmatch(text)
    if match is None or len(match[2]) > 19:
        return Reason.WRONG_TYPE
    value = int(match[1] + match[2])
    return value if -(2**63) <= value < 2**63 else Reason.WRONG_TYPE


def _parse_float(text: str) -> float | Reason:
    if _FLOAT.fullmatch(text):
        value = float(text)
        return Reason.INFINITY if math.isinf(value) else value
    if _NAN.fullmatch(text):
        return Reason.NAN
    return Reason.INFINITY if _INFINITY.fullmatch(text) else Reason.WRONG_TYPE


def _parse_bool(text: str) -> bool | Reason:
    lower = text.lower() if text.isascii() else text
    return {"true": True, "1": True, "false": False, "0": False}.get(lower, Reason.WRONG_TYPE)


def _parse_time(text: str, zone: str | None) -> tuple[int, int] | Reason:
    """Return the first and the last instant of a time; they are equal unless it is repeated."""
    match = _TIME.fullmatch(text)
    if match is None or (match["finer"] or "").strip("0"):
        return Reason.WRONG_TYPE
    # No datetime has such a year: check the date in a year with the same leap days.
    year = int(match["year"])
    stand_in = year if 1 <= year <= 9999 else 2000 + year % 400
    second = int(match["second"] or 0)
    decimals = int((match["decimals"] or "").ljust(6, "0"))
    clock = (int(match["hour"]), int(match["minute"]), second, decimals)
    try:
        moment = datetime.datetime(  # noqa: DTZ001 - local, or UTC before its offset is taken off
            stand_in, int(match["month"]), int(match["day"]), *clock
        )
    except ValueError:
        return Reason.WRONG_TYPE
    if not match["offset"] and zone is None:
        return Reason.NAIVE_TIME
    if stand_in != year:
        return Reason.TIME_OUT_OF_RANGE
    local = time_of(moment)
    if match["offset"]:
        minutes = 60 * int(match["hours"] or 0) + int(match["minutes"] or 0)
        utc = local - (-1 if match["sign"] == "-" else 1) * minutes * MINUTE
        return utc, utc
    assert zone is not None  # a time without an offset and a zone was refused above
    instants = zones.localize(np.array([local], np.int64), zone)
    if not instants.exists[0]:
        return Reason.NONEXISTENT_LOCAL_TIME
    return int(instants.first_us[0]), int(instants.last_us[0])


_PARSERS: Final[Mapping[str, Callable[[str, str | None], Any]]] = {
    INT64: lambda text, _: _parse_int(text),
    FLOAT64: lambda text, _: _parse_float(text),
    BOOL: lambda text, _: _parse_bool(text),
    TIMESTAMP: _parse_time,
}


def _plain_times(
    text: pa.Array, zone: str | None
) -> tuple[Int64Array, Int64Array, BoolArray, list[int]]:
    """Parse what Arrow can.

    Returns the first and the last instant, microseconds UTC; which rows were parsed; and which of
    those clocks skipped.
    """
    plain = _matches(text, _PLAIN_LOCAL + _PLAIN_OFFSET + r"\z")
    values, plain = _arrow_times(text, plain, ARROW_TYPES[TIMESTAMP])
    if zone is None or plain.all():
        return values, values, plain, []
    naive = _matches(text, _PLAIN_LOCAL + r"\z")
    local, naive = _arrow_times(text, naive, pa.timestamp("us"))
    rows = np.flatnonzero(naive)
    instants, last = zones.localize(local[rows], zone), values.copy()
    values[rows], last[rows] = instants.first_us, instants.last_us
    return values, last, plain | naive, rows[~instants.exists].tolist()


def _arrow_times(
    text: pa.Array, plain: BoolArray, kind: pa.DataType
) -> tuple[Int64Array, BoolArray]:
    try:
        return _scatter(_take(text, plain).cast(kind).cast(pa.int64()), plain), plain
    except pa.ArrowInvalid:
        # Some row has a day that its month lacks; days 29 to 31 then take the slow way.
        plain = plain & _matches(text, _EVERY_MONTH_HAS_IT)
        return _scatter(_take(text, plain).cast(kind).cast(pa.int64()), plain), plain


def _matches(text: pa.Array, pattern: str) -> BoolArray:
    return flags(pc.match_substring_regex(text, pattern))


def flags(array: pa.Array) -> BoolArray:
    """Return a bool column as numpy, false where it is null."""
    filled: BoolArray = array.fill_null(False).to_numpy(zero_copy_only=False)
    return filled


def _take(array: pa.Array, rows: BoolArray) -> pa.Array:
    return array if rows.all() else array.filter(pa.array(rows))


def _scatter(array: pa.Array, rows: BoolArray) -> npt.NDArray[Any]:
    """Return the values at the rows that they were taken from, 0 elsewhere; writable."""
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if len(values) == len(rows):
        return values.copy()
    spread = np.zeros(len(rows), values.dtype)
    spread[rows] = values
    return spread
