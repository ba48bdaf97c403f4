"""What the tests of Kafka's clients do to a cluster, and how they read it to its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, TopicPartition

from tests.support.kafka_broker import TestBroker
from tidemill.pipelines.io.kafka.client import Consumer, Partition
from tidemill.pipelines.io.kafka.connection import Connection, Mechanism, Sasl, Tls
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.servers.kafka_settings import Protocol, User

WAIT_S = 60.0


def connection_to(
    broker: TestBroker,
    protocol: Protocol = Protocol.PLAINTEXT,
    user: User | None = None,
    ca: Path | None = None,
) -> Connection:
    """Return how to connect to a listener; the broker's own certificate is trusted by default."""
    tls = None
    if protocol in (Protocol.SSL, Protocol.SASL_SSL):
        tls = Tls(ca=ca or broker.certificate.cert)
    sasl = None
    if user is not None:
        sasl = Sasl(Mechanism(user.mechanism.value), user.name, user.password)
    return Connection((broker.address(protocol),), tls, sasl)


@contextmanager
def administrator(broker: TestBroker) -> Iterator[Any]:
    """Lend kafka-python's administration client."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        yield admin
    finally:
        admin.close()


def new_topic(broker: TestBroker, partitions: int = 1, **config: object) -> str:
    """Make a topic and wait until the broker knows it, which takes a moment."""
    name = broker.new_topic(partitions, **config)
    with administrator(broker) as admin:
        admin.wait_for_topics([name])
    return name


def delete_before(broker: TestBroker, where: Partition, offset: int) -> None:
    """Delete a partition's messages before an offset, as its retention does."""
    with administrator(broker) as admin:
        admin.delete_records({TopicPartition(*where): offset})


def values(polled: Iterable[Messages]) -> list[bytes | None]:
    """Return all values, in order."""
    return [value for messages in polled for value in messages.values]


def offsets(polled: Iterable[Messages]) -> list[tuple[int, int]]:
    """Return the partition and offset of each message, in order."""
    return [(part.partition, int(offset)) for part in polled for offset in part.offsets]


def read_until(reader: Reader, count: int, wait_s: float = WAIT_S) -> list[Messages]:
    """Poll until there are so many messages, and not longer than a deadline."""
    polled: list[Messages] = []
    deadline_s = time.monotonic() + wait_s
    while sum(map(len, polled)) < count:
        assert time.monotonic() < deadline_s, f"only {sum(map(len, polled))} of {count} messages"
        polled += reader.poll(0.2)
    return polled


def take_until(consumer: Consumer, count: int, wait_s: float = WAIT_S) -> list[Messages]:
    """Take from a client until there are so many messages, and not longer than a deadline."""
    taken: list[Messages] = []
    deadline_s = time.monotonic() + wait_s
    while sum(map(len, taken)) < count:
        assert time.monotonic() < deadline_s, f"only {sum(map(len, taken))} of {count} messages"
        taken += consumer.take(0.2, count).messages
    return taken


def settled(reader: Reader) -> dict[Partition, int]:
    """Return where partitions end, once the markers of committed transactions are written."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        ends = reader.ends()
        if all(end.stable == end.high for end in ends.values()):
            return {where: end.stable for where, end in ends.items()}
        assert time.monotonic() < deadline_s, ends
        time.sleep(0.05)


def poll_for(reader: Reader, seconds: float, given: list[Messages] | None = None) -> list[Messages]:
    """Poll for a time, and collect what is given before an error."""
    given = [] if given is None else given
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        given += reader.poll(0.2)
    return given


def read_to(reader: Reader, ends: dict[Partition, int], wait_s: float = WAIT_S) -> list[Messages]:
    """Poll until the positions are these, and not longer than a deadline."""
    polled: list[Messages] = []
    deadline_s = time.monotonic() + wait_s
    while any(reader.positions()[where] < end for where, end in ends.items()):
        assert time.monotonic() < deadline_s, (reader.positions(), ends)
        polled += reader.poll(0.2)
    return polled
