"""Follow: the poll log as an unbounded source, poll by poll as they are written down.

A live reader (`pipelines.io.live.live_reader`) appends polls to the log; this source sends each of
them once, in order, and those that a restriction has not sent yet again after a recovery. A poll
log on a disk that reader and source share is all that joins them, so a reader that is stopped, or
one that is restarted, loses and doubles nothing.

A poll may have the mark of a savepoint, behind which the stream goes on. It stops after a poll that
``stop.json`` names: the source then sends another mark, and ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.definitions import Project
from tidemill.features.errors import TidemillError
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.log import Log, declared_columns
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.io.poll_source import AHEAD_POLLS, SendPolls, sent_polls
from tidemill.serving.files.records import RecordFormat, read_record, write_record

_STOP: Final = RecordFormat(
    name="tidemill-live-stop",
    version=1,
    fields=frozenset({"number", "epoch"}),
    remedy="remove it and run `tidemill stream --resume`",
)


def stop_after(path: Path, number: int, epoch: int = 0) -> None:
    """Let the source stop after a poll of the poll log.

    Args:
        path: The file.
        number: The number of the poll.
        epoch: The epoch after it, in the poll log.
    """
    write_record(path, _STOP, {"number": number, "epoch": epoch}, durable=True)


@dataclass(frozen=True)
class FollowOptions:
    """What is followed.

    Attributes:
        project: The project.
        build: The folder of the build.
        live: The folder of the live log.
        as_of_us: The first instant at which polls to send were received.
        start: The last poll before the first that is sent, by the stream's number.
        logged: The number that the poll log gives that poll.
        epoch: The epoch, in the poll log, of the first poll that is sent from there.
        partitions: The partitions of a poll, in the order of its parts: the source's name, and the
            partition of its log.
        stop: The file that `stop_after` writes.
        taken: Returns how far the operators are in this process, by the stream's number; None
            sends whatever there is.
        attempt: The job's attempt, if the source is to stay when it has sent all; else it stops.
    """

    project: Project
    build: Path
    live: Path
    as_of_us: int
    start: Cut
    logged: int
    epoch: int
    partitions: tuple[tuple[str, int], ...]
    stop: Path
    taken: Callable[[], int] | None = None
    attempt: Attempt | None = None


class LoggedPolls:
    """The polls of a poll log, and what comes after the last one.

    Args:
        options: What is followed.
    """

    def __init__(self, options: FollowOptions) -> None:
        self._options = options
        self._live = LiveLog(options.live, options.project)
        # What is sealed from now on has been sent before.
        self._sealed_until = self._live.sealed().number
        self._sealed: LivePolls | None = None
        self._following: Iterator[LoggedPoll | None] | None = None
        self._at = -1

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another and its rejected records, if it may be sent now.

        Raises:
            TidemillError: The log cannot be read.
        """
        options = self._options
        taken = options.taken
        if taken is not None and at.number >= max(taken(), options.start.number) + AHEAD_POLLS:
            return None
        after = at.number + options.logged - options.start.number
        if after < self._sealed_until:
            return self._next_sealed(at)
        if self._following is None or self._at != after:
            self._following, self._at = self._live.polls.follow(after), after
        try:
            logged = next(self._following)
        except TidemillError:
            self._following = None  # a generator that has raised is at its end
            raise
        if logged is None:
            return None
        self._at = logged.number
        poll = logged.sent()
        poll = replace(poll, number=at.number + 1, epoch=poll.epoch - options.epoch)
        return poll, [] if logged.rejected is None else [logged.rejected]

    def _next_sealed(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another, if it is sealed, and its rejected records."""
        options = self._options
        if self._sealed is None:
            self._sealed = LivePolls(
                options.project,
                Log(options.build, options.live, declared_columns(options.project)),
                self._live,
                start_us=options.as_of_us,
                stop_us=TIME_MAX,
                polls=options.start.number,
            )
        sealed = self._sealed.next_poll(at, TIME_MAX, time.time_ns() // 1_000)
        return None if sealed is None else (sealed[0], self._sealed.rejected(at.number + 1))

    def last(self, at: Cut) -> Poll | None:
        """Return the mark after the last poll, if that is the one after which to stop."""
        options = self._options
        if not options.stop.exists():
            return None
        found = read_record(options.stop, _STOP)
        if at.number + options.logged - options.start.number < found["number"]:
            return None
        places = zip(options.partitions, at.positions, strict=True)
        parts = tuple(PollPart(*place, end, end, TIME_MIN, None) for place, end in places)
        epoch = found["epoch"] - options.epoch
        return Poll(at.number, time.time_ns() // 1_000, parts, is_last=True, epoch=epoch)


class _Follow(SendPolls):
    """Sends the polls of a poll log."""

    def __init__(self, options: FollowOptions) -> None:
        self._options = options

    def setup(self) -> None:
        attempt = self._options.attempt
        self.polls = LoggedPolls(self._options)
        self.watch = None if attempt is None else attempt.watch()


@dataclass(eq=False)
class Follow(beam.PTransform):
    """The polls of a poll log as an unbounded collection of polls.

    Output, by name: ``polls``, and with the tag `REJECTED` the records that were rejected while
    they were read.

    Attributes:
        options: What is followed.
        by_impulses: Whether the source is called by impulses (`poll_source.SendByImpulses`).
    """

    options: FollowOptions
    by_impulses: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: Any) -> Any:
        """Wire the source."""
        return sent_polls(
            begin, self.options.start, "Follow", _Follow(self.options), by_impulses=self.by_impulses
        )
