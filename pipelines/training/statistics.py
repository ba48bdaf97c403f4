"""Statistics of the model inputs in the training split, for comparison with later data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.models.preprocessing import (
    NUMERIC_KIND,
    ModelInput,
    as_float32,
    input_column,
)

_TOP_VALUES: Final = 20


def input_statistics(columns: pa.Table, inputs: Sequence[ModelInput]) -> dict[str, Any]:
    """Describe model inputs.

    Returns:
        A JSON value: rows, and per input the share of nulls; for numbers mean, std, least and
        greatest value and quartiles of the float32 values; for texts how many values and the most
        frequent ones.
    """
    described: dict[str, Any] = {}
    for wanted in inputs:
        column = input_column(columns, wanted)
        entry: dict[str, Any] = {"null_rate": column.null_count / max(len(column), 1)}
        if wanted.kind == NUMERIC_KIND:
            values = as_float32(column).astype(np.float64)
            values = values[np.isfinite(values)]
            if len(values):
                low, lower, middle, upper, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
                entry |= {"mean": float(values.mean()), "std": float(values.std())}
                entry |= {"min": float(low), "max": float(high)}
                entry |= {"quartiles": [float(lower), float(middle), float(upper)]}
        else:
            counts = pc.value_counts(column.drop_null())
            pairs = [(str(c["values"]), int(c["counts"])) for c in counts.to_pylist()]
            pairs.sort(key=lambda pair: (-pair[1], pair[0]))
            entry |= {"distinct": len(pairs), "top": [list(p) for p in pairs[:_TOP_VALUES]]}
        described[wanted.name] = entry
    return {"rows": columns.num_rows, "inputs": described}
