"""Reading given partitions from given positions, without loss, doubling or a silent jump.

* `Reader.positions` after a poll is the truth: all before it was given out, or held no message that
  a reader of committed messages may see.
* A position that a partition does not hold is an error that names it and what there is. What other
  partitions had given is handed out before.
* A topic that is deleted, or deleted and made again, is an error by name within about two seconds.
* While the broker is away, polls give nothing; after ``patience_s`` they raise why.
* A poll is bounded in bytes and in messages, and so is what is read ahead.
* A partition can be left out for a while; it is read on from where it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeVar

from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    InputError,
    NoSuchTopic,
    PositionOutOfRange,
)
from tidemill.pipelines.io.kafka.bounds import Surplus
from tidemill.pipelines.io.kafka.client import Client, Ends, Lost, Partition, Positions, Topic
from tidemill.pipelines.io.kafka.closing import Closing
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reach import reach
from tidemill.pipelines.io.kafka.watch import Watch
from tidemill.pipelines.io.messages import Messages

MAX_BYTES: Final = 1 << 20
MAX_MESSAGES: Final = 5_000
PATIENCE_S: Final = 120.0
ANSWER_S: Final = 10.0

_DELETED: Final = (
    "the messages before its first offset were deleted, by the topic's retention or by hand"
)
_SHORTER: Final = "it ends before: messages were lost, or the topic is another one"
_TRUNCATED: Final = "messages before it were lost with a broker, and others are in their place"
_AGAIN_S: Final = 0.1
_SPREAD_S: Final = 1.0
"""How long a broker may not know a topic that another has just made."""
_US_PER_MS: Final = 1_000
_Answer = TypeVar("_Answer")


class Reader(Closing):
    """Reads partitions of a cluster; one thread may use it at a time.

    Args:
        client: The client library, from `choosing.choose_client`.
        connection: How to connect.
        patience_s: How long the broker may be away until polls raise an error, in seconds.
        answer_s: How long the other methods try again while it is away, in seconds.

    Raises:
        BrokerError: The cluster cannot be reached; see `reach.reach`.
    """

    def __init__(
        self,
        client: Client,
        connection: Connection,
        patience_s: float = PATIENCE_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        reach(connection)
        self._answer_s = answer_s
        self._asker = client.asker(connection)
        try:
            self._consumer = client.consumer(connection)
        except BaseException:
            self._asker.close()
            raise
        self._watch = Watch(self._asker, functools.partial(reach, connection), patience_s)
        self._assigned: tuple[Partition, ...] = ()
        self._surplus = Surplus()
        self._left_out: frozenset[Partition] = frozenset()
        self._positions_aside: dict[Partition, int] = {}
        """The positions of partitions that the client does not read now."""
        self._lost: dict[Partition, Lost] = {}

    def assign(self, positions: Positions) -> None:
        """Read these partitions, and no others, from these positions on.

        Nothing of an earlier assignment is given out any more, and no partition is left out.

        Args:
            positions: The offset of the next message of each partition.

        Raises:
            PositionOutOfRange: A partition does not hold its position.
            NoSuchTopic: A topic or a partition does not exist.
            NotAuthorised: The user may not read a topic.
            BrokerUnreachable: The broker does not answer in time.
        """
        self._surplus.clear()
        self._lost = {}
        self._left_out = frozenset()
        self._positions_aside = {}
        self._assigned = ()
        self._watch.begin({})
        topics = self._topics({where.topic for where in positions})
        for where in positions:
            _check_partition(where, topics[where.topic])
        self._check_range(dict(positions))
        self._consumer.assign(positions)
        self._watch.begin(topics)
        self._assigned = tuple(positions)

    def add(self, positions: Positions) -> None:
        """Read further partitions of the topics that are read, from these positions on.

        The others go on where they are. If it fails, nothing has changed. No partition is left out
        afterwards.

        Args:
            positions: The offset of the next message of each further partition.

        Raises:
            PositionOutOfRange: A partition does not hold its position.
            NoSuchTopic: A partition does not exist.
            BrokerUnreachable: The broker does not answer in time.
        """
        topics = self._topics({where.topic for where in positions})
        for where in positions:
            _check_partition(where, topics[where.topic])
        self._check_range(positions)
        before = self.positions()
        self._surplus.clear()
        self._left_out, self._positions_aside = frozenset(), {}
        self._consumer.assign({**before, **positions})
        self._assigned = (*before, *positions)
        if self._lost:
            self._consumer.pause(list(self._lost))

    def poll(
        self, wait_s: float, max_bytes: int = MAX_BYTES, max_messages: int = MAX_MESSAGES
    ) -> list[Messages]:
        """Return messages that are there, or wait for some.

        Args:
            wait_s: Longest wait while there is nothing, in seconds.
            max_bytes: Most bytes of keys, values and headers; one message may be larger.
            max_messages: Most messages.

        Returns:
            Messages of some partitions, of each in order; a partition may come more than once.

        Raises:
            PositionOutOfRange: A partition does not hold its position any more. Every later poll
                raises it until `assign`.
            NoSuchTopic: A topic was deleted.
            RecreatedTopic: A topic was deleted, and another has its name.
            NotAuthorised: The user may not read a topic any more.
            DamagedMessages: Messages cannot be decoded, or fail their checksum.
            BrokerUnreachable: The broker is away for longer than the patience.
        """
        if max_bytes < 1 or max_messages < 1:
            raise InputError(
                f"found max_bytes={max_bytes} and max_messages={max_messages}, expected 1 or more"
            )
        self._watch.check()
        given = self._surplus.give(max_bytes, max_messages, self._left_out)
        if not given and not self._reads:
            time.sleep(wait_s)
        elif not given:
            self._raise_lost()
            taken = self._consumer.take(wait_s, max_messages)
            if taken.lost:
                self._lost.update(taken.lost)
                self._consumer.pause(list(taken.lost))
            self._surplus.add(taken.messages)
            given = self._surplus.give(max_bytes, max_messages, self._left_out)
            # Of a topic that was made again nothing is given once that is known.
            self._watch.check()
            if not given:
                self._raise_lost()
        return given

    def positions(self) -> dict[Partition, int]:
        """Return the offset of the next message of each partition that is read."""
        waiting = self._surplus.positions()
        return {
            where: waiting[where] if where in waiting else self._read_to(where)
            for where in self._assigned
        }

    def leave_out(self, partitions: Collection[Partition]) -> None:
        """Read all assigned partitions but these, until the next call; their positions stay.

        They are not read ahead. Whenever they change, what was read ahead is read again.
        """
        wanted = frozenset(partitions)
        if wanted == self._left_out:
            return
        self._positions_aside = {where: self._read_to(where) for where in self._assigned}
        self._left_out = wanted
        if not self._reads:
            return  # a client cannot read nothing: it keeps what it has, and is not asked
        read = {
            where: position
            for where, position in self._positions_aside.items()
            if where not in wanted
        }
        self._consumer.assign(read)
        self._positions_aside = {where: self._positions_aside[where] for where in wanted}
        if lost := [where for where in self._lost if where in read]:
            self._consumer.pause(lost)

    @property
    def _reads(self) -> bool:
        """Whether any partition is not left out."""
        return not self._left_out.issuperset(self._assigned)

    def _read_to(self, where: Partition) -> int:
        """Return the offset after all that the client has given of a partition."""
        aside = self._positions_aside.get(where)
        return self._consumer.position(where) if aside is None else aside

    def partitions(self, topic: str) -> tuple[int, ...]:
        """Return the numbers of a topic's partitions, ascending.

        Raises:
            NoSuchTopic: There is no such topic.
            NotAuthorised: The user may not see it.
            BrokerUnreachable: The broker does not answer in time.
        """
        return self._topics([topic])[topic].partitions

    def topic_id(self, topic: str) -> str:
        """Return the id of a topic; one that is made again has another. See `partitions`."""
        return self._topics([topic])[topic].id

    def ends(self, partitions: Iterable[Partition] | None = None) -> dict[Partition, Ends]:
        """Return where partitions end, by requests that begin after the call.

        Args:
            partitions: None for those that are read.

        Raises:
            NoSuchTopic: A topic or a partition does not exist.
            NotAuthorised: The user may not see it.
            BrokerUnreachable: The broker does not answer in time.
        """
        wanted = self._wanted(partitions)
        return self._patiently(lambda: self._asker.ends(wanted))

    def beginnings(self, partitions: Iterable[Partition] | None = None) -> dict[Partition, int]:
        """Return the first offset that each partition holds; see `ends`."""
        wanted = self._wanted(partitions)
        return self._patiently(lambda: self._asker.beginnings(wanted))

    def offsets_at(
        self, time_us: int, partitions: Iterable[Partition] | None = None
    ) -> dict[Partition, int | None]:
        """Return the first offset whose timestamp is at or after a time; see `ends`.

        Args:
            time_us: The time, in microseconds since 1970; Kafka keeps milliseconds.
            partitions: None for those that are read.

        Returns:
            The offset of each partition; None where no message is that late.
        """
        wanted = self._wanted(partitions)
        time_ms = max(0, -(-time_us // _US_PER_MS))
        found = self._patiently(lambda: self._asker.offsets_at(wanted, time_ms))
        return {where: offset if offset >= 0 else None for where, offset in found.items()}

    def commit(self, group: str, positions: Positions) -> None:
        """Commit positions for tools that show a group's lag; they are never read.

        Raises:
            BrokerError: The broker refuses: the group has members, or the user may not.
            BrokerUnreachable: The broker does not answer in time.
        """
        self._patiently(lambda: self._asker.commit(group, positions))

    def close(self) -> None:
        """Disconnect."""
        self._watch.close()
        self._consumer.close()
        self._asker.close()

    def _wanted(self, partitions: Iterable[Partition] | None) -> tuple[Partition, ...]:
        return self._assigned if partitions is None else tuple(partitions)

    def _topics(self, names: Collection[str]) -> dict[str, Topic]:
        """Ask for topics; one that was just made is not known to every broker at once."""
        return _again(
            lambda: self._patiently(lambda: self._asker.topics(names)), NoSuchTopic, _SPREAD_S
        )

    def _raise_lost(self) -> None:
        if self._lost:
            self._watch.look()
            self._check_range({where: lost.position for where, lost in self._lost.items()})
            for where, lost in self._lost.items():
                if lost.truncated:
                    raise self._out_of_range(where, lost.position, _TRUNCATED)
            # They are there after all: the partition changed between the two requests.
            self._consumer.resume([where for where in self._lost if where not in self._left_out])
            self._lost = {}

    def _check_range(self, positions: Positions) -> None:
        wanted = tuple(positions)
        firsts = self._patiently(lambda: self._asker.beginnings(wanted))
        ends = self._patiently(lambda: self._asker.ends(wanted))
        for where, position in positions.items():
            if position < firsts[where]:
                raise self._out_of_range(where, position, _DELETED)
            if position > ends[where].high:
                raise self._out_of_range(where, position, _SHORTER)

    def _out_of_range(self, where: Partition, position: int, reason: str) -> PositionOutOfRange:
        first = self._patiently(lambda: self._asker.beginnings([where]))[where]
        end = self._patiently(lambda: self._asker.ends([where]))[where].high
        remedy = "says what is lost and how to accept it"
        if reason == _TRUNCATED:
            remedy = "goes on here, without what was written in the place of these messages"
        return PositionOutOfRange(
            f"the partition {where.partition} of the topic {where.topic!r} holds offsets from "
            f"{first} to {end}, not the position {position}: {reason}; nothing is skipped by "
            f"itself: restore the topic, or run `tidemill stream --resume`, which {remedy}",
            where.topic,
            where.partition,
            position,
            first,
            end,
        )

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        return _again(ask, BrokerUnreachable, self._answer_s)


def _again(ask: Callable[[], _Answer], refused: type[BrokerError], within_s: float) -> _Answer:
    """Ask, and ask again for so many seconds while the answer is such an error."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except refused:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_AGAIN_S)


def _check_partition(where: Partition, topic: Topic) -> None:
    if where.partition not in topic.partitions:
        raise NoSuchTopic(
            f"the topic {where.topic!r} has no partition {where.partition}, only "
            f"{len(topic.partitions)}; correct the number"
        )
