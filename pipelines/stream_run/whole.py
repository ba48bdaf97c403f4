"""Whether everything that a run is to write is written: it is then that its job may be ended.

A job on FnApiRunner or Prism ends when its source does. One on a cluster stays, and a job that was
ended by somebody else has not said so: only what is written tells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tidemill.features.definitions import Project
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.stream_run.keeper import Keeper
from tidemill.pipelines.stream_run.segment_tail import SegmentTail


class Stopping(Protocol):
    """An input that stops at a savepoint."""

    @property
    def has_stopped(self) -> bool:
        """Whether the last segment is known."""

    @property
    def last_segment(self) -> int:
        """The number of the last segment."""


def whole_at_savepoint(
    keeper: Keeper, entrance: Stopping, delivery: Delivery
) -> Callable[[], bool]:
    """Return what tells whether the last savepoint counts, or raises why it never will.

    Args:
        keeper: Keeps the savepoints, in a thread.
        entrance: The input.
        delivery: The topics.
    """

    def is_whole() -> bool:
        if keeper.failed is not None:
            raise keeper.failed
        delivery.check()
        return entrance.has_stopped and keeper.kept.segment >= entrance.last_segment

    return is_whole


class WholeAtEnd:
    """Tells whether the last segment of a stream that ends is written.

    Args:
        stream: The folder of the stream.
        project: The project.
        segment: The number of the segment.
        requests: How many requests waited before it or come in it.
        releases: How many releases it makes.
        delivery: The topics.
    """

    def __init__(
        self,
        stream: Path,
        project: Project,
        segment: int,
        requests: int,
        releases: int,
        delivery: Delivery,
    ) -> None:
        self._tail = SegmentTail(stream, project.request, segment)
        self._requests, self._releases = requests, releases
        self._delivery = delivery

    def __call__(self) -> bool:
        """Look at what is written."""
        self._delivery.check()
        tail = self._tail
        tail.look()
        published = (
            place_of(release) in tail.published
            for release in tail.releases.values()
            if release["publications"]
        )
        # More requests than there were is an error, which `check_end` finds.
        return (
            tail.requests >= self._requests
            and len(tail.releases) >= self._releases
            and all(published)
        )
