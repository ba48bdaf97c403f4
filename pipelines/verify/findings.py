"""Mismatches: what each says, how many there are, and the first of them in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LISTED: Final = 20
"""How many mismatches are kept with all they say; the others are counted."""


@dataclass(frozen=True)
class Mismatch:
    """Something that was served and is not what it should be.

    Attributes:
        what: ``value``, ``as_of``, ``release``, ``shard``, ``request``, ``missing``, ``extra``,
            ``doubled``, ``oracle`` or ``store``.
        id: The request's id, or the entity's key.
        view: The view; empty where it is about the whole prediction.
        feature: The feature column.
        as_of_us: The instant.
        seen: What was seen.
        expected: What should be.
        cause: How it came about, as far as that can be told.
    """

    what: str
    id: str
    view: str = ""
    feature: str = ""
    as_of_us: int | None = None
    seen: str = ""
    expected: str = ""
    cause: str = ""


@dataclass
class Findings:
    """Mismatches: all are counted, the first are kept."""

    count: int = 0
    listed: list[Mismatch] = field(default_factory=list)

    def add(self, mismatch: Mismatch, count: int = 1) -> None:
        """Count a mismatch, as often as there are values in it."""
        self.count += count
        if len(self.listed) < LISTED:
            self.listed.append(mismatch)

    def merge(self, other: Findings) -> None:
        """Add another's."""
        self.count += other.count
        self.listed = [*self.listed, *other.listed][:LISTED]
