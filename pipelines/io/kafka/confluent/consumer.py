"""confluent-kafka's consumer behind the port."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tidemill.features.errors import BrokerError, BrokerUnreachable, NoSuchTopic
from tidemill.pipelines.io.kafka.client import (
    AHEAD_BYTES,
    PARTITION_BYTES,
    Lost,
    Partition,
    Positions,
    Taken,
)
from tidemill.pipelines.io.kafka.confluent.failures import translated
from tidemill.pipelines.io.kafka.confluent.options import options
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.messages import Messages

_Message: TypeAlias = "Message[Any, Any]"
_FETCH_WAIT_MS: Final = 250
_FULL_MS: Final = 5
_US_PER_MS: Final = 1_000
_TRUNCATED: Final = KafkaError._LOG_TRUNCATION
_LOST: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, _TRUNCATED)


class ConfluentConsumer:
    """See `client.Consumer`.

    Args:
        connection: How to connect.
    """

    def __init__(self, connection: Connection) -> None:
        self._consumer = Consumer(
            {
                **options(connection),
                # It asks for a group's name even where no group is used.
                "group.id": f"{connection.client_id}-without-group",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                # The event at a partition's end tells the offset that it has come to.
                "enable.partition.eof": True,
                "check.crcs": True,
                "fetch.message.max.bytes": PARTITION_BYTES,
                "fetch.max.bytes": AHEAD_BYTES,
                "queued.max.messages.kbytes": AHEAD_BYTES >> 10,
                # By default it waits a second once so much is read ahead.
                "fetch.queue.backoff.ms": _FULL_MS,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
            }
        )
        self._positions: dict[Partition, int] = {}
        self._failure: BrokerError | None = None
        self._paused: set[Partition] = set()

    def assign(self, positions: Positions) -> None:
        """See `client.Consumer.assign`."""
        # Its library keeps a partition paused through an assignment.
        self.resume(tuple(self._paused))
        self._positions = dict(positions)
        self._failure = None
        self._consumer.unassign()
        self._consumer.assign([TopicPartition(*where, at) for where, at in positions.items()])

    def take(self, wait_s: float, max_messages: int) -> Taken:
        """See `client.Consumer.take`."""
        if self._failure is not None:
            raise self._failure
        # It would wait until there are so many: so it is asked for what is there, or for one.
        found = self._consume(max_messages, 0.0)
        if not found and wait_s > 0:
            found = self._consume(1, wait_s)
            if found and max_messages > 1:
                found += self._consume(max_messages - 1, 0.0)
        groups: dict[Partition, list[_Message]] = {}
        lost: dict[Partition, Lost] = {}
        failure: BrokerError | None = None
        for message in found:
            where = Partition(message.topic() or "", message.partition() or 0)
            error = message.error()
            if error is None:
                groups.setdefault(where, []).append(message)
            elif error.code() in _LOST:
                lost[where] = Lost(self._positions[where], truncated=error.code() == _TRUNCATED)
            elif error.code() == KafkaError._PARTITION_EOF:
                # Messages before it in the same answer have smaller offsets.
                self._ended(where, message.offset())
            else:
                failure = failure or _failure(error)
        taken = [self._columns(where, group) for where, group in groups.items()]
        # What was given before an error is handed out before it.
        self._failure = failure
        if failure is not None and not taken:
            raise failure
        return Taken(taken, lost)

    def _consume(self, count: int, wait_s: float) -> list[_Message]:
        try:
            found: list[_Message] = self._consumer.consume(count, wait_s)
        except KafkaException as error:
            raise translated(error, "reading") from error
        return found

    def _ended(self, where: Partition, offset: int | None) -> None:
        if where in self._positions and offset is not None:
            self._positions[where] = max(offset, self._positions[where])

    def _columns(self, where: Partition, group: Sequence[_Message]) -> Messages:
        """Turn messages into columns; the loops run in C."""
        offsets = np.array(list(map(Message.offset, group)), dtype=np.int64)
        timestamps_ms = np.array(list(map(Message.timestamp, group)), dtype=np.int64)[:, 1]
        self._ended(where, int(offsets[-1]) + 1)
        return Messages(
            where.topic,
            where.partition,
            offsets,
            timestamps_ms * _US_PER_MS,
            list(map(Message.key, group)),
            list(map(Message.value, group)),
            [headers or () for headers in map(Message.headers, group)],
        )

    def position(self, partition: Partition) -> int:
        """See `client.Consumer.position`."""
        return self._positions[partition]

    def pause(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.pause`."""
        self._paused |= set(partitions)
        self._consumer.pause([TopicPartition(*where) for where in partitions])

    def resume(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.resume`."""
        self._paused -= set(partitions)
        self._consumer.resume([TopicPartition(*where) for where in partitions])

    def close(self) -> None:
        """See `client.Consumer.close`."""
        self._consumer.close()


def _failure(error: KafkaError) -> BrokerError | None:
    """Topics that are gone are watched, and so is a broker that is away: see `watch.Watch`."""
    failure = translated(error, "reading")
    return None if isinstance(failure, BrokerUnreachable | NoSuchTopic) else failure
