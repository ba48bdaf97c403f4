"""Mismatches: a count of all, and the details of the first.

Two checks may find the same fault; it counts once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LISTED: Final = 20
"""How many mismatches are kept with details; all are counted."""


@dataclass(frozen=True)
class Mismatch:
    """A difference between what was served and what should have been.

    Attributes:
        what: ``value``, ``as_of``, ``release``, ``shard``, ``request``, ``missing``, ``extra``,
            ``doubled``, ``oracle``, ``store``, ``score`` or another stamp of a prediction,
            ``publication``, ``rejected``, ``offline``, ``training``, ``state``, ``savepoint``,
            ``record``, ``log`` or ``archive``; of a topic, ``delivered lost``,
            ``delivered doubled``, ``delivered changed`` or ``delivered extra``.
        id: The request's id, or the entity's key.
        view: The view; empty if the mismatch concerns all of the prediction.
        feature: The feature column.
        as_of_us: The instant.
        seen: The value found.
        expected: The correct value.
        cause: The likely cause; empty if it is unknown.
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
    """Counts mismatches, and keeps the first `LISTED`."""

    count: int = 0
    listed: list[Mismatch] = field(default_factory=list)
    _known: set[tuple[str, str, str, str]] = field(default_factory=set)

    def add(self, mismatch: Mismatch, count: int = 1) -> None:
        """Count a mismatch as ``count`` values, and keep it if it is among the first."""
        place = (mismatch.what, mismatch.id, mismatch.view, mismatch.feature)
        if place in self._known:
            return
        self._known.add(place)
        self.count += count
        if len(self.listed) < LISTED:
            self.listed.append(mismatch)

    def merge(self, other: Findings) -> None:
        """Add the findings of another."""
        self.count += other.count
        self._known |= other._known
        self.listed = [*self.listed, *other.listed][:LISTED]
