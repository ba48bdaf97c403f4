"""Instants as text, and the values of fields and of features."""

from __future__ import annotations

import datetime
import re
from typing import Any, Final

import pyarrow as pa

from tidemill.features.contract import time_of, write_instant
from tidemill.features.definitions import TIMESTAMP
from tidemill.features.oracle.numbers import FeatureValue

_OF_INSTANTS: Final = re.compile(
    r"(^|_)(as_of(_us)?|event_timestamp|valid_until|frontiers?)(__.*)?$|_us$"
)


def instant_text(value: Any) -> str:
    """Write an instant: a datetime, or microseconds.

    >>> instant_text(1_385_856_000_000_000)
    '2013-12-01T00:00:00Z'
    """
    return write_instant(time_of(value) if isinstance(value, datetime.datetime) else int(value))


def field_text(name: str, value: Any) -> str:
    """Write the value of a field or column; whole numbers in a field of instants are instants.

    >>> field_text("frontier_us", 1_385_856_000_000_000), field_text("revision", 7)
    ('2013-12-01T00:00:00Z', '7')
    >>> field_text("frontiers", {"cab": [0, 1]})
    "{'cab': [1970-01-01T00:00:00Z, 1970-01-01T00:00:00.000001Z]}"
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return instant_text(value)
    if isinstance(value, float):
        return repr(value)
    if _OF_INSTANTS.search(name):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {field_text(name, v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(field_text(name, one) for one in value) + "]"
        if isinstance(value, int):
            return instant_text(value)
    return str(value)


def scalar_text(name: str, scalar: pa.Scalar) -> str:
    """Write a value of the column of a name; a time may be outside the calendar."""
    if pa.types.is_timestamp(scalar.type) and scalar.is_valid:
        return write_instant(scalar.cast(pa.timestamp("us", "UTC")).value)
    return field_text(name, scalar.as_py())


def value_text(value: FeatureValue, dtype: str) -> str:
    """Write the value of a feature: a float64 as the shortest text that reads as the same number.

    Args:
        value: The value; a timestamp in microseconds UTC.
        dtype: Its dtype.

    >>> value_text(0.1, "float64"), value_text(True, "bool"), value_text(None, "int64")
    ('0.1', 'true', 'null')
    >>> value_text(-1, "timestamp")
    '1969-12-31T23:59:59.999999Z'
    """
    if dtype == TIMESTAMP and value is not None:
        return write_instant(int(value))
    return field_text("", value)
