"""The evaluation of expressions over Arrow arrays.

Semantics (SQL's, but an operation that fails gives null instead of an error):

* Arithmetic and comparisons with a null are null; ``&``, ``|``, ``~`` are Kleene's.
* ``int64`` with ``float64`` is computed in float64; ``/`` is always float64.
* A non-finite float result is null, and so is an int64 overflow; ``-0.0`` becomes ``0.0``.
* Times are UTC microseconds; the difference of two times is int64 microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features import zones
from tidemill.features.contract import DAY, HOUR, Int64Array
from tidemill.features.definitions.schema import Scalar

_ARITHMETIC: Final = {"+": pc.add, "-": pc.subtract, "*": pc.multiply, "/": pc.divide}
_COMPARISONS: Final = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def finite(array: pa.Array) -> pa.Array:
    """Make non-finite floats null and -0.0 positive."""
    if array.null_count == 0:
        values = array.to_numpy(zero_copy_only=False)
        finite = np.isfinite(values)
        if finite.all():
            return pa.array(values + 0.0)
        return pa.array(values + 0.0, mask=~finite)
    array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
    return pc.add(array, 0.0)


def _numeric_pair(left: pa.Array, right: pa.Array) -> tuple[pa.Array, pa.Array]:
    if left.type != right.type and {left.type, right.type} == {pa.int64(), pa.float64()}:
        return (
            left.cast(pa.float64(), safe=False),
            right.cast(pa.float64(), safe=False),
        )
    return left, right


def _int64_or_null(op: str, left: pa.Array, right: pa.Array) -> pa.Array:
    checked = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked}[op]
    try:
        return checked(left, right)
    except pa.ArrowInvalid:
        # Only for a batch that overflows: exact Python integers, null where too big.
        python = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[op]
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        exact = [None if a is None or b is None else python(a, b) for a, b in pairs]
        fits = [v if v is not None and -(2**63) <= v < 2**63 else None for v in exact]
        return pa.array(fits, pa.int64())


def arithmetic(op: str, left: pa.Array, right: pa.Array) -> pa.Array:
    """Compute with nulls where a side is null or the result is not representable."""
    if pa.types.is_timestamp(left.type):
        left, right = left.cast(pa.int64()), right.cast(pa.int64())
    left, right = _numeric_pair(left, right)
    if left.type == pa.int64() and op != "/":
        return _int64_or_null(op, left, right)
    left = left.cast(pa.float64(), safe=False)
    right = right.cast(pa.float64(), safe=False)
    return finite(_ARITHMETIC[op](left, right))


def compare(op: str, left: pa.Array, right: pa.Array) -> pa.Array:
    """Compare; null where a side is null."""
    left, right = _numeric_pair(left, right)
    return _COMPARISONS[op](left, right)


def fill_null(array: pa.Array, value: Scalar) -> pa.Array:
    """Put a constant in place of nulls."""
    return pc.fill_null(array, pa.scalar(value).cast(array.type, safe=False))


def is_in(array: pa.Array, values: Sequence[Scalar]) -> pa.Array:
    """Test membership; null where the array is null."""
    found = pc.is_in(array, value_set=pa.array(values, array.type))
    return pc.if_else(pc.is_null(array), pa.scalar(None, pa.bool_()), found)


def local_field(field: str, array: pa.Array, zone: str) -> pa.Array:
    """Compute the local ``hour_of_day`` or ``day_of_week`` of times from the pinned zone tables."""
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    utc = _filled(array)
    local = utc + zones.utc_offsets(utc, zone)
    # 1970-01-01 was a Thursday, day 3 of a week that starts on Monday.
    value = local // HOUR % 24 if field == "hour_of_day" else (local // DAY + 3) % 7
    return pa.array(value, pa.int64(), mask=~valid)


def _filled(array: pa.Array) -> Int64Array:
    """Return times with a valid one in place of nulls, so that no distant year is looked up."""
    if array.null_count == 0:
        return array.cast(pa.int64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    known = array.drop_null().cast(pa.int64())
    fill = known[0].as_py() if len(known) else 0
    filled: Int64Array = array.cast(pa.int64()).fill_null(fill).to_numpy(zero_copy_only=False)
    return filled
