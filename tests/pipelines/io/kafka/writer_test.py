"""Writing: nothing is lost without an error, and a writer that is replaced is told so by name."""

from __future__ import annotations

import pytest

from tests.pipelines.io.kafka.cluster import (
    new_topic,
    offsets,
    read_to,
    read_until,
    settled,
    values,
)
from tests.pipelines.io.kafka.conftest import NewWriter
from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import (
    FencedWriter,
    InputError,
    MessageTooLarge,
    NoSuchTopic,
)
from tidemill.pipelines.config.sink_section import COMPRESSIONS
from tidemill.pipelines.io.kafka.choosing import CLIENTS, choose_client
from tidemill.pipelines.io.kafka.client import Client, Partition, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer


def test_a_key_chooses_the_partition_that_javas_client_chooses(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 7)
    # By org.apache.kafka.common.utils.Utils.murmur2, as its own tests give it.
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key in hashes:
        writer.send(topic, None, key, b"")
    writer.flush()
    reader.assign({Partition(topic, number): 0 for number in range(7)})
    found = {
        key: messages.partition
        for messages in read_until(reader, len(hashes))
        for key in messages.keys
    }
    assert found == {key: (hash_ & 0x7FFFFFFF) % 7 for key, hash_ in hashes.items()}


def test_without_a_key_every_message_goes_somewhere(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 3)
    for number in range(300):
        writer.send(topic, None, None, b"%d" % number)
    writer.flush()
    reader.assign({Partition(topic, number): 0 for number in range(3)})
    read = [int(value or b"") for value in values(read_until(reader, 300))]
    assert sorted(read) == list(range(300))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_messages_are_read_by_every_client(
    broker: TestBroker, client: Client, connection: Connection, compression: str
) -> None:
    topic = new_topic(broker)
    sent = [b"%d" % number * 100 for number in range(50)]
    with Writer(client, connection, ProducerSettings(compression=compression)) as writer:
        for value in sent:
            writer.send(topic, 0, b"key", value)
        writer.flush()
    for other in CLIENTS:
        with Reader(choose_client(other), connection) as reader:
            reader.assign({Partition(topic, 0): 0})
            assert values(read_until(reader, 50)) == sent


def test_a_message_over_the_writers_limit_is_refused(broker: TestBroker, writer: Writer) -> None:
    topic = new_topic(broker)
    with pytest.raises(MessageTooLarge, match=r"has 10000\d\d bytes, more than max_message_bytes"):
        writer.send(topic, 0, b"k", b"v" * 1_000_000)
    writer.send(topic, 0, b"k", b"v" * 999_000)
    writer.flush()


def test_a_message_over_the_topics_limit_is_an_error_at_the_flush(
    broker: TestBroker, writer: Writer, reader: Reader
) -> None:
    topic = new_topic(broker, max_message_bytes=5_000)
    writer.send(topic, 0, None, b"v" * 20_000)
    with pytest.raises(MessageTooLarge, match=r"200\d\d bytes .* max\.message\.bytes is 5000;"):
        writer.flush()
    writer.send(topic, 0, None, b"small")
    writer.flush()
    reader.assign({Partition(topic, 0): 0})
    assert values(read_until(reader, 1)) == [b"small"]


def test_a_transaction_with_a_message_that_failed_is_not_committed(
    broker: TestBroker, new_writer: NewWriter, reader: Reader
) -> None:
    topic = new_topic(broker, 2, max_message_bytes=5_000)
    writer = new_writer(transactional_id=topic)
    writer.begin()
    writer.send(topic, 1, None, b"with it")
    writer.flush()
    writer.send(topic, 0, None, b"v" * 20_000)
    with pytest.raises(MessageTooLarge):
        writer.commit()
    writer.abort()
    writer.begin()
    writer.send(topic, 0, None, b"later")
    writer.commit()
    reader.assign({Partition(topic, 0): 0, Partition(topic, 1): 0})
    assert values(read_until(reader, 1)) == [b"later"]
    assert read_to(reader, settled(reader)) == []


def test_messages_that_are_wrong_are_refused(broker: TestBroker, writer: Writer) -> None:
    topic = new_topic(broker)
    with pytest.raises(InputError, match="neither key nor value"):
        writer.send(topic, 0, None, None)
    with pytest.raises(InputError, match="the header 'h' of a message"):
        writer.send(topic, 0, None, b"", [("h", None)])
    for timestamp_us in (0, 999, -1):
        with pytest.raises(InputError, match="a millisecond after 1970"):
            writer.send(topic, 0, None, b"", timestamp_us=timestamp_us)
    with pytest.raises(NoSuchTopic, match="nowhere"):
        writer.send("nowhere", None, None, b"")
    with pytest.raises(NoSuchTopic, match="has no partition 1, only 1"):
        writer.send(topic, 1, None, b"")
    for call in (writer.begin, writer.commit, writer.abort):
        with pytest.raises(InputError, match="no transactional id"):
            call()


def test_a_writer_that_is_replaced_is_fenced(
    broker: TestBroker, new_writer: NewWriter, reader: Reader
) -> None:
    topic = new_topic(broker)
    first = new_writer(transactional_id=topic)
    first.begin()
    first.send(topic, 0, None, b"of the first")
    first.flush()
    second = new_writer(transactional_id=topic)
    with pytest.raises(FencedWriter, match="fenced and has to end"):
        first.commit()
    with pytest.raises(FencedWriter):
        send_and_commit(first, topic)
    second.begin()
    second.send(topic, 0, None, b"of the second")
    second.commit()
    reader.assign({Partition(topic, 0): 0})
    assert values(read_to(reader, settled(reader))) == [b"of the second"]


def send_and_commit(writer: Writer, topic: str) -> None:
    """Do all that a transaction needs."""
    writer.begin()
    writer.send(topic, 0, None, b"again")
    writer.commit()


def test_a_writer_that_is_replaced_is_fenced_when_it_flushes(
    broker: TestBroker, new_writer: NewWriter
) -> None:
    topic = new_topic(broker)
    first = new_writer(transactional_id=topic)
    first.begin()
    new_writer(transactional_id=topic)
    first.send(topic, 0, None, b"v")
    with pytest.raises(FencedWriter, match="fenced and has to end"):
        first.flush()


def test_one_client_fences_the_other(
    broker: TestBroker, new_writer: NewWriter, connection: Connection
) -> None:
    topic = new_topic(broker)
    first = new_writer(transactional_id=topic)
    for name in CLIENTS:
        other = Writer(choose_client(name), connection, ProducerSettings(topic))
        send_and_commit(other, topic)
        other.close()
    with pytest.raises(FencedWriter):
        send_and_commit(first, topic)


def test_a_transaction_spans_topics_and_partitions(
    broker: TestBroker, new_writer: NewWriter, reader: Reader
) -> None:
    one, other = new_topic(broker, 2), new_topic(broker)
    writer = new_writer(transactional_id=one)
    places = [Partition(one, 0), Partition(one, 1), Partition(other, 0)]
    writer.begin()
    for where in places:
        writer.send(where.topic, where.partition, None, b"v")
    writer.flush()
    reader.assign(dict.fromkeys(places, 0))
    assert reader.poll(0.3) == []
    writer.commit()
    assert sorted(offsets(read_until(reader, 3))) == [(0, 0), (0, 0), (1, 0)]
