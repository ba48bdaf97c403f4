"""What goes wrong in a thread behind a reader is raised by its polls."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from tests.pipelines.io.kafka.cluster import new_topic, poll_for
from tests.support.kafka_broker import TestBroker
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader


class _Fault(Exception):
    """What no code expects."""


def fail(*_: Any, **__: Any) -> NoReturn:
    """Fail as nothing is expected to."""
    raise _Fault("out of the blue")


def test_an_unexpected_error_of_the_watch(
    broker: TestBroker, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.assign({Partition(new_topic(broker), 0): 0})
    monkeypatch.setattr(reader._asker, "topics", fail)
    with pytest.raises(_Fault, match="out of the blue"):
        poll_for(reader, 10)


def test_kafka_pythons_own_thread_ends(broker: TestBroker, connection: Connection) -> None:
    """confluent-kafka has no thread in Python."""
    reader = Reader(choose_client("kafka-python"), connection)
    reader.assign({Partition(new_topic(broker), 0): 0})
    assert reader.poll(0.1) == []
    network: Any = reader._consumer._consumer._net  # type: ignore[attr-defined]
    network._poll_once = fail
    with pytest.raises(_Fault, match="out of the blue"):
        poll_for(reader, 10)
    reader._watch.close()
    reader._asker.close()
