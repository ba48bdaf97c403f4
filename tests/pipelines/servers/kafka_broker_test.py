"""A real broker: every listener, what survives a kill, what a failed start says."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.kafka_broker import ALICE, BOB, CAROL, TestBroker
from tidemill.pipelines.servers.kafka_probe import cluster_at
from tidemill.pipelines.servers.kafka_settings import HOST, Protocol, User

WAYS = [
    (Protocol.PLAINTEXT, None),
    (Protocol.SSL, None),
    *[(Protocol.SASL_PLAINTEXT, user) for user in (ALICE, BOB, CAROL)],
    *[(Protocol.SASL_SSL, user) for user in (ALICE, BOB, CAROL)],
]


def send(broker: TestBroker, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    try:
        for sent in [producer.send(topic, value) for value in values]:
            sent.get(timeout=30)
    finally:
        producer.close()


def read(broker: TestBroker, topic: str) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    try:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        (end,) = consumer.end_offsets([partition]).values()
        found: list[bytes] = []
        while consumer.position(partition) < end:
            for records in consumer.poll(timeout_ms=500).values():
                found += [record.value for record in records]
        return found
    finally:
        consumer.close()


@pytest.mark.parametrize(
    ("protocol", "user"), WAYS, ids=lambda way: way.name if isinstance(way, User) else str(way)
)
def test_a_message_goes_through_every_listener_with_both_clients(
    broker: TestBroker, protocol: Protocol, user: User | None
) -> None:
    topic = broker.new_topic()
    producer = KafkaProducer(**broker.client(protocol, user))
    producer.send(topic, b"hello").get(timeout=30)
    producer.close()
    consumer = Consumer(
        {
            **broker.librdkafka(protocol, user),
            "group.id": secrets.token_hex(4),
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    message = consumer.poll(30.0)
    consumer.close()
    assert message is not None
    assert message.error() is None
    assert message.value() == b"hello"


def test_what_was_acknowledged_survives_a_kill_and_a_stop(
    own_broker: Callable[..., TestBroker],
) -> None:
    broker = own_broker()
    broker.start()
    cluster, topic = broker.cluster_id, broker.new_topic()
    send(broker, topic, b"1", b"2")
    broker.kill()
    assert not broker.is_alive()
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 5.0) is None
    broker.start()
    send(broker, topic, b"3")
    broker.stop()
    assert not broker.is_alive()
    broker.start()
    assert broker.cluster_id == cluster
    assert read(broker, topic) == [b"1", b"2", b"3"]
    broker.pause()
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 0.5) == ""
    broker.resume()
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 30.0) == cluster
