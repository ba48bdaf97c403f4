"""The places of outputs that were forgotten: a topic may have their messages still."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.forget.record import blank_positions, refused_positions

Positions = Mapping[str, Mapping[int, Sequence[range]]]
"""Source to partition to ranges of positions."""


@dataclass(frozen=True)
class ForgottenPlaces:
    """The places of forgotten predictions and rejected records of a generation.

    Attributes:
        request: The name of the request.
        blank: The forgotten rows of the log.
        refused: The rejected records of topics that were removed.
    """

    request: str
    blank: Positions
    refused: Positions

    @staticmethod
    def read(root: Path, generation: str, request: str) -> ForgottenPlaces:
        """Read the places of a generation from the records of a root."""
        blank, refused = blank_positions(root, generation), refused_positions(root, generation)
        return ForgottenPlaces(request, blank, refused)

    def has(self, place: Place) -> bool:
        """Tell whether what was written for a place was forgotten."""
        kind, *of = place.group
        if kind == "prediction":
            return _has(self.blank, self.request, of[0], place.position)
        _, source, partition, *_ = of
        return _has(self.refused, source, partition, place.position) or (
            source == self.request and _has(self.blank, source, partition, place.position)
        )


def forgotten_places(root: Path, request: str) -> Callable[[str, Place], bool]:
    """Return what tells whether what was written for a place of a generation was forgotten.

    Args:
        root: The root.
        request: The name of the request.
    """
    of = functools.cache(lambda generation: ForgottenPlaces.read(root, generation, request))
    return lambda generation, place: of(generation).has(place)


def _has(positions: Positions, source: str | int, partition: str | int, position: int) -> bool:
    found = positions.get(str(source), {}).get(int(partition), ())
    return any(position in one for one in found)
