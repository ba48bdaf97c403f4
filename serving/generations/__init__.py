"""Generations: which folders below a root are meant, switched to others in one step."""

from tidemill.serving.generations.current import (
    CURRENT,
    GENERATIONS,
    Current,
    find_current,
    read_current,
    write_current,
)

__all__ = [
    "CURRENT",
    "GENERATIONS",
    "Current",
    "find_current",
    "read_current",
    "write_current",
]
