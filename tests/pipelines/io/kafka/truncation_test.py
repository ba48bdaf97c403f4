"""What kafka-python tells of messages that were lost with a broker, whenever it tells it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kafka import TopicPartition
from kafka.errors import LogTruncationError
from kafka.structs import OffsetAndMetadata

from tests.pipelines.io.kafka.cluster import new_topic
from tests.support.kafka_broker import TestBroker
from tidemill.pipelines.io.kafka.client import Lost, Partition, Taken
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.kafka_python.consumer import KafkaPythonConsumer


@pytest.fixture
def consumer(connection: Connection) -> Iterator[KafkaPythonConsumer]:
    """A consumer that looks for what is lost at its own times."""
    made = KafkaPythonConsumer(connection)
    yield made
    made.close()


@pytest.fixture
def topic(broker: TestBroker) -> str:
    """Two partitions, which are empty."""
    return new_topic(broker, partitions=2)


def tell(consumer: KafkaPythonConsumer, topic: str, partition: int, first: int | None) -> None:
    """Let the client find that a partition holds other messages from an offset on."""
    where = TopicPartition(topic, partition)
    found = None if first is None else OffsetAndMetadata(first, "", 0)
    consumer._consumer._fetcher._cached_log_truncation = LogTruncationError({where: found})


@pytest.mark.parametrize("first", [2, None])
def test_a_position_after_what_was_lost_is_lost(
    consumer: KafkaPythonConsumer, topic: str, first: int | None
) -> None:
    consumer.assign({Partition(topic, 0): 3})
    tell(consumer, topic, 0, first)
    assert consumer.take(0.1, 10) == Taken([], {Partition(topic, 0): Lost(3, truncated=True)})


@pytest.mark.parametrize("first", [0, None])
def test_what_was_found_of_an_earlier_position_concerns_no_later_assignment(
    consumer: KafkaPythonConsumer, topic: str, first: int | None
) -> None:
    consumer.assign({Partition(topic, 0): 3})
    tell(consumer, topic, 0, first)
    consumer.assign({Partition(topic, 0): 0})
    for _ in range(2):
        assert consumer.take(0.1, 10) == Taken([], {})


def test_what_was_lost_while_a_partition_was_left_out_is_told_when_it_is_read_again(
    consumer: KafkaPythonConsumer, topic: str
) -> None:
    consumer.assign({Partition(topic, 0): 3, Partition(topic, 1): 0})
    tell(consumer, topic, 0, 2)
    consumer.assign({Partition(topic, 1): 0})
    assert consumer.take(0.1, 10) == Taken([], {})
    consumer.assign({Partition(topic, 0): 3, Partition(topic, 1): 0})
    assert consumer.take(0.1, 10) == Taken([], {Partition(topic, 0): Lost(3, truncated=True)})
