"""Mismatches: a count of all, and the details of the first.

Two checks may find the same fault; it counts once.

A feature of another entity may have read the key of one that was forgotten, such as the number of
distinct customers of a shop. Its values up to some instant can no longer be recomputed: where they
differ, they count as forgotten, and not as mismatches (`excusing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from tidemill.features.definitions import FeatureColumn

LOST: Final = "lost"
"""What a mismatch of a request without an answer is called."""
EMPTIED: Final = "it has nothing of the view: it was emptied, or is another one"
"""The cause of a mismatch of an online store that has lost all of a view."""
LISTED: Final = 20
"""How many mismatches are kept with details; all are counted."""


_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})
_excused: ContextVar[Mapping[str, int]] = ContextVar("_excused", default=_NOTHING)
_WHOLE_ROWS: Final = ("publication", "offline")


@contextmanager
def excusing(features: Mapping[str, int]) -> Iterator[None]:
    """Count differences of some features as forgotten while the block runs.

    Args:
        features: Feature column to the instant up to which its values may have read a key that was
            forgotten, in microseconds.
    """
    token = _excused.set(features)
    try:
        yield
    finally:
        _excused.reset(token)


def excused_until() -> Mapping[str, int]:
    """Return the features of which differences count as forgotten, as `excusing` takes them."""
    return _excused.get()


def _excuses(feature: str, as_of_us: int | None) -> bool:
    """Tell whether a difference of a feature as of an instant counts as forgotten."""
    until_us = _excused.get().get(feature)
    return until_us is not None and (as_of_us is None or as_of_us <= until_us)


def _is_excused(mismatch: Mismatch) -> bool:
    if not _excused.get():
        return False
    if mismatch.feature or mismatch.what not in _WHOLE_ROWS:
        return _excuses(mismatch.feature, mismatch.as_of_us)
    # A change point is there or not by the values of all features of its view.
    of_view = f"{mismatch.view}__"
    return any(
        _excuses(feature, mismatch.as_of_us)
        for feature in _excused.get()
        if feature.startswith(of_view)
    )


@dataclass(frozen=True)
class Mismatch:
    """A difference between what was served and what should have been.

    Attributes:
        what: ``value``, ``as_of``, ``release``, ``shard``, ``request``, ``lost``, ``extra``,
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
        forgotten: How many differences are no mismatches (`excusing`).
    """

    count: int = 0
    listed: list[Mismatch] = field(default_factory=list)
    forgotten: int = 0
    by_kind: Counter[tuple[str, str]] = field(default_factory=Counter)
    _known: set[tuple[str, str, str, str]] = field(default_factory=set)

    def add(self, mismatch: Mismatch, count: int = 1) -> None:
        """Count a mismatch as ``count`` values, and keep it if it is among the first."""
        place = (mismatch.what, mismatch.id, mismatch.view, mismatch.feature)
        if place in self._known:
            return
        self._known.add(place)
        if _is_excused(mismatch):
            self.forgotten += count
            return
        self.count_more(mismatch.what, count, mismatch.kind)
        if len(self.listed) < LISTED:
            self.listed.append(mismatch)

    def without_excused(
        self, wrong: Sequence[int], columns: Sequence[FeatureColumn], as_of_us: int
    ) -> list[int]:
        """Count those of some wrong values that are excused as forgotten; return the others.

        Args:
            wrong: Places of their columns.
            columns: The columns.
            as_of_us: The instant of which all of them are.
        """
        left = [place for place in wrong if not _excuses(columns[place].name, as_of_us)]
        self.forgotten += len(wrong) - len(left)
        return left

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
        self.forgotten += other.forgotten
        self.by_kind += other.by_kind
        self._known |= other._known
        self.listed = [*self.listed, *other.listed][:LISTED]
