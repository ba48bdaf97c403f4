"""confluent-kafka's administration client behind the port."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from tidemill.features.errors import BrokerError, BrokerUnreachable, NoSuchTopic
from tidemill.pipelines.io.kafka.client import ASK_MS, Ends, Partition, Positions, Topic
from tidemill.pipelines.io.kafka.confluent.failures import translated
from tidemill.pipelines.io.kafka.confluent.options import options
from tidemill.pipelines.io.kafka.connection import Connection

_REQUEST_S: Final = ASK_MS / 1_000
_Answer = TypeVar("_Answer")


class ConfluentAsker:
    """See `client.Asker`.

    Args:
        connection: How to connect.
    """

    def __init__(self, connection: Connection) -> None:
        self._admin = AdminClient(options(connection))

    def topics(self, names: Collection[str]) -> dict[str, Topic]:
        """See `client.Asker.topics`."""
        if not names:
            return {}
        doing = f"asking for the topics {', '.join(sorted(names))}"
        described = _asked(
            lambda: self._admin.describe_topics(
                TopicCollection(list(names)), request_timeout=_REQUEST_S
            ),
            doing,
        )
        found = {}
        for name, topic in described.items():
            numbers = sorted(part.id for part in topic.partitions)
            found[name] = Topic(str(topic.topic_id), tuple(numbers))
        return found

    def ends(self, partitions: Collection[Partition]) -> dict[Partition, Ends]:
        """See `client.Asker.ends`."""
        # A transaction that ends in between must not put the stable end behind the high watermark.
        stable = self._offsets(partitions, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
        high = self._offsets(partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)
        return {where: Ends(stable[where], high[where]) for where in partitions}

    def beginnings(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """See `client.Asker.beginnings`."""
        return self._offsets(partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)

    def offsets_at(self, partitions: Collection[Partition], time_ms: int) -> dict[Partition, int]:
        """See `client.Asker.offsets_at`."""
        spec = OffsetSpec.for_timestamp(time_ms)
        return self._offsets(partitions, spec, IsolationLevel.READ_COMMITTED)

    def _offsets(
        self, partitions: Collection[Partition], what: OffsetSpec, isolation: IsolationLevel
    ) -> dict[Partition, int]:
        if not partitions:
            return {}
        asked = {TopicPartition(*where): what for where in partitions}
        try:
            found = _asked(
                lambda: self._admin.list_offsets(
                    asked, isolation_level=isolation, request_timeout=_REQUEST_S
                ),
                "asking for offsets of partitions",
            )
        except (BrokerUnreachable, NoSuchTopic):
            # It says only that it found no leader.
            self._check(partitions)
            raise
        return {Partition(at.topic, at.partition): int(info.offset) for at, info in found.items()}

    def _check(self, partitions: Collection[Partition]) -> None:
        topics = self.topics({where.topic for where in partitions})
        for where in partitions:
            if where.partition not in topics[where.topic].partitions:
                raise NoSuchTopic(
                    f"the topic {where.topic!r} has no partition {where.partition}; correct it"
                )

    def commit(self, group: str, positions: Positions) -> None:
        """See `client.Asker.commit`."""
        doing = f"committing positions of the group {group!r}"
        offsets = [TopicPartition(*where, position) for where, position in positions.items()]
        request = [ConsumerGroupTopicPartitions(group, offsets)]
        done = _asked(
            lambda: self._admin.alter_consumer_group_offsets(request, request_timeout=_REQUEST_S),
            doing,
        )
        for result in done.values():
            for partition in result.topic_partitions:
                if partition.error is not None:
                    raise translated(partition.error, doing)

    def largest_message(self, topic: str) -> int | None:
        """See `client.Asker.largest_message`."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            (settings,) = _asked(
                lambda: self._admin.describe_configs([resource], request_timeout=_REQUEST_S),
                "asking for a limit",
            ).values()
        except BrokerError:
            return None
        found = settings.get("max.message.bytes")
        return None if found is None else int(found.value)

    def close(self) -> None:
        """See `client.Asker.close`; it disconnects when it is collected."""


def _asked(ask: Callable[[], dict[Any, Future[_Answer]]], doing: str) -> dict[Any, _Answer]:
    """Ask, and wait for every answer."""
    try:
        return {key: answer.result() for key, answer in ask().items()}
    except KafkaException as error:
        raise translated(error, doing) from error
