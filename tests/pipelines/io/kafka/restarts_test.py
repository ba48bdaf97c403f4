"""A broker that is killed, started again or paused: nothing is lost or doubled, waits are bounded.

One broker for all: each test leaves it running.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread, Timer

import pytest

from tests.pipelines.io.kafka.cluster import (
    connection_to,
    new_topic,
    offsets,
    poll_for,
    read_to,
    read_until,
    settled,
    values,
)
from tests.pipelines.io.kafka.conftest import NewReader, NewWriter
from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import BrokerError, BrokerUnreachable, MessagesNotWritten
from tidemill.pipelines.io.kafka.client import Client, Partition
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.writer import Writer


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A broker of this module's own, which its tests kill."""
    started = TestBroker(tmp_path_factory.mktemp("killed"))
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture(autouse=True)
def running(broker: TestBroker) -> None:
    """A test that failed may have left the broker killed."""
    if not broker.is_alive():
        broker.start()


@pytest.fixture
def connection(broker: TestBroker) -> Connection:
    """How to connect to it."""
    return connection_to(broker)


def test_the_first_commit_of_all_waits_for_a_coordinator(
    broker: TestBroker, client: Client, connection: Connection
) -> None:
    """It is the first test, since the broker makes the topic of offsets for it."""
    topic = new_topic(broker, 1)
    asker = client.asker(connection)
    asker.commit(f"group-{topic}", {Partition(topic, 0): 0})
    asker.close()


def test_readers_and_writers_go_on_when_a_killed_broker_comes_back(
    broker: TestBroker, new_reader: NewReader, new_writer: NewWriter
) -> None:
    topic = new_topic(broker, 2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    writer = new_writer()
    transactional = new_writer(transactional_id=topic)
    for number in range(100):
        writer.send(topic, number % 2, None, b"%d" % number)
    writer.flush()
    transactional.begin()
    transactional.send(topic, 1, None, b"open")
    transactional.flush()
    reader, impatient = new_reader(), new_reader(patience_s=0.5, answer_s=0.5)
    reader.assign({zero: 0, one: 0})
    impatient.assign({zero: 50})
    polled = [*reader.poll(5.0, max_messages=10)]
    broker.kill()
    # What was read ahead is given, then nothing, and no error.
    polled += poll_for(reader, 1.0)
    with pytest.raises(BrokerUnreachable, match=r"connection is refused.*for 0\.5 s"):
        poll_for(impatient, 60.0)
    with pytest.raises(BrokerUnreachable):
        impatient.ends()
    restart = Thread(target=broker.start)
    restart.start()
    writer.send(topic, 0, None, b"while it is away")
    writer.flush()
    restart.join()
    started_s = time.monotonic()
    while not offsets(polled) or (0, 50) not in offsets(polled):
        polled += reader.poll(0.2)
        assert time.monotonic() - started_s < 30.0, "the broker that came back was not noticed"
    try:
        transactional.commit()
        opened = [b"open"]
    except BrokerError:
        opened = []
        transactional.close()
        new_writer(transactional_id=topic)
    polled += read_to(reader, settled(reader))
    expected = [(0, at) for at in range(51)] + [(1, at) for at in range(50 + len(opened))]
    assert sorted(offsets(polled)) == expected
    assert [value for value in values(polled) if value == b"open"] == opened


def test_nothing_happens_to_readers_and_writers_of_a_broker_that_is_paused(
    broker: TestBroker, new_reader: NewReader, new_writer: NewWriter
) -> None:
    topic = new_topic(broker)
    where = Partition(topic, 0)
    writer = new_writer(transactional_id=topic)
    reader = new_reader()
    reader.assign({where: 0})
    writer.begin()
    writer.send(topic, 0, None, b"before")
    writer.flush()
    broker.pause()
    resume = Timer(3.0, broker.resume)
    resume.start()
    assert poll_for(reader, 0.5) == []
    writer.send(topic, 0, None, b"during")
    writer.commit()
    resume.join()
    assert values(read_until(reader, 2)) == [b"before", b"during"]
    assert settled(reader) == {where: 3}


def test_a_writer_gives_up_in_time_and_says_so(
    broker: TestBroker, new_writer: NewWriter, new_reader: NewReader
) -> None:
    topic = new_topic(broker)
    writer = new_writer(give_up_s=1.0)
    transactional = new_writer(transactional_id=topic, give_up_s=1.0)
    for opened in (writer, transactional):
        warm_up(opened, topic, opened is transactional)
    transactional.begin()
    broker.pause()
    try:
        began_s = time.monotonic()
        # Both wait at the same time.
        writer.send(topic, 0, None, b"v")
        transactional.send(topic, 0, None, b"v")
        for call in (writer.flush, transactional.commit):
            with pytest.raises(MessagesNotWritten):
                call()
        assert time.monotonic() - began_s < 30.0
    finally:
        broker.resume()
    # Another writer with the same id can go on.
    again = new_writer(transactional_id=topic)
    warm_up(again, topic, True)
    reader = new_reader()
    reader.assign({Partition(topic, 0): 0})
    assert values(read_to(reader, settled(reader))).count(b"warm") == 3


def warm_up(writer: Writer, topic: str, in_transaction: bool) -> None:
    """Write one message, so that everything is connected."""
    if in_transaction:
        writer.begin()
    writer.send(topic, 0, None, b"warm")
    writer.commit() if in_transaction else writer.flush()
