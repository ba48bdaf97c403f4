"""Reading: columns, bounds, positions, ends and times, by both clients from a real broker."""

from __future__ import annotations

import time
from contextlib import closing
from random import Random

import pytest
from confluent_kafka import Producer

from tests.pipelines.io.kafka.cluster import (
    administrator,
    new_topic,
    offsets,
    read_to,
    read_until,
    take_until,
    values,
)
from tests.pipelines.io.kafka.conftest import NewReader
from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import InputError, NoSuchTopic, PositionOutOfRange
from tidemill.pipelines.io.kafka.client import Client, Ends, Partition
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer

SECOND_US = 1_000_000
LONG_S = 8.0
"""What waits in vain takes longer than this."""


def test_every_part_of_a_message_is_read(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    writer.send(topic, 0, b"k", b"v", [("a", b"1"), ("b", b""), ("a", b"2")], 5 * SECOND_US + 7_999)
    writer.send(topic, 0, None, b"without a key", timestamp_us=6 * SECOND_US)
    writer.send(topic, 0, b"deleted", None, timestamp_us=7 * SECOND_US)
    writer.send(topic, 0, b"", b"", timestamp_us=8 * SECOND_US)
    writer.flush()
    reader.assign({Partition(topic, 0): 0})
    polled = read_until(reader, 4)
    assert {(messages.topic, messages.partition) for messages in polled} == {(topic, 0)}
    assert offsets(polled) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert values(polled) == [b"v", b"without a key", None, b""]
    assert [key for messages in polled for key in messages.keys] == [b"k", None, b"deleted", b""]
    times_us = [int(at) for messages in polled for at in messages.timestamps_us]
    assert times_us == [5 * SECOND_US + 7_000, 6 * SECOND_US, 7 * SECOND_US, 8 * SECOND_US]
    headers = [list(of) for messages in polled for of in messages.headers]
    assert headers == [[("a", b"1"), ("b", b""), ("a", b"2")], [], [], []]


def test_a_header_without_a_value_is_read(broker: TestBroker, reader: Reader) -> None:
    topic = new_topic(broker)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic, b"v", headers=[("none", None), ("empty", b"")])
    assert producer.flush(10) == 0
    reader.assign({Partition(topic, 0): 0})
    (messages,) = read_until(reader, 1)
    assert list(messages.headers[0]) == [("none", None), ("empty", b"")]


def test_polls_are_bounded_in_messages_and_positions_follow_what_was_given(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 2)
    for number in range(200):
        writer.send(topic, number % 2, None, b"%d" % number)
    writer.flush()
    expected = {Partition(topic, 0): 0, Partition(topic, 1): 0}
    reader.assign(expected)
    seen = 0
    while seen < 200:
        polled = reader.poll(5.0, max_messages=7)
        assert 1 <= sum(map(len, polled)) <= 7
        for messages in polled:
            where = Partition(topic, messages.partition)
            assert int(messages.offsets[0]) == expected[where]
            expected[where] = int(messages.offsets[-1]) + 1
        assert reader.positions() == expected
        seen += sum(map(len, polled))
    assert reader.poll(0.1) == []


def test_polls_are_bounded_in_bytes_and_give_one_message_that_is_larger(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    sizes = [40, 40, 40, 500, 10, 10, 90]
    for size in sizes:
        writer.send(topic, 0, b"k" * (size // 2), b"v" * (size // 2))
    writer.flush()
    reader.assign({Partition(topic, 0): 0})
    given: list[list[int]] = []
    while sum(map(len, given)) < len(sizes):
        polled = reader.poll(5.0, max_bytes=100)
        given.append([len(value or b"") * 2 for value in values(polled)])
        assert reader.positions() == {Partition(topic, 0): sum(map(len, given))}
    assert [size for poll in given for size in poll] == sizes
    assert all(sum(poll) <= 100 or poll == [500] for poll in given)
    assert [40, 40] in given


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_messages": 0}])
def test_bounds_that_let_nothing_through_are_refused(
    reader: Reader, bounds: dict[str, int]
) -> None:
    with pytest.raises(InputError, match="expected 1 or more"):
        reader.poll(0.0, **bounds)


def test_a_message_larger_than_a_fetch_is_read(broker: TestBroker, reader: Reader) -> None:
    topic = new_topic(broker, max_message_bytes=4_000_000)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": 4_000_000})
    for size in (3_000_000, 10, 2_000_000):
        producer.produce(topic, b"x" * size)
        assert producer.flush(20) == 0
    reader.assign({Partition(topic, 0): 0})
    polled = read_until(reader, 3)
    assert [len(value or b"") for value in values(polled)] == [3_000_000, 10, 2_000_000]


def test_an_empty_poll_returns_in_time_and_a_message_ends_the_wait(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    reader.assign({Partition(topic, 0): 0})
    began_s = time.monotonic()
    assert reader.poll(0.3) == []
    assert 0.2 < time.monotonic() - began_s < LONG_S
    assert reader.poll(0.0) == []
    writer.send(topic, 0, None, b"now")
    writer.flush()
    began_s = time.monotonic()
    assert values(read_until(reader, 1)) == [b"now"]
    polled = reader.poll(0.0)
    assert polled == []
    assert time.monotonic() - began_s < LONG_S
    assert reader.positions() == {Partition(topic, 0): 1}


def test_nothing_is_assigned(reader: Reader) -> None:
    assert reader.poll(0.05) == []
    assert reader.positions() == {}
    assert reader.ends() == {}


def two_partitions(broker: TestBroker, writer: Writer, count: int) -> tuple[Partition, Partition]:
    """Return the partitions of a topic that share so many messages."""
    topic = new_topic(broker, 2)
    for number in range(count):
        writer.send(topic, number % 2, None, b"%d" % number)
    writer.flush()
    return Partition(topic, 0), Partition(topic, 1)


def test_a_new_assignment_reads_every_partition_from_where_it_says(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    zero, one = two_partitions(broker, writer, 10)
    reader.assign({zero: 0})
    assert offsets(reader.poll(5.0, max_messages=2)) == [(0, 0), (0, 1)]
    # What was read ahead of partition 0 is neither lost nor given twice.
    reader.assign({zero: 2, one: 3})
    assert sorted(offsets(read_until(reader, 5))) == [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4)]
    reader.assign({one: 4})
    assert offsets(read_until(reader, 1)) == [(1, 4)]
    reader.assign({zero: 0, one: 0})
    assert reader.positions() == {zero: 0, one: 0}
    assert len(offsets(read_until(reader, 10))) == 10
    assert reader.poll(0.2) == []


def test_a_partition_that_is_left_out_keeps_its_position_and_others_go_on(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    zero, one = two_partitions(broker, writer, 20)
    reader.assign({zero: 0, one: 0})
    first = reader.poll(5.0, max_bytes=1)
    left_out = Partition(zero.topic, first[0].partition)
    other = one if left_out == zero else zero
    reader.leave_out([left_out])
    rest = read_to(reader, {other: 10})
    assert {messages.partition for messages in rest} == {other.partition}
    assert reader.poll(0.3) == []
    assert reader.positions() == {left_out: 1, other: 10}
    reader.leave_out([])
    assert offsets(read_until(reader, 9)) == [(left_out.partition, at) for at in range(1, 10)]


def test_a_client_gives_nothing_of_a_paused_partition(
    broker: TestBroker, client: Client, connection: Connection, writer: Writer
) -> None:
    """As a reader pauses a partition whose position is lost."""
    zero, one = two_partitions(broker, writer, 20)
    with closing(client.consumer(connection)) as consumer:
        consumer.assign({zero: 0, one: 0})
        consumer.pause([zero])
        assert offsets(take_until(consumer, 10)) == [(1, at) for at in range(10)]
        assert consumer.take(0.3, 100).messages == []
        assert (consumer.position(zero), consumer.position(one)) == (0, 10)
        consumer.resume([zero])
        assert offsets(take_until(consumer, 10)) == [(0, at) for at in range(10)]


def test_offsets_at_a_time(broker: TestBroker, reader: Reader, writer: Writer) -> None:
    topic = new_topic(broker, 2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    for second in (10, 20, 20, 30):
        writer.send(topic, 0, None, b"", timestamp_us=second * SECOND_US)
    writer.flush()
    reader.assign({zero: 0, one: 0})
    assert reader.offsets_at(5 * SECOND_US) == {zero: 0, one: None}
    assert reader.offsets_at(20 * SECOND_US) == {zero: 1, one: None}
    assert reader.offsets_at(20 * SECOND_US + 1, [zero]) == {zero: 3}
    assert reader.offsets_at(30 * SECOND_US + 1, [zero]) == {zero: None}
    assert reader.offsets_at(-SECOND_US, [zero]) == {zero: 0}
    assert reader.ends() == {zero: Ends(4, 4), one: Ends(0, 0)}
    assert reader.beginnings() == {zero: 0, one: 0}


def test_partitions_that_are_added_can_be_read_too(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 1)
    zero, two = Partition(topic, 0), Partition(topic, 2)
    writer.send(topic, 0, None, b"a")
    writer.flush()
    reader.assign({zero: 0})
    assert reader.partitions(topic) == (0,)
    assert values(read_until(reader, 1)) == [b"a"]
    with administrator(broker) as admin:
        admin.create_partitions({topic: 3})
    deadline_s = time.monotonic() + 60
    while reader.partitions(topic) != (0, 1, 2):
        assert time.monotonic() < deadline_s
        assert reader.poll(0.1) == []
    writer.send(topic, 2, None, b"b")
    writer.flush()
    reader.assign({**reader.positions(), two: 0})
    assert values(read_until(reader, 1)) == [b"b"]


def test_partitions_are_added_beside_those_that_are_read(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 2)
    zero, one, two, three = (Partition(topic, number) for number in range(4))
    for number in range(40):
        writer.send(topic, number % 2, None, b"%d" % number)
    writer.flush()
    reader.assign({zero: 0, one: 0})
    given = values(reader.poll(5.0, max_messages=3))
    reader.leave_out([one])
    with administrator(broker) as admin:
        admin.create_partitions({topic: 4})
    deadline_s = time.monotonic() + 60
    while reader.partitions(topic) != (0, 1, 2, 3):
        assert time.monotonic() < deadline_s
    for number in range(40, 60):
        writer.send(topic, number % 4, None, b"%d" % number)
    writer.flush()
    before = reader.positions()
    with pytest.raises(PositionOutOfRange, match="not the position 100"):
        reader.add({two: 0, three: 100})
    assert reader.positions() == before
    reader.add({two: 0, three: 0})
    assert reader.positions() == {**before, two: 0, three: 0}
    given += values(read_until(reader, 60 - len(given)))
    assert sorted(int(value or b"") for value in given) == [*range(60)]
    assert reader.positions() == {zero: 25, one: 25, two: 5, three: 5}
    assert reader.ends() == {where: Ends(at, at) for where, at in reader.positions().items()}
    with pytest.raises(NoSuchTopic, match="has no partition 4"):
        reader.add({Partition(topic, 4): 0})


def test_unknown_topics_and_partitions_are_named(broker: TestBroker, reader: Reader) -> None:
    topic = new_topic(broker, 2)
    with pytest.raises(NoSuchTopic, match=r"has no partition 2, only 2; correct"):
        reader.assign({Partition(topic, 2): 0})
    with pytest.raises(NoSuchTopic, match="nowhere"):
        reader.assign({Partition("nowhere", 0): 0})
    with pytest.raises(NoSuchTopic, match="nowhere"):
        reader.partitions("nowhere")
    for where in (Partition("nowhere", 0), Partition(topic, 2)):
        with pytest.raises(NoSuchTopic):
            reader.ends([where])


def test_positions_are_committed_for_tools_that_show_lag(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    writer.send(topic, 0, None, b"a")
    writer.flush()
    group = f"group-of-{topic}"
    reader.assign({Partition(topic, 0): 0})
    for position in (0, 1):
        reader.commit(group, {Partition(topic, 0): position})
        with administrator(broker) as admin:
            found = admin.list_group_offsets(group)
        (committed,) = found[group].values()
        assert committed.offset == position
    assert reader.positions() == {Partition(topic, 0): 0}, "a commit is never read"


def test_what_is_read_ahead_is_bounded(
    broker: TestBroker, new_reader: NewReader, writer: Writer
) -> None:
    import psutil

    topic = new_topic(broker, 4)
    megabyte = bytes(range(256)) * 3_600
    for number in range(100):
        writer.send(topic, number % 4, None, megabyte)
    writer.flush()
    reader = new_reader()
    reader.assign({Partition(topic, number): 0 for number in range(4)})
    before = psutil.Process().memory_info().rss
    assert sum(map(len, reader.poll(10.0, max_messages=1))) == 1
    deadline_s = time.monotonic() + 1.5
    while time.monotonic() < deadline_s:
        reader.poll(0.0, max_messages=1)
        time.sleep(0.3)
    grown = psutil.Process().memory_info().rss - before
    assert grown < 56 << 20, f"{grown >> 20} MiB of 90 were read ahead"


def test_partitions_that_are_left_out_go_on_where_they_were(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    """They change while messages are read ahead; nothing is lost, doubled or stuck."""
    topic, partitions, count = new_topic(broker, 3), range(3), 4_000
    for number in range(count):
        for partition in partitions:
            writer.send(topic, partition, None, b"%d" % number)
    writer.flush()
    places = [Partition(topic, number) for number in partitions]
    reader.assign(dict.fromkeys(places, 0))
    found: dict[int, list[int]] = {number: [] for number in partitions}
    random, deadline_s = Random(1), time.monotonic() + 60
    left_out: set[Partition] = set()
    while sum(map(len, found.values())) < len(places) * count:
        assert time.monotonic() < deadline_s, {name: len(of) for name, of in found.items()}
        if random.random() < 0.3:
            left_out = {place for place in places if random.random() < 0.5}
            reader.leave_out(left_out)
        before = reader.positions()
        for part in reader.poll(0.05, max_messages=random.choice([1, 100, 700])):
            assert Partition(topic, part.partition) not in left_out
            found[part.partition] += [int(value or b"") for value in part.values]
        after = reader.positions()
        assert all(after[place] == before[place] for place in left_out)
        assert after == {place: len(found[place.partition]) for place in places}
    assert found == {number: list(range(count)) for number in partitions}
