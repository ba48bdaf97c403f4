"""How events enter a tile, how tiles merge, and how a merged window becomes an answer.

Every fold is a commutative monoid, bit for bit. Importing this package registers all of them.
"""

from tidemill.features.kernel.folds import (
    counts_and_extremes,
    distinct,
    finish,
    first_last,
    quantiles,
    sums,
)

__all__ = ["counts_and_extremes", "distinct", "finish", "first_last", "quantiles", "sums"]
