"""Which bundle scores a request: a function of its place in the log, and of what was decided.

A stream records, before the first row that it concerns is sent, which bundle scores the requests
from some positions on (`StreamRun.models`). A request at position ``q`` of partition ``p`` is
scored by the last bundle whose position of ``p`` is at most ``q``; by the first one, if none is.
Whoever repeats a part of a stream gives each request the bundle that it had, whatever is live now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tidemill.features.contract import Int64Array


class ScoredBy(NamedTuple):
    """A bundle, and the requests from which on it scores.

    Attributes:
        bundle: Its folder.
        since: The position of each partition of the request; 0 of those that are not there.
    """

    bundle: Path
    since: tuple[int, ...]


class Recorded(Protocol):
    """Where a stream records which bundles score."""

    def changed(self, since: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return what tells the present record from others; None if it is what it was."""

    def read(self) -> tuple[ScoredBy, ...]:
        """Return the bundles of now."""


def decision_of(
    since: Sequence[Sequence[int]], partitions: Int64Array, positions: Int64Array
) -> Int64Array:
    """Return the number of the decision that counts for each request, int64 ``(rows,)``.

    Args:
        since: Of each decision, in their order, the position of each partition that it counts from.
        partitions: The partition of each request, int64 ``(rows,)``.
        positions: Its position, int64 ``(rows,)``.
    """
    found: Int64Array = np.zeros(len(positions), np.int64)
    for number in range(1, len(since)):
        known = np.asarray(since[number], np.int64)
        if len(partitions) and (lacking := int(partitions.max()) + 1 - len(known)) > 0:
            known = np.concatenate([known, np.zeros(lacking, np.int64)])
        found[positions >= known[partitions]] = number
    return found


def with_decision(
    models: Sequence[Mapping[str, Any]] | None,
    bundle: str,
    since: Sequence[int],
    *,
    has_scored: bool,
) -> list[Mapping[str, Any]]:
    """Return the decisions of a stream with that of a run that begins.

    Args:
        models: Those that it has recorded (`StreamRun.models`).
        bundle: The bundle that scores from now on.
        since: The position of each partition of the request from which on no row was sent yet.
        has_scored: Whether the stream has predictions. Where it has, and no decisions, a version of
            Tidemill has begun it that recorded none: then its predictions say what scored them.
    """
    made = list(models or [])
    if not made and has_scored:
        made.append({"bundle": None, "positions": [0] * len(since)})
    if made and made[-1]["bundle"] == bundle:
        return made
    return [*made, {"bundle": bundle, "positions": list(since)}]
