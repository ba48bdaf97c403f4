"""Types of Avro fields (Apache Avro 1.12) as columns, and their values as those columns hold them.

=================================  ==================================================
Avro                               column
=================================  ==================================================
boolean, int, long, float, double  bool, int64, int64, float32, float64
string, enum, uuid                 string
bytes, fixed                       binary
timestamp-millis, -micros, -nanos  timestamp in that unit, UTC
local-timestamp-...                timestamp in that unit, local to the source's zone
date, time-millis, time-micros     string: ``2024-02-29``, ``17:05:00.000000``
decimal                            string: its digits, ``12.50``
record, array, map                 string: its JSON; bytes in it are texts of code points 0 to 255
null and one other                 as the other; null is null
any other union                    string: a text as it is, another value as its JSON
=================================  ==================================================
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from tidemill.features.errors import ConfigurationError

Convert: TypeAlias = Callable[[Any], Any] | None
"""Makes a value of what Avro's reader gives; None where that is the value."""
_Named: TypeAlias = Mapping[str, Any]

_PLAIN: Final[Mapping[str, pa.DataType]] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "enum": pa.string(),
    "bytes": pa.binary(),
    "fixed": pa.binary(),
}
_READ_AS: Final[Mapping[str, type]] = {
    "boolean": bool,
    **dict.fromkeys(("int", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("string", "enum"), str),
    **dict.fromkeys(("bytes", "fixed"), bytes),
    "array": list,
    **dict.fromkeys(("map", "record", "error"), dict),
}
_UNITS: Final = {"millis": "ms", "micros": "us", "nanos": "ns"}
_DECIMAL_BYTES: Final = 256
_EXACT: Final = Context(prec=4 * _DECIMAL_BYTES)
_PER_SECOND: Final = {"millis": 1_000, "micros": 1_000_000}


@dataclass(frozen=True)
class Column:
    """A field of a record as a column.

    Attributes:
        name: The field's name.
        kind: The column's type.
        convert: Makes a cell of the field's value; a null is none.
    """

    name: str
    kind: pa.DataType
    convert: Convert = None

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return the column of some values.

        Raises:
            ArrowException, ArithmeticError, ValueError: A value does not fit.
        """
        convert = self.convert
        if convert is not None:
            values = [None if value is None else convert(value) for value in values]
        return pa.array(values, self.kind)


def columns_of(schema: Any, named: _Named) -> list[Column]:
    """Return the columns of a record's fields.

    Args:
        schema: The schema, as `fastavro.parse_schema` gives it.
        named: The named types, by their full names.

    Raises:
        ConfigurationError: It is not a record, or its values have no bound (`check_bounded`).
    """
    record = _definition(schema, named)
    if _kind(record) not in ("record", "error"):
        raise ConfigurationError(f"Avro schema: found {_kind(record)!r}, expected a record")
    check_bounded(record, named, ())
    return [Column(one["name"], *_column(one["type"], named)) for one in record["fields"]]


def check_bounded(schema: Any, named: _Named, inside: tuple[str, ...]) -> bool:
    """Refuse a schema by which few bytes can be values of any depth or number.

    Returns:
        Whether a value may take no bytes.

    Raises:
        ConfigurationError: A type contains itself, or an array has items without bytes.
    """
    if isinstance(schema, list):
        for one in schema:
            check_bounded(one, named, inside)
        return False
    definition = _definition(schema, named)
    match _kind(definition):
        case "record" | "error":
            name = definition["name"]
            if name in inside:
                raise ConfigurationError(
                    f"Avro schema: {name} contains itself, so the depth of a message would have no "
                    "bound; expected types that end"
                )
            fields = [
                check_bounded(one["type"], named, (*inside, name)) for one in definition["fields"]
            ]
            return all(fields)
        case "array":
            if check_bounded(definition["items"], named, inside):
                raise ConfigurationError(
                    "Avro schema: an array has items of no bytes, so a few bytes could be any "
                    "number of them; expected items that take bytes"
                )
            return False
        case "map":
            check_bounded(definition["values"], named, inside)
            return False
        case "fixed":
            return bool(definition["size"] == 0)
        case kind:
            return bool(kind == "null")


def needs_names(schema: Any, named: _Named) -> bool:
    """Tell whether a union has several records, which only their names tell apart."""
    if isinstance(schema, list):
        kinds = [_kind(_definition(one, named)) for one in schema]
        several = sum(kind in ("record", "error") for kind in kinds) > 1
        return several or any(needs_names(one, named) for one in schema)
    definition = _definition(schema, named)
    match _kind(definition):
        case "record" | "error":
            return any(needs_names(one["type"], named) for one in definition["fields"])
        case "array":
            return needs_names(definition["items"], named)
        case "map":
            return needs_names(definition["values"], named)
    return False


def without_logical_types(schema: Any) -> Any:
    """Return a schema whose values are read as they are written; the bytes mean the same."""
    if isinstance(schema, list):
        return [without_logical_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_logical_types(value) if key in ("type", "items", "values", "fields") else value
        for key, value in schema.items()
        if key != "logicalType"
    }


def _definition(schema: Any, named: _Named) -> Any:
    if isinstance(schema, str) and schema in named:
        return named[schema]
    if isinstance(schema, dict) and isinstance(schema.get("type"), (dict, list)):
        return _definition(schema["type"], named)
    return schema


def _kind(definition: Any) -> str:
    kind = definition["type"] if isinstance(definition, dict) else definition
    return kind if isinstance(kind, str) else "union"


def _column(schema: Any, named: _Named) -> tuple[pa.DataType, Convert]:
    definition = _definition(schema, named)
    if isinstance(definition, list):
        branches = [one for one in definition if _kind(_definition(one, named)) != "null"]
        if len(branches) == 1:
            return _column(branches[0], named)
        if not branches:
            return pa.null(), None
        return pa.string(), _as_text(_in_json(definition, named))
    kind = _kind(definition)
    if (logical := _logical(definition)) is not None:
        return logical
    if kind in _PLAIN:
        return _PLAIN[kind], None
    return pa.string(), _as_text(_in_json(definition, named))


def _logical(definition: Any) -> tuple[pa.DataType, Convert] | None:
    """Return the column of a logical type; None of another, which counts as the type itself."""
    if not isinstance(definition, dict):
        return None
    name, kind = definition.get("logicalType"), definition["type"]
    if not isinstance(name, str):
        return None
    words, unit = name.rpartition("-")[::2]
    if kind == "long" and words in ("timestamp", "local-timestamp") and unit in _UNITS:
        return pa.timestamp(_UNITS[unit], "UTC" if words == "timestamp" else None), None
    if kind in ("int", "long") and words == "time" and unit in _PER_SECOND:
        return pa.string(), _clock(_PER_SECOND[unit])
    if kind == "int" and name == "date":
        return pa.string(), lambda days: str(np.datetime64(days, "D"))
    if kind in ("bytes", "fixed") and name == "decimal":
        return pa.string(), _decimal(int(definition.get("scale", 0)))
    if kind == "fixed" and name == "uuid":
        return pa.string(), lambda given: str(uuid.UUID(bytes=given))
    return None


def _clock(per_second: int) -> Callable[[int], str]:
    def text(given: int) -> str:
        seconds, rest = divmod(given, per_second)
        if not 0 <= seconds < 86_400:
            raise ValueError(f"found {given}, expected a time of a day")
        micros = rest * (1_000_000 // per_second)
        minutes = seconds // 60
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds % 60:02}.{micros:06}"

    return text


def _decimal(scale: int) -> Callable[[bytes], str]:
    def text(given: bytes) -> str:
        if len(given) > _DECIMAL_BYTES:
            raise ValueError(f"found a decimal of {len(given)} bytes, expected {_DECIMAL_BYTES}")
        unscaled = Decimal(int.from_bytes(given, "big", signed=True))
        return f"{unscaled.scaleb(-scale, _EXACT):f}"

    return text


def _as_text(convert: Convert) -> Callable[[Any], str]:
    def text(value: Any) -> str:
        value = value if convert is None else convert(value)
        if isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return text


def _in_json(schema: Any, named: _Named) -> Convert:
    """Return what makes a value that JSON can write."""
    definition = _definition(schema, named)
    if isinstance(definition, list):
        return _branch_in_json(definition, named)
    kind = _kind(definition)
    if (logical := _logical(definition)) is not None:
        column, convert = logical
        if not pa.types.is_timestamp(column):
            return convert
        unit, mark = column.unit, "" if column.tz is None else "Z"
        return lambda given: f"{np.datetime64(given, unit)}{mark}"
    match kind:
        case "bytes" | "fixed":
            return lambda given: given.decode("latin-1")
        case "array":
            item = _in_json(definition["items"], named)
            return None if item is None else lambda given: [item(one) for one in given]
        case "map":
            inner = _in_json(definition["values"], named)
            if inner is None:
                return None
            return lambda given: {key: inner(one) for key, one in given.items()}
        case "record" | "error":
            fields = {one["name"]: _in_json(one["type"], named) for one in definition["fields"]}
            some = {name: convert for name, convert in fields.items() if convert is not None}
            if not some:
                return None
            return lambda given: given | {name: make(given[name]) for name, make in some.items()}
    return None


def _branch_in_json(branches: Sequence[Any], named: _Named) -> Callable[[Any], Any]:
    """A value of a union says by its type which branch it is; of several records, by its name."""
    by_type: dict[type, Convert] = {}
    by_name: dict[str, Convert] = {}
    dicts: list[str] = []
    for one in branches:
        definition = _definition(one, named)
        kind = _kind(definition)
        if kind == "null":
            continue
        convert = _in_json(definition, named)
        by_type[_READ_AS[kind]] = convert
        if _READ_AS[kind] is dict:
            dicts.append(kind)
            by_name[definition.get("name", "")] = convert
    if len(dicts) > 1 and "map" in dicts:
        raise ConfigurationError(
            "Avro schema: a union has a map and a record, whose values look alike; expected one "
            "of them"
        )

    def made(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple):
            name, value = value
            convert = by_name[name]
        else:
            convert = by_type.get(type(value))
        return value if convert is None else convert(value)

    return made
