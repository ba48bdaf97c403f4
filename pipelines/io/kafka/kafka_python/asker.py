"""kafka-python's administration client behind the port."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
    for_code,
)
from kafka.protocol.consumer import IsolationLevel, OffsetSpec
from kafka.structs import OffsetAndMetadata

from tidemill.features.errors import BrokerError
from tidemill.pipelines.io.kafka.client import ASK_MS, Ends, Partition, Positions, Topic
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.kafka_python.failures import translated
from tidemill.pipelines.io.kafka.kafka_python.options import options

_COORDINATOR_S: Final = 10.0
_AGAIN_S: Final = 0.2
_NO_COORDINATOR: Final = (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
)
_Answer = TypeVar("_Answer")


class KafkaPythonAsker:
    """See `client.Asker`.

    Args:
        connection: How to connect.
    """

    def __init__(self, connection: Connection) -> None:
        settings = {**options(connection), "request_timeout_ms": ASK_MS}
        self._admin = _asked(lambda: KafkaAdminClient(**settings), "connecting to ask for topics")

    def topics(self, names: Collection[str]) -> dict[str, Topic]:
        """See `client.Asker.topics`."""
        if not names:
            return {}
        doing = f"asking for the topics {', '.join(sorted(names))}"
        described = _asked(lambda: self._admin.describe_topics(list(names)), doing)
        found = {}
        for topic in described:
            if topic["error_code"]:
                name = topic["name"]
                raise translated(for_code(topic["error_code"])(), f"asking for the topic {name!r}")
            numbers = sorted(part["partition_index"] for part in topic["partitions"])
            found[topic["name"]] = Topic(str(topic["topic_id"]), tuple(numbers))
        return found

    def ends(self, partitions: Collection[Partition]) -> dict[Partition, Ends]:
        """See `client.Asker.ends`."""
        latest = OffsetSpec.LATEST
        # A transaction that ends in between must not put the stable end behind the high watermark.
        stable = self._offsets(partitions, latest, IsolationLevel.READ_COMMITTED)
        high = self._offsets(partitions, latest, IsolationLevel.READ_UNCOMMITTED)
        return {where: Ends(stable[where], high[where]) for where in partitions}

    def beginnings(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """See `client.Asker.beginnings`."""
        return self._offsets(partitions, OffsetSpec.EARLIEST, IsolationLevel.READ_UNCOMMITTED)

    def offsets_at(self, partitions: Collection[Partition], time_ms: int) -> dict[Partition, int]:
        """See `client.Asker.offsets_at`."""
        return self._offsets(partitions, time_ms, IsolationLevel.READ_COMMITTED)

    def _offsets(
        self, partitions: Collection[Partition], what: Any, isolation: IsolationLevel
    ) -> dict[Partition, int]:
        asked = {TopicPartition(*where): what for where in partitions}
        found = _asked(
            lambda: self._admin.list_partition_offsets(asked, isolation),
            "asking for offsets of partitions",
        )
        return {where: int(found[TopicPartition(*where)].offset) for where in partitions}

    def commit(self, group: str, positions: Positions) -> None:
        """See `client.Asker.commit`."""
        doing = f"committing positions of the group {group!r}"
        offsets = {
            TopicPartition(*where): OffsetAndMetadata(position, "", -1)
            for where, position in positions.items()
        }
        results = _asked(lambda: self._alter(group, offsets), doing)
        for where, result in results.items():
            if result.errno:
                raise translated(result(f"{where.topic} {where.partition}"), doing)

    def _alter(self, group: str, offsets: dict[TopicPartition, OffsetAndMetadata]) -> Any:
        """Ask again while the cluster has no coordinator: it makes one at the first commit of all.

        Other calls of the library do so themselves.
        """
        deadline_s = time.monotonic() + _COORDINATOR_S
        while True:
            try:
                return self._admin.alter_group_offsets(group, offsets)
            except _NO_COORDINATOR:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_AGAIN_S)

    def largest_message(self, topic: str) -> int | None:
        """See `client.Asker.largest_message`."""
        name = "max.message.bytes"
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, [name])
        try:
            found = _asked(lambda: self._admin.describe_configs([resource]), "asking for a limit")
        except BrokerError:
            return None
        return _value(found, name)

    def close(self) -> None:
        """See `client.Asker.close`."""
        self._admin.close()


def _value(found: Any, name: str) -> int | None:
    """Find a setting's value wherever the answer's dictionaries and lists have it."""
    if isinstance(found, dict):
        if name in found:
            held = found[name]
            return int(held["value"] if isinstance(held, dict) else held)
        found = list(found.values())
    if isinstance(found, list):
        return next((value for part in found if (value := _value(part, name)) is not None), None)
    return None


def _asked(ask: Callable[[], _Answer], doing: str) -> _Answer:
    try:
        return ask()
    except KafkaError as error:
        raise translated(error, doing) from error
