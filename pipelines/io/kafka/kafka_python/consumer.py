"""kafka-python's consumer behind the port."""

from __future__ import annotations

import operator
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import (
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RetriableError,
)

from tidemill.pipelines.io.kafka.client import (
    AHEAD_BYTES,
    PARTITION_BYTES,
    Lost,
    Partition,
    Positions,
    Taken,
)
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.kafka_python.failures import translated
from tidemill.pipelines.io.kafka.kafka_python.options import options
from tidemill.pipelines.io.messages import Messages

_FETCH_WAIT_MS: Final = 250
_AGAIN_S: Final = 0.05
_US_PER_MS: Final = 1_000
_COLUMNS: Final = operator.attrgetter("offset", "timestamp", "key", "value", "headers")


class KafkaPythonConsumer:
    """See `client.Consumer`.

    Args:
        connection: How to connect.
    """

    def __init__(self, connection: Connection) -> None:
        try:
            self._consumer = KafkaConsumer(
                **options(connection),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_partition_fetch_bytes=PARTITION_BYTES,
                fetch_max_bytes=AHEAD_BYTES,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise translated(error, "connecting a consumer") from error
        self._diverges: dict[Partition, int] = {}
        """From which offset on a partition holds other messages than were there."""

    def assign(self, positions: Positions) -> None:
        """See `client.Consumer.assign`."""
        self._consumer.assign([TopicPartition(*where) for where in positions])
        paused = self._consumer.paused()
        self._consumer.resume(*paused)
        # A partition that was read before has lost its position: all are sought again.
        for where, position in positions.items():
            self._consumer.seek(TopicPartition(*where), position)

    def take(self, wait_s: float, max_messages: int) -> Taken:
        """See `client.Consumer.take`."""
        if truncated := self._truncated():
            return Taken([], truncated)
        try:
            records = self._consumer.poll(timeout_ms=wait_s * 1_000, max_records=max_messages)
        except OffsetOutOfRangeError as error:
            offsets = error.args[0].items()
            return Taken([], {Partition(*where): Lost(at, False) for where, at in offsets})
        except LogTruncationError as error:
            for where, at in error.divergent_offsets.items():
                self._diverges[Partition(*where)] = 0 if at is None else at.offset
            return Taken([], self._truncated())
        except NoOffsetForPartitionError as error:
            raise translated(error, "reading") from error
        except RetriableError:
            # It tries again at the next call, which must not come at once.
            time.sleep(min(wait_s, _AGAIN_S))
            return Taken([], {})
        except KafkaError as error:
            raise translated(error, "reading") from error
        return Taken([_columns(where, found) for where, found in records.items()], {})

    def _truncated(self) -> dict[Partition, Lost]:
        """Return the partitions whose position is after what was lost.

        Its library tells of a truncation once, after as many assignments as came meanwhile, and
        does not look again: it is kept here for partitions that are not read now, and concerns no
        position that is before it.
        """
        assigned = self._consumer._subscription.assignment
        read = [where for where in self._diverges if TopicPartition(*where) in assigned]
        firsts = {where: self._diverges.pop(where) for where in read}
        return {
            where: Lost(self.position(where), truncated=True)
            for where, first in firsts.items()
            if self.position(where) > first
        }

    def position(self, partition: Partition) -> int:
        """See `client.Consumer.position`."""
        # Its own `position` looks at all partitions at each call: 11 ms for 64 of them.
        state = self._consumer._subscription.assignment[TopicPartition(*partition)]
        return int(state.position.offset)

    def pause(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.pause`."""
        self._consumer.pause(*(TopicPartition(*where) for where in partitions))

    def resume(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.resume`."""
        self._consumer.resume(*(TopicPartition(*where) for where in partitions))

    def close(self) -> None:
        """See `client.Consumer.close`."""
        self._consumer.close(autocommit=False, timeout_ms=1_000)


def _columns(where: TopicPartition, records: Sequence[Any]) -> Messages:
    """Turn records into columns; the loops run in C."""
    offsets, timestamps_ms, keys, values, headers = zip(*map(_COLUMNS, records), strict=True)
    return Messages(
        where.topic,
        where.partition,
        np.array(offsets, dtype=np.int64),
        np.array(timestamps_ms, dtype=np.int64) * _US_PER_MS,
        keys,
        values,
        headers,
    )
