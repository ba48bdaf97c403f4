"""Types of protobuf fields as columns, and their values as those columns hold them.

==================================  =======================================================
protobuf                            column
==================================  =======================================================
bool, float, double                 bool, float32, float64
int32, int64, sint.., sfixed..      int64
uint32, uint64, fixed..             uint64
string, bytes                       string, binary
enum                                string: the value's name, or its number if it has no name
google.protobuf.Timestamp           timestamp in microseconds, UTC
google.protobuf.Int64Value, ...     as the value in it; null without it
any other message, repeated, map    string: its JSON; a duration such as ``1.5s``
==================================  =======================================================

A field with presence (proto2, ``optional``, messages, members of a oneof) is null where a message
does not set it. One without presence has its default, since protobuf does not write it.

In JSON numbers are numbers, enums are names, bytes are base64, times are texts, and a message has
all of its fields.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from google.protobuf import json_format

from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, SECOND
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.text_values import WHOLE_MICROSECONDS
from tidemill.pipelines.io.payloads.metadata import Fault

_TIMESTAMP: Final = "google.protobuf.Timestamp"
_DURATION: Final = "google.protobuf.Duration"
_FREE: Final = tuple(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))
_WRAPPERS: Final = tuple(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
# FieldDescriptor.type: the numbers of descriptor.proto's FieldDescriptorProto.Type.
_DOUBLE, _FLOAT, _BOOL, _STRING, _GROUP, _MESSAGE, _BYTES, _ENUM = 1, 2, 8, 9, 10, 11, 12, 14
_UNSIGNED: Final = (4, 6, 7, 13)
_KINDS: Final = {
    _DOUBLE: pa.float64(),
    _FLOAT: pa.float32(),
    _BOOL: pa.bool_(),
    _STRING: pa.string(),
    _BYTES: pa.binary(),
    _ENUM: pa.string(),
    **dict.fromkeys(_UNSIGNED, pa.uint64()),
}


@dataclass(frozen=True)
class Column:
    """A field of a message as a column.

    Attributes:
        name: The field's name.
        kind: The column's type.
        value: Returns the value of a message that is set.
        has_presence: Whether a message can leave the field out.
    """

    name: str
    kind: pa.DataType
    value: Callable[[Any], Any] | None
    has_presence: bool

    def array(self, messages: Sequence[Any]) -> pa.Array:
        """Return the column of some messages.

        Raises:
            ArrowException, TypeError, ValueError: A value cannot be in it.
        """
        name, convert = self.name, self.value
        if self.has_presence:
            values = [getattr(one, name) if one.HasField(name) else None for one in messages]
        else:
            values = [getattr(one, name) for one in messages]
        if convert is not None:
            values = [None if value is None else convert(value) for value in values]
        return pa.array(values, self.kind)

    def fault(self, message: Any) -> Fault | None:
        """Say why a message's text or time is none; None if it is, or the field is another."""
        if isinstance(getattr(message, self.name), bytes) and pa.types.is_string(self.kind):
            found = repr(getattr(message, self.name))[:100]
            return Reason.INVALID_UTF8, f"column {self.name!r}: found {found}, expected UTF-8"
        if not pa.types.is_timestamp(self.kind) or not message.HasField(self.name):
            return None
        time = getattr(message, self.name)
        micros = time.seconds * SECOND + time.nanos // 1000
        if not EARLIEST_EVENT <= micros <= LATEST_EVENT or not 0 <= time.nanos < 10**9:
            reason, expected = Reason.TIME_OUT_OF_RANGE, "a time in the years 1 to 9999, UTC"
        elif time.nanos % 1000:
            reason, expected = Reason.WRONG_TYPE, WHOLE_MICROSECONDS
        else:
            return None
        return reason, f"column {self.name!r}: found {_time_text(time)}, expected {expected}"


def columns_of(descriptor: Any) -> list[Column]:
    """Return the columns of a message type's fields."""
    return [_column(field) for field in descriptor.fields]


def _column(field: Any) -> Column:
    name, kind = field.name, field.type
    if field.is_repeated:
        return Column(name, pa.string(), _as_text(_json_of(field)), False)
    if kind in (_MESSAGE, _GROUP):
        inner = field.message_type
        if inner.full_name == _TIMESTAMP:
            return Column(name, pa.timestamp("us", "UTC"), _micros, True)
        if inner.full_name in _WRAPPERS:
            value = inner.fields_by_name["value"]
            return Column(name, _KINDS.get(value.type, pa.int64()), lambda one: one.value, True)
        return Column(name, pa.string(), _as_text(_json_of(field)), True)
    convert = _enum_name(field.enum_type) if kind == _ENUM else None
    return Column(name, _KINDS.get(kind, pa.int64()), convert, field.has_presence)


def _micros(time: Any) -> int:
    if time.nanos % 1000 or not 0 <= time.nanos < 10**9:
        raise ValueError("found a part of a microsecond")
    micros: int = time.seconds * SECOND + time.nanos // 1000
    if not EARLIEST_EVENT <= micros <= LATEST_EVENT:
        raise ValueError("found a time outside the years 1 to 9999")
    return micros


def _enum_name(enum: Any) -> Callable[[int], str]:
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda number: names.get(number) or str(number)


def _as_text(in_json: Callable[[Any], Any]) -> Callable[[Any], str]:
    def text(given: Any) -> str:
        value = in_json(given)
        if isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return text


def _json_of(field: Any) -> Callable[[Any], Any]:
    """Return what makes a field's value one that JSON can write."""
    if not field.is_repeated:
        return _one_in_json(field)
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        value = _one_in_json(inner.fields_by_name["value"])
        return lambda given: {_key(key): value(given[key]) for key in sorted(given)}
    one = _one_in_json(field)
    return lambda given: [one(value) for value in given]


def _key(key: Any) -> str:
    return ("true" if key else "false") if isinstance(key, bool) else str(key)


def _one_in_json(field: Any) -> Callable[[Any], Any]:
    if field.type in (_MESSAGE, _GROUP):
        return message_in_json
    if field.type == _ENUM:
        return _enum_name(field.enum_type)
    if field.type == _BYTES:
        return lambda given: base64.b64encode(given).decode()
    return lambda given: given


def message_in_json(message: Any) -> Any:
    """Return a message as a value that JSON can write."""
    name = message.DESCRIPTOR.full_name
    if name == _TIMESTAMP:
        return _time_text(message)
    if name == _DURATION:
        nanos = message.seconds * 10**9 + message.nanos
        seconds, rest = divmod(abs(nanos), 10**9)
        decimals = f".{rest:09}".rstrip("0").rstrip(".")
        return f"{'-' if nanos < 0 else ''}{seconds}{decimals}s"
    if name in _WRAPPERS:
        return _one_in_json(message.DESCRIPTOR.fields_by_name["value"])(message.value)
    if name in _FREE:
        return json_format.MessageToDict(message)
    return {
        field: make(getattr(message, field)) if not optional or message.HasField(field) else None
        for field, optional, make in _fields_in_json(message.DESCRIPTOR)
    }


@functools.lru_cache(maxsize=256)
def _fields_in_json(descriptor: Any) -> list[tuple[str, bool, Callable[[Any], Any]]]:
    return [(field.name, field.has_presence, _json_of(field)) for field in descriptor.fields]


def _time_text(time: Any) -> str:
    if not EARLIEST_EVENT // SECOND <= time.seconds <= LATEST_EVENT // SECOND:
        return f"{time.seconds}.{time.nanos:09} seconds since 1970"
    decimals = f"{time.nanos:09}"
    decimals = decimals[:6] if decimals.endswith("000") else decimals
    return f"{np.datetime64(time.seconds, 's')}.{decimals}Z"
