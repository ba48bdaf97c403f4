"""Savepoints of a stream that goes on: each counts once all that comes before its mark is written.

Marks travel with the rows. A stage that a mark reaches writes its state and goes on, so the states
of a savepoint are there before some outputs from before its mark are. The *keeper* looks at what is
written, never at what runs: when the states are whole, and every release, answer and publication
from before the mark is in its file and its store, it writes the record that makes the savepoint
count. Nothing waits for it, and a run that is killed meanwhile goes on from the savepoint before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import BrokerError, FileError, SequenceError, StoreError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.forget.blank_requests import BlankRequests
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import Handoff
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.recovery.republish import frontiers_of, keeps_frontiers
from tidemill.pipelines.recovery.resume import (
    Reached,
    Start,
    joiners_at,
    keep_savepoint,
    offline_caught_up,
    offline_ends,
    offline_logs,
)
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.output_folders import join_outputs
from tidemill.pipelines.stream.state_files import missing_files, savepoint_folder
from tidemill.pipelines.stream_run.offline_joins import OfflineJoins
from tidemill.pipelines.stream_run.segment_tail import SegmentTail
from tidemill.pipelines.telemetry.running import savepoint_kept
from tidemill.pipelines.telemetry.tracing import span
from tidemill.serving.online.backends import open_database

_LOOK_SECONDS: Final = 0.05
_SLOW_SECONDS: Final = 60.0
"""After this time it is said what a savepoint waits for."""

_log = logging.getLogger(__name__)


class Marked(Protocol):
    """An input whose polls have marks."""

    def reached(self, polls: int) -> Reached:
        """Return what the states after a poll contain; its rows are in the log then."""


class _Incomplete(Exception):
    """Something from before the mark of a savepoint is not written yet; the text says what."""


class _Whole(NamedTuple):
    """The states of a savepoint and the releases before it, all of them: they do not change.

    Attributes:
        joiners: The joining stage.
        reached: What the states contain.
        releases: The evidence of the releases since the savepoint before.
    """

    joiners: Joiners
    reached: Reached
    releases: Sequence[Mapping[str, Any]]


@dataclass
class Keeper:
    """Keeps the savepoints of a run, one after the other.

    Attributes:
        config: The configuration, with the folders of the stream.
        start: The start of the run.
        fills: The fills that it publishes to.
        entrance: Its input.
        delivery: Its topics.
        engine: The name of the engine, for errors.
        kept: The record of the last savepoint that counts, or of the states it began with.
        waiting: How many requests wait in those states.
        failed: Why no more savepoints are kept; None while all is well.
    """

    config: Configuration
    start: Start
    fills: RunFills
    entrance: Marked
    delivery: Delivery
    engine: str
    kept: Handoff = field(init=False)
    waiting: int = field(init=False)
    failed: BaseException | None = None

    def __post_init__(self) -> None:
        self.kept = self.start.handoff
        self.waiting = joiners_at(self.config, self.start.folder).requests_pending
        self._stream = self.start.current.stream_folder
        self._outputs = self._outputs_of(self.kept.segment + 1)
        of_log = self.config.root, self.start.current, self.config.project
        self._blank = BlankRequests.read(*of_log)
        self._found: _Whole | None = None
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._joins: OfflineJoins | None = None

    def _outputs_of(self, segment: int) -> SegmentTail:
        return SegmentTail(self._stream, self.config.project.request, segment)

    @contextmanager
    def keeping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Keep savepoints while the block runs.

        Args:
            stop: Is called if none can be kept any more, for the stream to stop.
        """

        def watch() -> None:
            try:
                self._watch()
            except BaseException as error:  # noqa: BLE001 - raised by `finish`
                self.failed = error
                _log.info("no savepoint is kept any more", exc_info=error)
                stop()

        logs = offline_logs(self.config, self.start)
        keys = {view.name: view.entity.join_key for view in self.config.project.views}
        self._joins = OfflineJoins(logs, keys)
        self._watcher = threading.Thread(target=watch, name="savepoints", daemon=True)
        self._watcher.start()
        try:
            yield
        finally:
            self._stop_watching()
            self._joins.close()

    def _stop_watching(self) -> None:
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()

    def may_mark(self, segment: int) -> bool:
        """Tell whether a segment may end here: the one before it is kept.

        Where the topics end is noted then, for what comes behind the mark is not there yet.
        """
        if self.kept.segment != segment - 1:
            return False
        try:
            self.delivery.note(segment)
        except BrokerError as error:
            _log.info("no savepoint now, since where the topics end is not known: %s", error)
            return False
        return True

    def _watch(self) -> None:
        since_s, said = time.monotonic(), self.kept.segment
        while not self._ended.wait(_LOOK_SECONDS):
            self.delivery.check()
            begun = self._folder.exists()
            try:
                if begun:
                    self._keep()
                since_s = time.monotonic()
            except (_Incomplete, StoreError, BrokerError, FileError) as waits:
                # What is away or full now may not be soon; else its own writer ends the stream.
                if time.monotonic() - since_s > _SLOW_SECONDS and said != self._segment:
                    said = self._segment
                    _log.warning("savepoint %d waits: %s", self._segment, waits)

    def finish(self, segment: int) -> None:
        """Keep the savepoints that are left, once the pipeline has ended.

        Args:
            segment: The number of the run's last segment.

        Raises:
            SequenceError: Something from before the last savepoint was lost.
        """
        self._stop_watching()
        if self.failed is not None:
            raise self.failed
        while self.kept.segment < segment:
            try:
                self._keep()
            except _Incomplete as lost:
                raise SequenceError(
                    f"the stream has ended, and {lost}: the engine {self.engine!r} lost or doubled "
                    "batches"
                ) from lost

    @property
    def _segment(self) -> int:
        """The segment at whose end the next savepoint is."""
        return self.kept.segment + 1

    @property
    def _folder(self) -> Path:
        return savepoint_folder(self._stream, self._segment)

    def _keep(self) -> None:
        """Let the next savepoint count, if all from before its mark is written.

        Raises:
            _Incomplete: Something is not.
        """
        config, request = self.config, self.config.project.request.name
        self._outputs.look()
        self._found = joiners, reached, releases = self._found or self._whole()
        before, after = self.kept.positions[request], reached.positions[request]
        came = sum(after) - sum(before) - self._blank.between(before, after)
        expected = self.waiting + came - joiners.requests_pending
        if (answered := self._outputs.requests) != expected:
            raise _Incomplete(f"of {expected} requests, {answered} are answered or rejected")
        self._check_stores(releases)
        self.delivery.keep(self._segment)
        with span("savepoint", number=self._segment):
            # First, so that what counts is on the disk.
            join_outputs(self._stream, self._segment)
            self.kept = keep_savepoint(config, self.start, self.kept, joiners, reached, releases)
        self.waiting, self._found = joiners.requests_pending, None
        savepoint_kept(self.kept.segment, self.kept.as_of_us)
        if self._joins is not None:
            self._joins.note(self.kept.segment)
        self._outputs = self._outputs_of(self.kept.segment + 1)
        offline_caught_up(config, self.start)

    def _whole(self) -> _Whole:
        """Return the states of the next savepoint and the releases before it, if all are there."""
        config, folder = self.config, self._folder
        joiners = config.stream.joiners
        if missing := missing_files(folder, config.project, config.shards, joiners):
            raise _Incomplete(
                f"the states at savepoint {self._segment} are not all there "
                f"({', '.join(missing[:3])}{f' and {len(missing) - 3} more' * (len(missing) > 3)} "
                "are missing)"
            )
        found = joiners_at(config, folder)
        polls = found.polls()
        releases = self._releases(polls)
        self._check_publications(releases)
        reached = self.entrance.reached(polls)
        # Without a poll since the savepoint before, they are of that one.
        refused = reached.refused if polls > self.kept.polls else frozenset[str]()
        if unwritten := refused - self._outputs.refused:
            raise _Incomplete(f"the rejected records {min(unwritten)} are not written")
        return _Whole(found, reached, releases)

    def _releases(self, polls: int) -> Sequence[Mapping[str, Any]]:
        """Return the evidence of all releases of the segment."""
        shards = len(self.config.project.views) * self.config.shards
        expected, found = shards * (polls - self.kept.polls), self._outputs.releases
        if len(found) != expected:
            raise _Incomplete(f"of {expected} releases, {len(found)} are recorded")
        return [found[place] for place in sorted(found)]

    def _check_publications(self, releases: Sequence[Mapping[str, Any]]) -> None:
        for release in releases:
            if release["publications"] and place_of(release) not in self._outputs.published:
                raise _Incomplete(
                    f"the publications of release {release['number']} of view "
                    f"{release['view']!r}, shard {release['shard']}, are not logged"
                )

    def _check_stores(self, releases: Sequence[Mapping[str, Any]]) -> None:
        reached = {(one["view"], one["shard"]): int(one["frontier_us"]) for one in releases}
        place = self.config.online_store
        if keeps_frontiers(place):
            database = open_database(place)
            try:
                shown = frontiers_of(database, self.fills)
            finally:
                database.close()
            _compare(reached, shown, "the online store")
        if (ends := offline_ends(self.config, self.start)) is not None:
            _compare(reached, ends, "the offline log")


def _compare(
    reached: Mapping[tuple[str, int], int], shown: Mapping[tuple[str, int], int], what: str
) -> None:
    for (view, shard), frontier_us in reached.items():
        if shown.get((view, shard), TIME_MIN) < frontier_us:
            raise _Incomplete(f"{what} is behind the releases of view {view!r}, shard {shard}")
