"""Casts that change no value: a key that is not exact would be another entity's.

A float64 beyond 2**53 does not say which integer it was: 9007199254740993 becomes
9007199254740992.0. Arrow casts it to int64 without a word, since it is whole. pandas makes such a
column of integers with nulls.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import InputError

_FIRST_INEXACT = {pa.float64(): 2**53, pa.float32(): 2**24, pa.float16(): 2**11}
"""From this absolute value on, a float may stand for several integers."""


def exact_cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.Array:
    """Cast a column so that every value stays what it was.

    Args:
        column: ``(rows,)``.
        kind: The wanted type. An int64 becomes a timestamp as a count of its unit.
        name: What to call the column in an error, such as ``column 'user' of the entity rows``.

    Returns:
        The column in the wanted type, chunked as it was.

    Raises:
        InputError: A value has no equal of that type, or is a float that stands for several
            integers.
    """
    kind_found = column.type
    if pa.types.is_timestamp(kind) and pa.types.is_floating(kind_found):
        return exact_cast(exact_cast(column, pa.int64(), name), kind, name)
    if pa.types.is_boolean(kind) and not (
        pa.types.is_boolean(kind_found) or pa.types.is_null(kind_found)
    ):
        # Arrow casts every number but 0 to true.
        raise InputError(f"{name}: found {kind_found}, expected bool; compare it first (x != 0)")
    if pa.types.is_integer(kind) and pa.types.is_temporal(kind_found):
        # Arrow would count in the column's own unit.
        raise InputError(f"{name}: found {kind_found}, expected {kind}")
    bound = _FIRST_INEXACT.get(kind_found)
    if pa.types.is_integer(kind) and bound is not None:
        # Compare as float64, in which every bound is exact.
        inexact = pc.greater_equal(pc.abs(column.cast(pa.float64())), float(bound))
        row = pc.index(inexact, True).as_py()
        if row >= 0:
            raise InputError(
                f"{name}: found {column[row].as_py()!r} in row {row}, and the values are {kind}; a "
                f"{kind_found} from {bound} on may be any of several integers. Give the column as "
                f"{kind} (in pandas 'Int64', which has nulls)"
            )
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{name}: {error}") from None
