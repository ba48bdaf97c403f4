"""The columns of a row as the first rows of its source had them, and what has come to them since.

A digest of a row, or of a block of a log, is one of its *base columns*, followed by what is
*added*: the values of columns that the source has got later, and of widened columns the values that
the narrower dtype does not hold. The promise: a row that has nothing of that has the digest that it
had before the source changed, and rows that differ in a value differ in base columns or in what is
added.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import Origin, Schema
from tidemill.features.kernel import hashing

_EXACT: Final = 2.0**53
"""Every whole number up to here, in either direction, is an int64 and a float64."""


class Added(NamedTuple):
    """Values that are not in the base columns.

    Attributes:
        name: The column.
        kind: Its dtype when it was added; or of a column that has become wider since, that dtype
            and the former one: the values are then those that the former one cannot hold.
        values: The values, ``(rows,)``; null where a row has none.
    """

    name: str
    kind: str
    values: pa.Array


class BaseColumns(NamedTuple):
    """Rows in two parts.

    Attributes:
        columns: The base columns by name, in their order, ``(rows,)`` each.
        added: What else there is, by name; columns without a value are left out.
    """

    columns: dict[str, pa.Array]
    added: list[Added]


def base_columns(
    schema: Schema, origin: Origin, rows: pa.RecordBatch, names: Collection[str]
) -> BaseColumns:
    """Divide rows into base columns and what is added.

    Args:
        schema: The declared columns of the rows.
        origin: How they came about.
        rows: The rows, ``(rows,)``, with the declared columns.
        names: The columns to look at.
    """
    columns: dict[str, pa.Array] = {}
    added: list[Added] = []
    first = {**origin.added, **origin.base}
    for name, dtype in schema.items():
        if name not in names:
            continue
        column, before = rows.column(name), first.get(name, dtype)
        if before != dtype:
            column, wide = _narrowed(column)
            if wide is not None:
                added.append(Added(name, f"{dtype} beyond {before}", wide))
        if name in origin.base:
            columns[name] = column
        elif column.null_count < len(column):
            added.append(Added(name, before, column))
    return BaseColumns(columns, sorted(added, key=lambda one: one[:2]))


def _narrowed(column: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Return floats as integers, 0 for those that are none, and these; None if there are none."""
    valid = hashing.validity(column)
    values = hashing.bits(column).view(np.float64)
    is_whole = (np.abs(values) <= _EXACT) & (np.floor(values) == values)
    whole = pa.array(np.where(is_whole, values, 0).astype(np.int64), mask=~valid)
    if is_whole[valid].all():
        return whole, None
    return whole, pa.array(values, mask=is_whole | ~valid)
