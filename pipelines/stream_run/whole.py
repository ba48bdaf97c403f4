"""Whether everything that a run is to write is written: it is then that its job may be ended.

A job on FnApiRunner or Prism ends when its source does. One on a cluster stays, and a job that was
ended by somebody else has not said so: only what is written tells.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tidemill.features.definitions import Project
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.engines.choosing import EngineChoice
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.stream_run.keeper import Keeper
from tidemill.pipelines.stream_run.live_input import LiveInput
from tidemill.pipelines.stream_run.replay_input import ReplayInput
from tidemill.pipelines.stream_run.segment_tail import SegmentTail


def kept_beside(
    keeper: Keeper, entrance: ReplayInput | LiveInput, choice: EngineChoice
) -> AbstractContextManager[None]:
    """Return the block in which savepoints are kept beside the job, where somebody waits for them.

    A replay waits for one only if its job does not end by itself.

    Args:
        keeper: Keeps the savepoints.
        entrance: The input.
        choice: The engine.
    """
    if entrance.stop is not None:
        return keeper.keeping(entrance.stop.set)
    if choice.has_workers and not entrance.ends:
        return keeper.keeping(lambda: None)
    return nullcontext()


def whole(keeper: Keeper, entrance: ReplayInput | LiveInput, shards: int) -> Callable[[], bool]:
    """Return what tells whether all outputs of a run are written.

    Args:
        keeper: Keeps the savepoints, in a thread, if the run stops at one.
        entrance: The input.
        shards: How many (view, shard) there are.
    """
    delivery, project = keeper.delivery, keeper.config.project
    if isinstance(entrance, LiveInput) or not entrance.ends:
        return _whole_at_savepoint(keeper, entrance, delivery)
    came = entrance.taken().rows_of(project.request.name)
    releases = shards * (entrance.last_poll - keeper.kept.polls)
    stream, requests = keeper.start.current.stream_folder, keeper.waiting + came
    return _WholeAtEnd(stream, project, entrance.segment, requests, releases, delivery)


def _whole_at_savepoint(
    keeper: Keeper, entrance: ReplayInput | LiveInput, delivery: Delivery
) -> Callable[[], bool]:
    """Return what tells whether the last savepoint counts, or raises why it never will."""

    def is_whole() -> bool:
        if keeper.failed is not None:
            raise keeper.failed
        delivery.check()
        return entrance.has_stopped and keeper.kept.segment >= entrance.last_segment

    return is_whole


class _WholeAtEnd:
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
