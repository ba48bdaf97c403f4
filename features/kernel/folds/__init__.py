"""The folds (how events enter tiles, and how tiles merge) and the finishes.

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
