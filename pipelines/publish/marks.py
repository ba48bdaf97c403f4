"""The marks of releases, as the online store checks them (`serving.online.fills`)."""

from __future__ import annotations

import hashlib

from tidemill.features.definitions import FeatureView
from tidemill.serving.online.fills import MARK_BYTES


def release_mark(view: FeatureView, shard: int, origin: str, frontier_us: int) -> bytes:
    """Return the mark of the state of a shard at a frontier.

    Every release that publishes advances the frontier (docs/adr/0015-frontier-of-a-release.md), so
    among the states that follow from one origin, the frontier identifies the state.

    Args:
        view: The view.
        shard: The shard.
        origin: The hash of the state that the run began with: another history has another one.
        frontier_us: The frontier, microseconds UTC.
    """
    text = f"{view.hash} {shard} {origin} {frontier_us}"
    return hashlib.sha256(text.encode()).digest()[:MARK_BYTES]
