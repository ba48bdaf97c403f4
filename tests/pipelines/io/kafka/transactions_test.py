"""Transactions, compaction and retention: what is passed over, and where a reader stands then."""

from __future__ import annotations

import time

import pytest

from tests.pipelines.io.kafka.cluster import (
    administrator,
    delete_before,
    new_topic,
    offsets,
    poll_for,
    read_to,
    read_until,
    values,
)
from tests.pipelines.io.kafka.conftest import NewReader, NewWriter
from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import NoSuchTopic, PositionOutOfRange, RecreatedTopic
from tidemill.pipelines.io.kafka import watch
from tidemill.pipelines.io.kafka.client import Ends, Partition
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer
from tidemill.pipelines.io.messages import Messages


def test_aborted_messages_and_markers_are_passed_over(
    broker: TestBroker, reader: Reader, new_writer: NewWriter
) -> None:
    topic = new_topic(broker)
    writer = new_writer(transactional_id=topic)
    for number, commits in enumerate((True, False, True)):
        writer.begin()
        for letter in (b"a", b"b"):
            writer.send(topic, 0, None, b"%d%s" % (number, letter))
        writer.flush()
        writer.commit() if commits else writer.abort()
    reader.assign({Partition(topic, 0): 0})
    # Two messages and a marker of each.
    polled = read_to(reader, {Partition(topic, 0): 9})
    assert values(polled) == [b"0a", b"0b", b"2a", b"2b"]
    assert offsets(polled) == [(0, 0), (0, 1), (0, 6), (0, 7)]
    assert reader.positions() == {Partition(topic, 0): 9}
    assert reader.ends() == {Partition(topic, 0): Ends(9, 9)}


def test_a_position_moves_without_messages(
    broker: TestBroker, reader: Reader, new_writer: NewWriter
) -> None:
    topic = new_topic(broker)
    writer = new_writer(transactional_id=topic)
    writer.begin()
    writer.send(topic, 0, None, b"a")
    writer.flush()
    writer.abort()
    reader.assign({Partition(topic, 0): 0})
    assert read_to(reader, {Partition(topic, 0): 2}) == []


def test_an_open_transaction_holds_readers_and_the_stable_end(
    broker: TestBroker, reader: Reader, new_writer: NewWriter, writer: Writer
) -> None:
    topic = new_topic(broker, 2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    other = new_writer(transactional_id=topic)
    writer.send(topic, 0, None, b"before")
    writer.flush()
    other.begin()
    other.send(topic, 0, None, b"open")
    other.flush()
    writer.send(topic, 0, None, b"behind")
    writer.send(topic, 1, None, b"elsewhere")
    writer.flush()
    reader.assign({zero: 0, one: 0})
    assert sorted(map(str, values(read_until(reader, 2)))) == ["b'before'", "b'elsewhere'"]
    assert reader.poll(0.5) == []
    assert reader.positions() == {zero: 1, one: 1}
    assert reader.ends() == {zero: Ends(1, 3), one: Ends(1, 1)}
    other.commit()
    assert values(read_to(reader, {zero: 4})) == [b"open", b"behind"]
    assert reader.ends([zero]) == {zero: Ends(4, 4)}


def test_compacted_messages_are_passed_over(
    broker: TestBroker, new_reader: NewReader, writer: Writer
) -> None:
    topic = new_topic(
        broker,
        cleanup_policy="compact",
        min_cleanable_dirty_ratio=0.01,
        segment_ms=200,
        max_compaction_lag_ms=1_000,
    )
    where = Partition(topic, 0)
    for number in range(100):
        writer.send(topic, 0, b"kept" if number == 50 else b"key", b"%d" % number)
    writer.flush()
    deadline_s = time.monotonic() + 120
    while True:
        # A segment is compacted once another one follows it.
        time.sleep(0.5)
        writer.send(topic, 0, b"end", b"end")
        writer.flush()
        reader = new_reader()
        reader.assign({where: 0})
        polled = read_to(reader, {where: reader.ends()[where].stable})
        reader.close()
        found = [offset for _, offset in offsets(polled)]
        if len([offset for offset in found if offset < 100]) == 2:
            break
        assert time.monotonic() < deadline_s, found
    assert found[:2] == [50, 99]
    assert values(polled)[:2] == [b"50", b"99"]
    # A position in a gap is one that the partition holds.
    reader = new_reader()
    reader.assign({where: 60})
    assert offsets(read_until(reader, 1))[0] == (0, 99)


def test_a_position_before_the_first_offset_is_refused(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    where = Partition(topic, 0)
    for number in range(10):
        writer.send(topic, 0, None, b"%d" % number)
    writer.flush()
    delete_before(broker, where, 6)
    assert reader.beginnings([where]) == {where: 6}
    with pytest.raises(PositionOutOfRange, match=f"partition 0 of the topic '{topic}' holds"):
        reader.assign({where: 5})
    with pytest.raises(PositionOutOfRange) as caught:
        reader.assign({where: 11})
    found = caught.value
    assert (found.topic, found.partition, found.position) == (topic, 0, 11)
    assert (found.first, found.end) == (6, 10)
    assert reader.poll(0.1) == []
    reader.assign({where: 10})
    assert reader.poll(0.1) == []
    reader.assign({where: 6})
    assert offsets(read_until(reader, 4)) == [(0, at) for at in range(6, 10)]


def test_messages_that_are_deleted_before_they_are_read_are_an_error_and_no_jump(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker, 2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    for number in range(10):
        writer.send(topic, number % 2, None, b"%d" % number)
    writer.flush()
    reader.assign({zero: 0, one: 0})
    reader.leave_out([zero, one])
    assert reader.poll(0.5) == []
    delete_before(broker, zero, 3)
    # What the client has read ahead is dropped, and what an assignment checks is passed.
    reader.leave_out([])
    given: list[Messages] = []
    with pytest.raises(PositionOutOfRange) as caught:
        poll_for(reader, 10, given)
    found = caught.value
    assert (found.topic, found.partition, found.position) == (topic, 0, 0)
    assert (found.first, found.end) == (3, 5)
    assert all(messages.partition == 1 for messages in given)
    with pytest.raises(PositionOutOfRange):
        reader.poll(0.1)
    positions = reader.positions()
    assert positions[zero] == 0
    assert positions[one] == sum(map(len, given))
    reader.assign({zero: 3, one: positions[one]})
    rest = read_to(reader, {zero: 5, one: 5})
    assert sorted(offsets([*given, *rest])) == [(0, 3), (0, 4), *((1, at) for at in range(5))]


def test_a_deleted_topic_is_an_error_by_name(
    broker: TestBroker, reader: Reader, writer: Writer
) -> None:
    topic = new_topic(broker)
    writer.send(topic, 0, None, b"a")
    writer.flush()
    reader.assign({Partition(topic, 0): 0})
    read_until(reader, 1)
    with administrator(broker) as admin:
        admin.delete_topics([topic])
    with pytest.raises(NoSuchTopic, match=topic):
        poll_for(reader, 60)


def test_a_topic_that_is_made_again_is_an_error_by_name(
    broker: TestBroker, reader: Reader, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine takes so long to make it again that it would be missing often enough.
    monkeypatch.setattr(watch, "_SURE", 1_000)
    topic = new_topic(broker)
    writer.send(topic, 0, None, b"a")
    writer.flush()
    reader.assign({Partition(topic, 0): 0})
    read_until(reader, 1)
    with administrator(broker) as admin:
        admin.delete_topics([topic])
        deadline_s = time.monotonic() + 60
        while topic in admin.list_topics():
            assert time.monotonic() < deadline_s
        admin.create_topics([topic])
    with pytest.raises(RecreatedTopic, match=rf"'{topic}' was deleted and made again"):
        poll_for(reader, 60)
    reader.assign({Partition(topic, 0): 0})
    assert reader.poll(0.1) == []
