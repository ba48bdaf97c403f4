"""A real Kafka broker for tests, with every kind of listener, and brokers of a test's own.

    def test_something(broker: TestBroker) -> None:
        topic = broker.new_topic(3, retention_ms=1_000)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap)

The fixtures stand in `tests/conftest.py`: `broker` is started at its first use, once in each test
process; `own_broker` makes one that a test may kill. Both end with the process, however that ends.

Clients connect with ``broker.client(Protocol.SASL_SSL, ALICE)``, keyword arguments of kafka-python,
or with ``broker.librdkafka(...)``, the configuration of confluent-kafka.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.certificates import Certificate
from tidemill.pipelines.servers.kafka_broker import KafkaBroker
from tidemill.pipelines.servers.kafka_settings import HOST, Mechanism, Protocol, User
from tidemill.pipelines.servers.ports import ReservedPort

ALICE: Final = User("alice", "alice-s3cret", Mechanism.PLAIN)
BOB: Final = User("bob", "bob-s3cret", Mechanism.SCRAM_SHA_256)
CAROL: Final = User("carol", "carol-s3cret", Mechanism.SCRAM_SHA_512)
USERS: Final = (ALICE, BOB, CAROL)

QUICK: Final[Mapping[str, str]] = {
    "log.initial.task.delay.ms": "500",
    "log.retention.check.interval.ms": "500",
    "log.cleaner.backoff.ms": "500",
    "log.segment.delete.delay.ms": "500",
}
"""Retention and compaction show within seconds, for topics that ask for them."""


class TestBroker(KafkaBroker):
    """A broker with a listener of every protocol, on free ports that stay its own until `close`.

    Args:
        folder: Where its data are.
        settings: Further settings of the broker.
    """

    __test__ = False

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._reserved = {protocol: ReservedPort(HOST) for protocol in Protocol}
        self.certificate = Certificate.made_in(folder, "broker")
        """Its certificate, which is its own authority: ``certificate.cert`` is the CA's file."""
        key_store = folder / "broker.pem"
        key_store.write_bytes(
            self.certificate.key.read_bytes() + self.certificate.cert.read_bytes()
        )
        super().__init__(
            folder,
            {protocol: reserved.port for protocol, reserved in self._reserved.items()},
            USERS,
            key_store,
            {**QUICK, **(settings or {})},
        )

    def client(self, protocol: Protocol, user: User | None = None) -> dict[str, Any]:
        """Return what kafka-python's clients need to connect to a listener."""
        known: dict[str, Any] = {
            "bootstrap_servers": self.address(protocol),
            "security_protocol": protocol.value,
        }
        if protocol in (Protocol.SSL, Protocol.SASL_SSL):
            known["ssl_cafile"] = str(self.certificate.cert)
        if user is not None:
            known["sasl_mechanism"] = user.mechanism.value
            known["sasl_plain_username"] = user.name
            known["sasl_plain_password"] = user.password
        return known

    def librdkafka(self, protocol: Protocol, user: User | None = None) -> dict[str, Any]:
        """Return what confluent-kafka's clients need to connect to a listener."""
        known: dict[str, Any] = {
            "bootstrap.servers": self.address(protocol),
            "security.protocol": protocol.value,
        }
        if protocol in (Protocol.SSL, Protocol.SASL_SSL):
            known["ssl.ca.location"] = str(self.certificate.cert)
        if user is not None:
            known["sasl.mechanism"] = user.mechanism.value
            known["sasl.username"] = user.name
            known["sasl.password"] = user.password
        return known

    def new_topic(self, partitions: int = 1, **config: object) -> str:
        """Make a topic with a name that no other has.

        Args:
            partitions: How many partitions.
            config: Settings of the topic; ``retention_ms=1000`` is Kafka's ``retention.ms``.

        Returns:
            Its name.
        """
        from kafka.admin import KafkaAdminClient, NewTopic  # every test process reads this module

        name = f"topic-{secrets.token_hex(6)}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        finally:
            admin.close()
        return name

    def delete_messages(self, topic: str) -> None:
        """Delete all messages that a topic has, as retention would."""
        from kafka import TopicPartition
        from kafka.admin import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            described = admin.describe_topics([topic])[0]
            partitions = range(len(described["partitions"]))
            admin.delete_records({TopicPartition(topic, n): -1 for n in partitions})
        finally:
            admin.close()

    def add_partitions(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions: so many in all."""
        from kafka.admin import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_partitions({topic: partitions})
        finally:
            admin.close()

    def close(self) -> None:
        """Kill the broker and give up its ports."""
        self.resume_if_paused()
        self.kill()
        for reserved in self._reserved.values():
            reserved.close()

    def resume_if_paused(self) -> None:
        """Let the broker continue, if it runs."""
        if self.is_alive():
            self.resume()
