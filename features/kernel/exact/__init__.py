"""Exact sums: accumulators over multi-word integers, and the one rounding at the end."""
