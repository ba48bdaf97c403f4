"""Exact totals as values: rounded once, null where they do not fit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

FeatureValue = int | float | None


def rounded(exact: Fraction) -> float | None:
    """Return the nearest float64, ties to even; None where that is infinite; 0.0 for -0.0."""
    try:
        return float(exact) + 0.0
    except OverflowError:
        return None


def in_int64(total: int) -> int | None:
    """Return a total that fits int64; else None."""
    return total if -(2**63) <= total < 2**63 else None


def as_number(value: Any) -> FeatureValue:
    """Return a value as a feature has it: a bool is an int."""
    return int(value) if isinstance(value, bool) else value
