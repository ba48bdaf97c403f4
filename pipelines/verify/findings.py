"""Mismatches: a count of all, and the details of the first.

Two checks may find the same fault; it counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
        kind: What kind of cause it is (`pipelines.verify.diagnosis.Kind`), or empty.
        entity: The entity's key; empty if the mismatch concerns no single one.
        events: The events to blame: id, source, partition and position.
    """

    what: str
    id: str
    view: str = ""
    feature: str = ""
    as_of_us: int | None = None
    seen: str = ""
    expected: str = ""
    cause: str = ""
    kind: str = ""
    entity: str = ""
    events: tuple[str, ...] = ()


@dataclass
class Findings:
    """Counts mismatches, and keeps the first `LISTED`.

    Attributes:
        count: The number of mismatches.
        listed: The first of them.
        by_kind: The numbers of those that say what and of what kind they are.
    """

    count: int = 0
    listed: list[Mismatch] = field(default_factory=list)
    by_kind: Counter[tuple[str, str]] = field(default_factory=Counter)
    _known: set[tuple[str, str, str, str]] = field(default_factory=set)

    def add(self, mismatch: Mismatch, count: int = 1) -> None:
        """Count a mismatch as ``count`` values, and keep it if it is among the first."""
        place = (mismatch.what, mismatch.id, mismatch.view, mismatch.feature)
        if place in self._known:
            return
        self._known.add(place)
        self.count_more(mismatch.what, count, mismatch.kind)
        if len(self.listed) < LISTED:
            self.listed.append(mismatch)

    def forget_details(self, known: Iterable[tuple[str, str, str, str]] = ()) -> Findings:
        """Return empty findings which do not count again what these have noted.

        Args:
            known: What else is not counted: what, id, view and feature.
        """
        return Findings(_known=self._known | set(known))

    def count_more(self, what: str, count: int, kind: str = "") -> None:
        """Count mismatches of which no details are kept."""
        self.count += count
        self.by_kind[what, kind] += count

    def merge(self, other: Findings) -> None:
        """Add the findings of another."""
        self.count += other.count
        self.by_kind += other.by_kind
        self._known |= other._known
        self.listed = [*self.listed, *other.listed][:LISTED]
