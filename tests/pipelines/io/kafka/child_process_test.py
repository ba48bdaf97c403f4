"""Consumers and producers in a process beside: what kills, pauses and signals do to them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.pipelines.io.kafka.cluster import (
    connection_to,
    new_topic,
    read_until,
    settled,
    take_until,
    values,
)
from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import (
    BrokerUnreachable,
    MessagesNotWritten,
    PositionOutOfRange,
)
from tidemill.pipelines.io.kafka.child_process.consumer import ConsumerRequest
from tidemill.pipelines.io.kafka.child_process.library import InChildProcess
from tidemill.pipelines.io.kafka.child_process.process import (
    ChildProcess,
    PipeHandler,
    log_until_end,
    portable,
)
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Partition, ProducerSettings
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer

ROOT = Path(__file__).parents[4]
COUNT, PARTITIONS = 3_000, 3
_PARENT = """
import sys
from tidemill.pipelines.io.kafka.child_process.consumer import ConsumerRequest
from tidemill.pipelines.io.kafka.child_process.process import ChildProcess
from tidemill.pipelines.io.kafka.connection import Connection
process = ChildProcess()
pipe = process.connect(ConsumerRequest(Connection((sys.argv[1],))))
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def own() -> Iterator[InChildProcess]:
    """A process of the test's own, which it may kill."""
    with InChildProcess() as client:
        yield client


def pid_of(client: InChildProcess, number: int = 0) -> int:
    found = client.processes[number].pid
    assert found is not None
    return found


def ends(pid: int, within_s: float = 60.0) -> bool:
    """Tell whether a process ends in time."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def topic(broker: TestBroker) -> str:
    """A topic whose partitions have the numbers from 0 on."""
    name = new_topic(broker, PARTITIONS)
    with Writer(choose_client(), connection_to(broker)) as writer:
        for number in range(COUNT):
            for partition in range(PARTITIONS):
                writer.send(name, partition, None, b"%d" % number)
        writer.flush()
    return name


def beginning(topic: str) -> dict[Partition, int]:
    return {Partition(topic, number): 0 for number in range(PARTITIONS)}


def test_killed_readers_go_on_without_loss_and_doubling(
    broker: TestBroker, topic: str, own: InChildProcess
) -> None:
    found: dict[int, list[int]] = {number: [] for number in range(PARTITIONS)}
    with Reader(own, connection_to(broker)) as reader:
        reader.assign(beginning(topic))
        killed, deadline_s = 0, time.monotonic() + 60
        while sum(map(len, found.values())) < COUNT * PARTITIONS:
            assert time.monotonic() < deadline_s
            for messages in reader.poll(0.2, max_messages=500):
                found[messages.partition] += [int(value or b"") for value in messages.values]
            if killed < 3 and sum(map(len, found.values())) > killed * 2_000:
                killed += 1
                os.kill(pid_of(own), signal.SIGKILL)
        assert killed == 3
        assert reader.poll(0.3) == []
        assert set(reader.positions().values()) == {COUNT}
    assert found == {number: list(range(COUNT)) for number in range(PARTITIONS)}


def test_partitions_that_are_left_out_stay_so_when_the_process_is_killed(
    broker: TestBroker, topic: str, own: InChildProcess
) -> None:
    with Reader(own, connection_to(broker)) as reader:
        reader.assign(beginning(topic))
        reader.leave_out([Partition(topic, 1)])
        read_until(reader, 1)
        os.kill(pid_of(own), signal.SIGKILL)
        polled = [part for _ in range(20) for part in reader.poll(0.1)]
        assert 1 not in {part.partition for part in polled}
        assert reader.positions()[Partition(topic, 1)] == 0
        reader.leave_out([])
        assert any(part.partition == 1 for part in read_until(reader, COUNT))


def test_paused_partitions_stay_paused_when_the_process_is_killed(
    broker: TestBroker, topic: str, own: InChildProcess
) -> None:
    with closing(own.consumer(connection_to(broker))) as consumer:
        consumer.assign(beginning(topic))
        consumer.pause([Partition(topic, 1)])
        take_until(consumer, 1)
        os.kill(pid_of(own), signal.SIGKILL)
        taken = take_until(consumer, COUNT)
        assert 1 not in {part.partition for part in taken}
        assert consumer.position(Partition(topic, 1)) == 0
        consumer.resume([Partition(topic, 1)])
        assert any(part.partition == 1 for part in take_until(consumer, COUNT))


def test_each_of_several_processes_reads_a_share(broker: TestBroker, topic: str) -> None:
    with InChildProcess(readers=2) as client, Reader(client, connection_to(broker)) as reader:
        reader.assign(beginning(topic))
        found: dict[int, list[int]] = {number: [] for number in range(PARTITIONS)}
        for messages in read_until(reader, 1):
            found[messages.partition] += [int(value or b"") for value in messages.values]
        os.kill(pid_of(client, 1), signal.SIGKILL)
        rest = COUNT * PARTITIONS - sum(map(len, found.values()))
        for messages in read_until(reader, rest):
            found[messages.partition] += [int(value or b"") for value in messages.values]
        assert reader.positions() == dict.fromkeys(beginning(topic), COUNT)
        reader.leave_out([Partition(topic, 0), Partition(topic, 1)])
        assert reader.poll(0.1) == []
    assert found == {number: list(range(COUNT)) for number in range(PARTITIONS)}


def test_an_error_of_the_process_is_raised_here(
    broker: TestBroker, topic: str, own: InChildProcess
) -> None:
    consumer = own.consumer(connection_to(broker))
    with closing(consumer):
        consumer.assign({Partition(topic, 0): 10 * COUNT})
        taken = [consumer.take(0.2, 10) for _ in range(20)]
        lost = [one.lost for one in taken if one.lost]
    assert lost[0][Partition(topic, 0)].position == 10 * COUNT


def test_a_killed_producer_is_not_known_to_have_written(
    broker: TestBroker, own: InChildProcess
) -> None:
    name, settings = new_topic(broker), ProducerSettings(transactional_id="beside")
    with Writer(own, connection_to(broker), settings) as writer:
        writer.begin()
        writer.send(name, 0, None, b"lost")
        writer.flush()
        os.kill(pid_of(own), signal.SIGKILL)
        with pytest.raises(MessagesNotWritten, match="the process that writes to topics has ended"):
            writer.commit()
        writer.begin()  # another producer, which has ended the transaction
        for number in range(2_500):
            writer.send(name, 0, None, b"%d" % number)
        writer.commit()
    with Reader(own, connection_to(broker)) as reader:
        reader.assign({Partition(name, 0): 0})
        settled(reader)
        found = values(read_until(reader, 2_500))
    assert found == [b"%d" % number for number in range(2_500)]


def test_a_producer_that_takes_nothing_is_given_up(broker: TestBroker, own: InChildProcess) -> None:
    name, settings = new_topic(broker), ProducerSettings(give_up_s=1.0)
    with Writer(own, connection_to(broker), settings) as writer:
        producer = writer._producer
        producer._within_s = 1.0  # type: ignore[attr-defined]
        os.kill(pid_of(own), signal.SIGSTOP)
        writer.send(name, 0, None, b"a")
        with pytest.raises(MessagesNotWritten, match="did not answer within 1 s"):
            writer.flush()
    os.kill(pid_of(own), signal.SIGCONT)


def test_a_process_that_does_not_answer_is_ended(broker: TestBroker) -> None:
    request = ConsumerRequest(connection_to(broker))
    process = ChildProcess(start_s=60)
    with closing(process):
        process.connect(request).close()
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        process._start_s = 0.2
        with pytest.raises(BrokerUnreachable, match=r"did not answer within 0\.2 s, and was ended"):
            process.connect(request)
        assert ends(first)
        process._start_s = 60
        process.connect(request).close()  # another one
        second = process.pid
        assert second is not None
        assert second != first
    assert ends(second)
    with pytest.raises(BrokerUnreachable, match="was closed"):
        process.connect(request)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent_and_not_before(
    broker: TestBroker, how: signal.Signals
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, broker.bootstrap],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        for stop in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, stop)
        assert not ends(pid, within_s=0.5)
        arguments = psutil.Process(pid).cmdline()
        assert not any("9092" in one or broker.bootstrap in one for one in arguments)
        parent.send_signal(how)
        assert ends(pid)


def test_what_it_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    logs, written = os.pipe()
    thread = threading.Thread(target=log_until_end, args=(logs,))
    thread.start()
    handler = PipeHandler(written)
    logger = logging.Logger("kafka.somewhere")
    logger.addHandler(handler)
    try:
        int("no number")
    except ValueError:
        logger.exception("partition %d of %s", 3, "topic")
    logger.debug("nobody asked for this")
    handler.close()
    thread.join(60)
    (found,) = (one for one in caplog.records if one.name == "kafka.somewhere")
    assert found.getMessage() == "partition 3 of topic"
    assert "no number" in (found.exc_text or "")


def test_errors_that_cannot_travel_say_what_they_are() -> None:
    class Local(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    kept = PositionOutOfRange("gone", "topic", 1, 2, 3, 4)
    assert portable(kept) is kept
    assert str(portable(Local(1, 2))) == "Local: 1 and 2"
