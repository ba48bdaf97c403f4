"""Where a live reader is in the partitions of its topics, and how far each is in time.

The promises:

* A topic may get more partitions while it is read. The log keeps the number that it began with:
  partition n of the topic is written to partition n, modulo this number, of those that the log has
  for the topic. So whatever counts by partitions of the log (polls, releases, states, proofs) goes
  on. Offsets, highest times and ends are those of the topic's partitions.
* The watermark of a partition of the log is the least of those of its partitions of the topic, and
  never steps back. So one that was added holds it where it is until it has rows or is proven quiet.
* No partition, and no source, runs ahead of another that is behind with its messages
  (`Pace.ahead_us`, `Pace.near_us`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.live.live_source import Ends, LiveSource, Pace
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.poll import Poll

Place: TypeAlias = tuple[str, int]
"""A source's name, and the number that a partition has in its topic, or in its log."""


@dataclass
class TopicPartition:
    """Where a partition of a topic is.

    Attributes:
        offset: The position after what its last poll had read (`pipelines.io.live.lost`).
        row: A number that no earlier row of this reader has, for request ids.
        watermark_us: Its watermark.
        quiet_us: The highest watermark that it has had because it was quiet.
        lowest_us: The lowest time of the rows that were read last.
    """

    offset: int
    row: int = 0
    watermark_us: int = TIME_MIN
    quiet_us: int = TIME_MIN
    lowest_us: int = TIME_MIN


@dataclass
class LogPartition:
    """Where a partition of a log is.

    Attributes:
        position: How many rows it has.
        watermark_us: Its watermark.
    """

    position: int = 0
    watermark_us: int = TIME_MIN


class Partitions:
    """The partitions of live sources.

    Args:
        sources: The live sources, by name.
        offsets: Source to the position of each partition of its topic at which reading begins.
        pace: How far they may be apart.

    Attributes:
        of_topic: Those of the topics, by the number that the topic gives.
        of_log: Those of the logs that are of topics, by the number that the log gives.
        ends_before: Where those of the topics ended at the check before the last.
    """

    def __init__(
        self,
        sources: Mapping[str, LiveSource],
        offsets: Mapping[str, Sequence[int]],
        pace: Pace,
    ) -> None:
        self._sources, self._pace = sources, pace
        self.of_topic: dict[Place, TopicPartition] = {}
        self.of_log = {
            (name, source.log_partition(number)): LogPartition()
            for name, source in sources.items()
            for number in range(source.partitions)
        }
        self.ends_before: Mapping[Place, Ends] = {}
        for name, of_source in offsets.items():
            for offset in of_source:
                self.add(name, offset)

    def add(self, name: str, offset: int) -> None:
        """Add the next partition of a topic, read from a position on."""
        self.of_topic[name, self.count(name)] = TopicPartition(offset)

    def count(self, name: str) -> int:
        """Return how many partitions of a source's topic are read."""
        return sum(of_source == name for of_source, _ in self.of_topic)

    def log_of(self, place: Place) -> Place:
        """Return the partition of the log that a partition of a topic is written to."""
        name, number = place
        return name, self._sources[name].log_partition(number)

    def restore(self, last: LoggedPoll, poll: Poll) -> None:
        """Go on after the last logged poll.

        Args:
            last: The entry of the poll log.
            poll: Its poll.
        """
        for name, source in self._sources.items():
            for number, offset in enumerate(last.offsets[name]):
                self.of_topic[name, number].offset = offset
                source.judge.restore(source.judged(number), last.highest_us[name][number])
        for part in poll.parts:
            if (log := self.of_log.get((part.source, part.partition))) is not None:
                log.position, log.watermark_us = part.stop, part.watermark_us
        for place, at in self.of_topic.items():
            log = self.of_log[self.log_of(place)]
            at.row, at.watermark_us = log.position, log.watermark_us
            if at.watermark_us > self.highest_us(place) - self._disorder_us(place):
                at.quiet_us = at.watermark_us

    def highest_us(self, place: Place) -> int:
        """Return the highest accepted time of a partition of a topic."""
        name, number = place
        source = self._sources[name]
        return source.judge.highest_us(source.judged(number))

    def _disorder_us(self, place: Place) -> int:
        return self._sources[place[0]].definition.out_of_orderness_us

    def check_positions(self, name: str, offsets: Mapping[int, int]) -> None:
        """Check the positions of a reader.

        Raises:
            DamagedState: One stepped back.
        """
        for number, offset in offsets.items():
            at = self.of_topic[name, number]
            if offset < at.offset:
                raise DamagedState(
                    f"the reader of {name!r} stepped back from offset {at.offset} to {offset} of "
                    f"partition {number}"
                )

    @property
    def have_moved(self) -> bool:
        """Whether the reader of a topic is further than the last poll was."""
        return any(
            offset != self.of_topic[name, number].offset
            for name, source in self._sources.items()
            for number, offset in source.reader.positions().items()
        )

    def raise_watermarks(self) -> bool:
        """Raise watermarks to what is known; tell whether one of a log has risen."""
        least = dict.fromkeys(self.of_log, TIME_MAX)
        for place, at in self.of_topic.items():
            known = max(self.highest_us(place) - self._disorder_us(place), at.quiet_us, TIME_MIN)
            at.watermark_us = max(at.watermark_us, known)
            log = self.log_of(place)
            least[log] = min(least[log], at.watermark_us)
        risen = False
        for log, watermark_us in least.items():
            if watermark_us > self.of_log[log].watermark_us:
                self.of_log[log].watermark_us, risen = watermark_us, True
        return risen

    def behind_us(self) -> int:
        """Return what was read of the partition that is furthest behind, and has more messages.

        Returns:
            Its highest time; `TIME_MAX` if no partition has more, or rows do not wait for others.
        """
        if self._pace.ahead_us is None:
            return TIME_MAX
        reached = [time_us for name in self._sources for time_us in self._reached_us(name)]
        return min((time_us for time_us in reached if time_us > TIME_MIN), default=TIME_MAX)

    def _reached_us(self, name: str) -> list[int]:
        """Return the highest time of each partition of a source that is behind.

        One that has not been read to where it ended a moment ago is as any other that is read.
        """
        return [
            self.highest_us(place)
            for place, end in self.ends_before.items()
            if place[0] == name and self.of_topic[place].offset < end.stable
        ]

    def ahead(self, until_us: int) -> list[Place]:
        """Return the partitions that are not read now, since others must catch up first.

        All rows that were read last of such a partition are beyond what was read of one that has
        more messages. So it has been read at most a poll further.

        Args:
            until_us: What was read of the one that is furthest behind (`behind_us`).
        """
        after_us = until_us + (self._pace.ahead_us or 0)
        return [place for place, at in self.of_topic.items() if at.lowest_us > after_us]

    def is_near(self, name: str, until_us: int) -> bool:
        """Tell whether a source is read now: not while all that it has more of is ahead."""
        reached = self._reached_us(name)
        return not reached or min(reached) <= until_us + self._pace.near_us

    def holding(self) -> list[str]:
        """Return the sources that hold back the frontier for which rows wait."""
        if self._pace.hold_s is None:
            return []
        frontier_us = min(at.watermark_us for at in self.of_topic.values())
        if max(map(self.highest_us, self.of_topic)) < frontier_us:
            return []
        return sorted(
            {name for (name, _), at in self.of_topic.items() if at.watermark_us == frontier_us}
        )
