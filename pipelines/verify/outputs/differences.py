"""Where two columns differ, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.pipelines.verify.instants import scalar_text


def differing(one: pa.Array, other: pa.Array) -> BoolArray:
    """Return where two columns of one type and length differ: bool, ``(rows,)``.

    Floats are compared by their bits: NaN equals the same NaN, and 0.0 differs from -0.0.
    """
    nulls, others = (pc.is_null(column).to_numpy(zero_copy_only=False) for column in (one, other))
    if pa.types.is_floating(one.type):
        bits, other_bits = (_bits(column) for column in (one, other))
        unequal: BoolArray = bits != other_bits
    else:
        equal = pc.equal(one, other).fill_null(True)
        unequal = ~equal.to_numpy(zero_copy_only=False)
    found: BoolArray = (nulls != others) | (unequal & ~nulls & ~others)
    return found


def _bits(column: pa.Array) -> np.ndarray[Any, np.dtype[np.signedinteger[Any]]]:
    values = column.fill_null(0.0).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values).view(f"i{values.itemsize}")


def shown(name: str, column: pa.Array, row: int) -> str:
    """Return a value of the column of a name as text for a message."""
    return scalar_text(name, column[row])
