"""Sets of places: which records have been written, a bit for each."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

Group: TypeAlias = tuple[str | int, ...]
"""What has positions of its own: a kind of message and what else tells its records apart."""

_BITS: Final = 16
"""Positions of a block, as a power of two: 8 KiB."""
_WITHIN: Final = (1 << _BITS) - 1


class Place(NamedTuple):
    """The place of a record.

    Attributes:
        group: What the position counts in.
        position: Its number there, 0 or more.
    """

    group: Group
    position: int


class Places:
    """A set of places. Positions of a group that are close together take a bit each."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[Group, int], bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, place: Place) -> bool:
        block = self._blocks.get((place.group, place.position >> _BITS))
        within = place.position & _WITHIN
        return block is not None and bool(block[within >> 3] & 1 << (within & 7))

    def add(self, place: Place) -> None:
        """Add a place; it may be there already."""
        if place in self:
            return
        key, within = (place.group, place.position >> _BITS), place.position & _WITHIN
        self._blocks.setdefault(key, bytearray(1 << _BITS - 3))[within >> 3] |= 1 << (within & 7)
        self._count += 1
