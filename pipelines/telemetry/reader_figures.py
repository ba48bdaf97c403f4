"""The figures of a live reader: what came, where each partition is, and what it waits for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.live.live_reader import LiveReader
from tidemill.pipelines.io.live.live_source import Standing
from tidemill.pipelines.io.live.lost import AcceptedLoss
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.events import log_event
from tidemill.pipelines.telemetry.facts import source_fact
from tidemill.pipelines.telemetry.figures import Figures

SILENT_S: Final = 60.0
"""A partition without a message for so long, and nothing left to read, is logged as silent."""
_EVERY_S: Final = 0.5

_log: Final = logging.getLogger(__name__)


class ReaderFigures:
    """Reports what a live reader does; one for each reader.

    Args:
        figures: The figures of this process.
        reader: The reader.
        topics: Source to the name of its topic.
        clock: A monotonic clock, in seconds.
        losses: What the topics have lost and a person has accepted, since the log began.
    """

    def __init__(
        self,
        figures: Figures,
        reader: LiveReader,
        topics: dict[str, str],
        clock: Callable[[], float] = time.monotonic,
        losses: Sequence[AcceptedLoss] = (),
    ) -> None:
        self._figures, self._reader, self._topics, self._clock = figures, reader, topics, clock
        self._counted: dict[str, Counts] = {name: Counts() for name in topics}
        self._late = dict.fromkeys(topics, 0)
        self._offsets: dict[tuple[str, int], int] = {}
        # When a partition's offset moved last: on the monotonic clock, and since 1970.
        self._moved: dict[tuple[str, int], tuple[float, float | None]] = {}
        self._silent: set[tuple[str, int]] = set()
        self._away: set[str] = set()
        self._reported_s = float("-inf")
        figures.add(metrics.POLLS, 0)
        for name in topics:
            of_source = [one.loss for one in losses if one.loss.source == name]
            figures.add(metrics.LOSSES, len(of_source), name)
            lost = sum(loss.messages or 0 for loss in of_source)
            figures.add(metrics.LOST_MESSAGES, lost, name)
        self.report()

    def stepped(self, poll: LoggedPoll | None, ahead: int) -> None:
        """Report a step of the reader.

        Args:
            poll: The poll that it has written down, if any.
            ahead: How many polls are written down that no operator has taken.
        """
        if poll is not None:
            self._figures.add(metrics.POLLS, 1)
        now = self._clock()
        if now - self._reported_s >= _EVERY_S:
            self._figures.set(metrics.POLLS_AHEAD, ahead)
            self.report()

    def report(self) -> None:
        """Report where the reader is now."""
        self._reported_s = self._clock()
        found = self._reader.figures
        for name, counts in found.counts.items():
            before = self._counted[name]
            self._counted[name] = counts
            self._figures.add(metrics.ROWS_READ, counts.read - before.read, name)
            self._figures.add(metrics.ROWS_ACCEPTED, counts.kept - before.kept, name)
            late = found.late_after_quiet[name]
            self._figures.add(metrics.LATE_AFTER_QUIET, late - self._late[name], name)
            self._late[name] = late
            self._report_broker(name, is_away=name in found.away)
        for one in self._reader.standings():
            self._report_partition(one)

    def _report_broker(self, name: str, *, is_away: bool) -> None:
        self._figures.set(metrics.REACHABLE, 0 if is_away else 1, name)
        topic = self._topics[name]
        if is_away and name not in self._away:
            self._away.add(name)
            message = f"the broker of {topic!r} does not answer; the stream waits for it"
            level = logging.WARNING
            log_event(_log, "broker_away", message, level=level, source=name, topic=topic)
        elif not is_away and name in self._away:
            self._away.remove(name)
            message = f"the broker of {topic!r} answers again"
            level = logging.WARNING
            log_event(_log, "broker_back", message, level=level, source=name, topic=topic)

    def _report_partition(self, one: Standing) -> None:
        place, now = (one.source, one.partition), self._clock()
        if place not in self._moved:
            self._moved[place] = now, None
        elif one.offset != self._offsets[place]:
            self._moved[place] = now, time.time()
        self._offsets[place] = one.offset
        labels = one.source, str(one.partition)
        moved, moved_at = self._moved[place]
        self._figures.set(metrics.OFFSET, one.offset, *labels)
        if TIME_MIN < one.watermark_us < TIME_MAX:
            self._figures.set(metrics.WATERMARK, one.watermark_us / SECOND, *labels)
        if moved_at is not None:
            self._figures.set(metrics.LAST_MESSAGE, moved_at, *labels)
        lag = None if one.end is None else max(one.end.high - one.offset, 0)
        if lag is not None:
            self._figures.set(metrics.LAG, lag, *labels)
        self._figures.note(
            source_fact(*place),
            {
                "topic": self._topics[one.source],
                "log_partition": one.log_partition,
                "offset": one.offset,
                "position": one.position,
                "watermark_us": one.watermark_us,
                "stable": None if one.end is None else one.end.stable,
                "high": None if one.end is None else one.end.high,
                "is_quiet": one.is_quiet,
                "last_message_s": moved_at,
            },
        )
        self._report_silence(one, is_silent=lag == 0 and now - moved >= SILENT_S)

    def _report_silence(self, one: Standing, *, is_silent: bool) -> None:
        place = one.source, one.partition
        name = f"{self._topics[one.source]}/{one.partition}"
        if is_silent and place not in self._silent:
            self._silent.add(place)
            message = f"{name} has had no message for {SILENT_S:g} s; all of it is read"
            log_event(_log, "partition_silent", message, source=one.source, partition=one.partition)
        elif not is_silent and place in self._silent:
            self._silent.remove(place)
            message = f"{name} has messages again"
            log_event(_log, "partition_back", message, source=one.source, partition=one.partition)
