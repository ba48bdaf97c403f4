"""A real broker: every listener, what survives a kill, what a failed start says."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.kafka_broker import ALICE, BOB, CAROL, TestBroker
from tidemill.features.errors import ForeignServer, ServerNotStarted
from tidemill.pipelines.servers.kafka_broker import KafkaBroker
from tidemill.pipelines.servers.kafka_probe import cluster_at
from tidemill.pipelines.servers.kafka_settings import HOST, Protocol, User
from tidemill.pipelines.servers.processes import running_process

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
            sent.get(timeout=60)
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
    producer.send(topic, b"hello").get(timeout=60)
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


def test_what_was_acknowledged_survives_a_kill(own_broker: Callable[..., TestBroker]) -> None:
    # It is let in again that soon after it was killed.
    broker = own_broker({"broker.session.timeout.ms": "1000"})
    assert broker.start() > 0.0
    cluster, topic = broker.cluster_id, broker.new_topic()
    send(broker, topic, b"1", b"2")
    broker.kill()
    assert not broker.is_alive()
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 5.0) is None
    with pytest.raises(ServerNotStarted, match="does not run"):
        broker.pause()
    broker.start()
    with pytest.raises(ServerNotStarted, match="runs already"):
        broker.start()
    assert broker.cluster_id == cluster
    assert read(broker, topic) == [b"1", b"2"]
    broker.pause()
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 0.5) == ""
    broker.resume()
    send(broker, topic, b"3")
    assert read(broker, topic) == [b"1", b"2", b"3"]


def test_a_broker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from tests.support.kafka_broker import TestBroker
        import time

        broker = TestBroker(Path({str(tmp_path)!r}))
        broker.start(lambda process: print(process.pid, flush=True))
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        started = running_process(int(owner.stdout.readline()))
        assert started is not None
        time.sleep(1.0)  # between its start and its answer it is guarded too
        owner.kill()
    deadline_s = time.monotonic() + 60
    while started.is_alive():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_port_that_is_taken_is_named_and_its_owner_is_left_alone(
    broker: TestBroker, tmp_path: Path
) -> None:
    port = broker.ports[Protocol.PLAINTEXT]
    assert broker.process is not None
    named = rf"port {port} of 127\.0\.0\.1: process {broker.process.pid} \(java \.\.\. .*\) does"
    with pytest.raises(ForeignServer, match=named):
        KafkaBroker(tmp_path, port).start()
    assert broker.is_alive()
    assert list(tmp_path.iterdir()) == []


def test_a_broker_that_cannot_start_says_why(own_broker: Callable[..., TestBroker]) -> None:
    broker = own_broker({"log.cleaner.threads": "none"})
    with pytest.raises(ServerNotStarted, match=r"(?s)cannot make its data.*log\.cleaner\.threads"):
        broker.start()
    assert not broker.is_alive()
    broker = own_broker()
    (broker.folder / "data").mkdir()
    (broker.folder / "data" / "meta.properties").write_text("cluster.id=abc\nversion=1\n")
    with pytest.raises(ServerNotStarted, match=r"(?s)Kafka ended while it started; its log .*node"):
        broker.start()
    assert not broker.is_alive()


def test_a_broker_needs_a_port_to_be_asked_on_and_a_key_for_tls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a PLAINTEXT port"):
        KafkaBroker(tmp_path, {Protocol.SSL: 1}, key_store=tmp_path)
    with pytest.raises(ValueError, match="needs a key store"):
        KafkaBroker(tmp_path, {Protocol.PLAINTEXT: 1, Protocol.SASL_SSL: 2})


def test_passwords_are_for_this_user_only(broker: TestBroker) -> None:
    settings = broker.folder / "server.properties"
    assert ALICE.password in settings.read_text()
    assert settings.stat().st_mode & 0o077 == 0


def test_the_broker_keeps_records_of_any_age(broker: TestBroker) -> None:
    topic = broker.new_topic(segment_ms=1_000)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    long_ago_ms = 1_357_000_000_000
    producer.send(topic, b"2013", timestamp_ms=long_ago_ms).get(timeout=60)
    time.sleep(1.1)
    producer.send(topic, b"2014", timestamp_ms=long_ago_ms + 31_536_000_000).get(timeout=60)
    producer.close()
    time.sleep(1.5)  # the broker looks for old segments twice a second
    assert read(broker, topic) == [b"2013", b"2014"]


def test_a_topic_that_asks_for_it_loses_its_oldest_records(broker: TestBroker) -> None:
    topic = broker.new_topic(retention_ms=1, segment_ms=1_000)
    send(broker, topic, b"gone")
    deadline_s = time.monotonic() + 60
    while read(broker, topic) != []:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
