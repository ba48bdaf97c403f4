"""Reading a topic back up to where it ended, as a reader of committed messages sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tidemill.features.errors import OpenTransaction, PositionOutOfRange
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Ends, Partition
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.messages import Messages

_WAIT_S: Final = 0.1


class TopicEnds:
    """Where the partitions of a topic begin and end, and the topic's id.

    Args:
        connection: How to connect.
        topic: The topic.

    Raises:
        BrokerError: The broker cannot be asked, or there is no such topic.
    """

    def __init__(self, connection: Connection, topic: str) -> None:
        asker = choose_client(connection.client).asker(connection)
        try:
            known = asker.topics([topic])[topic]
            places = [Partition(topic, number) for number in known.partitions]
            begin, ends = asker.beginnings(places), asker.ends(places)
        finally:
            asker.close()
        self.id = known.id
        self.firsts = tuple(begin[place] for place in places)
        self._ends: tuple[Ends, ...] = tuple(ends[place] for place in places)

    @property
    def highs(self) -> tuple[int, ...]:
        """The offset after all messages of each partition, those of open transactions included."""
        return tuple(end.high for end in self._ends)


def begins(offsets: Sequence[int], ends: TopicEnds) -> tuple[int, ...]:
    """Return the offsets with those of partitions that the topic got since."""
    return (*offsets, *([0] * (len(ends.firsts) - len(offsets))))


def check_retention(topic: str, offsets: Sequence[int], ends: TopicEnds) -> None:
    """Check that a topic still has all messages from given offsets on.

    Raises:
        PositionOutOfRange: Some were removed, by the topic's retention or by somebody.
    """
    for partition, (offset, first, high) in enumerate(
        zip(begins(offsets, ends), ends.firsts, ends.highs, strict=True)
    ):
        if first > offset:
            raise PositionOutOfRange(
                f"partition {partition} of the topic {topic!r} begins at offset {first}: messages "
                f"from offset {offset} on, which the stream may have written since its savepoint, "
                "were removed by the topic's retention, so it is not known which; name another "
                "topic, to which all since the savepoint is written, or run `tidemill stream` "
                "without --resume to start over",
                topic,
                partition,
                offset,
                first,
                high,
            )


def read_back(
    connection: Connection,
    topic: str,
    offsets: Sequence[int],
    ends: TopicEnds,
    patience_s: float,
) -> Iterator[Messages]:
    """Yield the committed messages of a topic from given offsets up to where it ended.

    Args:
        connection: How to connect.
        topic: The topic.
        offsets: The offset of each partition at which reading begins; of removed messages those
            that are left are read.
        ends: Where the topic ends.
        patience_s: How long nothing may come, in seconds.

    Raises:
        OpenTransaction: Another writer's transaction stays open, which hides what comes after it.
        BrokerError: The topic cannot be read.
    """
    starts = {
        Partition(topic, number): max(offset, ends.firsts[number])
        for number, offset in enumerate(begins(offsets, ends))
        if max(offset, ends.firsts[number]) < ends.highs[number]
    }
    if not starts:
        return
    with Reader(choose_client(connection.client), connection, patience_s) as reader:
        reader.assign(starts)
        moved_s, before = time.monotonic(), dict(starts)
        while left := _left(reader.positions(), ends.highs):
            yield from reader.poll(_WAIT_S)
            if (now := reader.positions()) != before:
                moved_s, before = time.monotonic(), now
            elif time.monotonic() - moved_s > patience_s:
                place, offset = next(iter(left.items()))
                raise OpenTransaction(
                    f"partition {place.partition} of the topic {topic!r} gives nothing from "
                    f"offset {offset} on for {patience_s:g} s, and it ends at "
                    f"{ends.highs[place.partition]}: another writer's transaction is open there; "
                    "let it end, or wait until the broker aborts it, and run the command again"
                )


def _left(positions: Mapping[Partition, int], highs: Sequence[int]) -> dict[Partition, int]:
    return {place: offset for place, offset in positions.items() if offset < highs[place.partition]}
