"""A live source: its topic, what makes rows of its messages, how often it is read, and counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from tidemill.features.contract import SECOND
from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.io.files.judged_rows import Counts, Judge
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import Decoder


class Ends(NamedTuple):
    """Where a partition of a topic ends.

    Attributes:
        stable: The offset after the last message that a read_committed reader gets now.
        high: The offset after the last message that there is.
    """

    stable: int
    high: int


class TopicReader(Protocol):
    """Reads the partitions of one topic, from the positions that it was made with.

    All offsets, of messages too, are positions (`pipelines.io.live.lost`).
    """

    def poll(self, wait_s: float, max_messages: int) -> Sequence[Messages]:
        """Return the next messages, at most so many, by partition; wait for the first so long."""

    def leave_out(self, partitions: Collection[int]) -> None:
        """Give messages of all partitions but these, until the next call."""

    def positions(self) -> Mapping[int, int]:
        """Return the next offset of each partition, which also moves where there is no message."""

    def ends(self) -> Mapping[int, Ends]:
        """Return where each partition ends, by requests that begin after the call.

        Raises:
            BrokerUnreachable: The broker does not answer now.
        """

    def partitions(self) -> int:
        """Return how many partitions the topic has now.

        Raises:
            BrokerUnreachable: The broker does not answer now.
        """

    def add(self, positions: Mapping[int, int]) -> None:
        """Read further partitions from these positions on, beside those that are read.

        Raises:
            PositionOutOfRange: A partition does not hold its position; none is added.
            BrokerUnreachable: The broker does not answer now; none is added.
        """


@dataclass(frozen=True)
class Pace:
    """How often a live reader does what.

    Attributes:
        poll_messages: The most messages of a source in one poll.
        rest_s: How long it rests after a poll without messages.
        beat_s: How often, at most, a poll without messages says that watermarks have risen.
        check_s: How often it asks the brokers for the ends of all partitions.
        hold_s: How often, at most, it asks for those of a source that holds the frontier back while
            rows wait for it; None for a mode in which they do not. It asks more rarely where asking
            would take more than a twentieth of the time.
        quiet_us: How long before the instant of such a check a message may have been created that
            is still on its way to the broker: so much less is the watermark of a quiet partition.
        partitions_s: How often it asks the brokers whether topics have got more partitions. Rows
            of a new one may be late by so much.
        mended_s: How often it looks for mended messages.
        ahead_us: How far the rows of a partition may be ahead of another one that is behind (it
            has messages that were there at the check before the last): what is further ahead would
            only wait, in memory, for the frontier. None for a mode in which rows do not wait.
        near_us: The same of a source: while all its partitions that are behind are further
            ahead, none is asked of it, which costs nothing, as leaving out partitions does.
    """

    poll_messages: int = 4_096
    rest_s: float = 0.005
    beat_s: float = 0.1
    check_s: float = 0.5
    hold_s: float | None = None
    quiet_us: int = 2 * SECOND
    partitions_s: float = 2.0
    mended_s: float = 1.0
    ahead_us: int | None = None
    near_us: int = SECOND


@dataclass(frozen=True, eq=False)
class LiveSource:
    """A source that is read live.

    Attributes:
        definition: The stream or the request.
        reader: Reads its topic.
        decoder: Decodes its messages.
        judge: Judges its rows; it has a time of receipt.
        first: The first partition of the log that is of the topic.
        partitions: How many partitions of the log are of the topic: as many as the topic had when
            the log began (`pipelines.io.live.partitions`).
        clock: What a quiet partition's instant is measured by: ``wall``, or ``messages``, which is
            never later than the newest timestamp of a message of the sources that have this clock;
            for producers that replay the past.
        rows: Decodes rows in JSON, as those of messages with several rows are mended; None if
            there are no mended messages.
        max_rejected: A greater share of rejected rows is a flood, of which the reader tells.
        topic_id: The id of its topic; empty if not known.
    """

    definition: EventStream | Request
    reader: TopicReader
    decoder: Decoder
    judge: Judge
    first: int
    partitions: int
    clock: Literal["wall", "messages"] = "wall"
    rows: Decoder | None = None
    max_rejected: float = 1.0
    topic_id: str = ""

    def log_partition(self, number: int) -> int:
        """Return the partition of the log that a partition of the topic is written to."""
        return self.first + number % self.partitions

    def judged(self, number: int) -> int:
        """Return the number that a partition of the topic has for the judge and when rejected."""
        return self.first + number


@dataclass
class LiveFigures:
    """What a live reader has done.

    Attributes:
        counts: By source, of the rows that it read.
        late_after_quiet: By source: accepted rows whose time was below a watermark which their
            partition had only because it had been quiet.
        caught_up: By source: the partitions that are read to their end, as of the last check.
        mended: By source: mended messages that were accepted.
        rejected_again: By source: mended messages that are rejected still.
        ends: By source and partition: where it ended at the last check.
        away: The sources whose broker did not answer the last check.
    """

    counts: dict[str, Counts] = field(default_factory=dict)
    late_after_quiet: dict[str, int] = field(default_factory=dict)
    caught_up: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    rejected_again: dict[str, int] = field(default_factory=dict)
    ends: dict[tuple[str, int], Ends] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)


class Standing(NamedTuple):
    """Where a partition of a topic is.

    Attributes:
        source: The name of its source.
        partition: Its number in the topic.
        log_partition: Its number in the log of the source.
        offset: The broker's offset after what is read.
        position: How many rows its log has.
        watermark_us: Its watermark.
        is_quiet: Whether it has this watermark because it was quiet.
        end: Where it ended when the broker was last asked; None before that.
    """

    source: str
    partition: int
    log_partition: int
    offset: int
    position: int
    watermark_us: int
    is_quiet: bool
    end: Ends | None
