"""Rows to JSON objects, column by column.

The promises:

* Every object is standard JSON (RFC 8259), in the order of the columns, with a null as ``null``.
* A number is written with the fewest digits that give the same float64 again, so its bits survive;
  a float always has a point or an exponent (``-0.0`` stays itself), and a float32 is written as the
  float64 that equals it. A whole number is written with all its digits.
* JSON has no NaN and no infinity: they are the texts ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
* A timestamp is ISO 8601 in UTC, as `features.contract.write_instant` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from json.encoder import encode_basestring
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_ESCAPED: Final = r'["\\\x00-\x1f]'
"""What JSON cannot have in a text as it is."""
_FEW: Final = 64
"""A call of Arrow takes as long as writing so many values one by one, in magnitude."""


def json_objects(rows: pa.RecordBatch) -> pa.Array:
    """Return each row as a JSON object.

    Args:
        rows: Columns of texts, numbers, truth values and timestamps, ``(rows,)``.

    Returns:
        Texts, ``(rows,)``.

    Raises:
        TypeError: A column is of another type.
    """
    if not rows.num_columns:
        return pa.repeat(pa.scalar("{}", pa.string()), rows.num_rows)
    if rows.num_rows <= _FEW:
        return pa.array(_few_objects(rows), pa.string())
    parts: list[pa.Array | pa.Scalar] = []
    for index, name in enumerate(rows.schema.names):
        parts.append(pa.scalar(_opening(index, name), pa.string()))
        parts.append(pc.fill_null(_values(name, rows.column(index)), "null"))
    parts.append(pa.scalar("}", pa.string()))
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.string()))


def _opening(index: int, name: str) -> str:
    return ("," if index else "{") + json.dumps(name, ensure_ascii=False) + ":"


def _few_objects(rows: pa.RecordBatch) -> list[str]:
    """Return the objects of `json_objects` without its some ten calls of Arrow a column."""
    floats = _few_floats([column for column in rows.columns if pa.types.is_floating(column.type)])
    columns = []
    for index, (name, column) in enumerate(zip(rows.schema.names, rows.columns, strict=True)):
        opening = _opening(index, name)
        is_float = pa.types.is_floating(column.type)
        values = next(floats) if is_float else _few_values(name, column)
        columns.append([opening + value for value in values])
    return ["".join(values) + "}" for values in zip(*columns, strict=True)]


def _few_floats(columns: Sequence[pa.Array]) -> Iterator[list[str]]:
    """Yield the values of columns of floats, all of which Arrow writes at once."""
    if not columns:
        return
    joined = pa.concat_arrays([column.cast(pa.float64()) for column in columns])
    numbers = zip(joined.to_pylist(), joined.cast(pa.string()).to_pylist(), strict=True)
    written = ["null" if value is None else _float(value, text) for value, text in numbers]
    rows = len(columns[0])
    for index in range(len(columns)):
        yield written[index * rows : (index + 1) * rows]


def _few_values(name: str, column: pa.Array) -> list[str]:
    kind = column.type
    write: Callable[[Any], str]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        write = encode_basestring
    elif pa.types.is_timestamp(kind):
        column, write = _plain_instants(column).cast(pa.string()), _instant
    elif pa.types.is_integer(kind):
        write = str
    elif pa.types.is_null(kind) or pa.types.is_boolean(kind):
        write = json.dumps
    else:
        raise _formless(name, kind)
    return ["null" if value is None else write(value) for value in column.to_pylist()]


def _instant(text: str) -> str:
    """Write a timestamp that Arrow has written, as in `_instants`."""
    return f'"{text.replace(" ", "T", 1).removesuffix(".000000")}Z"'


def _float(value: float, text: str) -> str:
    """Write a number; its digits are those of Arrow, as in `_floats`."""
    if math.isfinite(value):
        return text if any(sign in text for sign in ".eE") else text + ".0"
    if math.isnan(value):
        return '"NaN"'
    return '"Infinity"' if value > 0 else '"-Infinity"'


def _formless(name: str, kind: pa.DataType) -> TypeError:
    return TypeError(f"column {name!r} is {kind}, which has no form in JSON here")


def _values(name: str, column: pa.Array) -> pa.Array:
    """Return each value of a column as JSON; a null stays null."""
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        return _floats(column.cast(pa.float64()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(column.cast(pa.string()))
    if pa.types.is_timestamp(kind):
        return _instants(column)
    raise _formless(name, kind)


def _floats(column: pa.Array) -> pa.Array:
    texts = column.cast(pa.string())
    whole = pc.invert(pc.match_substring_regex(texts, "[.eE]"))
    texts = pc.if_else(whole, _joined(texts, ".0"), texts)
    if pc.all(pc.is_finite(column)).as_py() is not False:
        return texts
    infinite = pc.if_else(pc.greater(column, 0.0), '"Infinity"', '"-Infinity"')
    named = pc.if_else(pc.is_nan(column), '"NaN"', infinite)
    return pc.if_else(pc.is_finite(column), texts, named)


def _texts(column: pa.Array) -> pa.Array:
    quoted = _joined('"', column, '"')
    escaped = pc.match_substring_regex(column, _ESCAPED)
    if not pc.any(escaped).as_py():
        return quoted
    written = [json.dumps(text, ensure_ascii=False) for text in column.filter(escaped).to_pylist()]
    return pc.replace_with_mask(quoted, pc.fill_null(escaped, False), pa.array(written))


def _instants(column: pa.Array) -> pa.Array:
    """Return timestamps, with decimals only if needed."""
    texts = _plain_instants(column).cast(pa.string())
    texts = pc.replace_substring(texts, " ", "T", max_replacements=1)
    texts = pc.replace_substring(texts, ".000000", "")
    return _joined('"', texts, 'Z"')


def _plain_instants(column: pa.Array) -> pa.Array:
    """Return timestamps in microseconds UTC, without their zone."""
    if column.type.unit != "us":
        column = column.cast(pa.timestamp("us", column.type.tz))
    return column.cast(pa.timestamp("us"))


def _joined(*parts: pa.Array | str) -> pa.Array:
    """Join texts; a null stays null."""
    scalars = [pa.scalar(one, pa.string()) if isinstance(one, str) else one for one in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar("", pa.string()))
