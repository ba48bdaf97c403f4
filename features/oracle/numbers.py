"""Exact totals as values: rounded once, null where they do not fit."""

from __future__ import annotations

from fractions import Fraction

FeatureValue = int | float | bool | None
"""A feature's value; a timestamp is an int of microseconds UTC."""


def rounded(exact: Fraction) -> float | None:
    """Return the nearest float64, ties to even; None where that is infinite; 0.0 for -0.0."""
    try:
        return float(exact) + 0.0
    except OverflowError:
        return None


def in_int64(total: int) -> int | None:
    """Return a total that fits int64; else None."""
    return total if -(2**63) <= total < 2**63 else None
