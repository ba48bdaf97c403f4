"""Committed offsets: the newest are committed, in a thread that nothing waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.logged import logged_by
from tidemill.features.errors import BrokerUnreachable
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.ingest import committed_offsets as module
from tidemill.pipelines.ingest.committed_offsets import CommittedOffsets
from tidemill.pipelines.io.kafka.client import Partition

WAIT_S = 60.0
TOPICS = {
    name: KafkaTopic(bootstrap=("localhost:9092",), topic=topic)
    for name, topic in (("payments", "p"), ("checks", "c"))
}


class Broker:
    """A cluster that commits when it may."""

    def __init__(self) -> None:
        self.committed: list[tuple[str, Mapping[Partition, int]]] = []
        self.may = threading.Event()
        self.may.set()
        self.asked = threading.Event()
        self.is_away = False

    def asker(self, connection: Any) -> Broker:
        self.asked.set()
        assert self.may.wait(WAIT_S)
        if self.is_away:
            raise BrokerUnreachable("nobody listens; try again")
        return self

    def commit(self, group: str, positions: Mapping[Partition, int]) -> None:
        self.committed.append((group, positions))

    def close(self) -> None:
        return


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(module, "choose_client", lambda _: broker)
    return broker


def test_the_newest_offsets_are_committed_by_topic(broker: Broker) -> None:
    broker.may.clear()
    offsets = CommittedOffsets(TOPICS, "group")
    offsets.note({"payments": [1, 2]})
    assert broker.asked.wait(WAIT_S)
    # While a commit lasts only the newest ones wait.
    for number in range(3, 6):
        offsets.note({"payments": [number, 9], "checks": [number]})
    broker.may.set()
    offsets.close()
    assert broker.committed == [
        ("group", {Partition("p", 0): 1, Partition("p", 1): 2}),
        ("group", {Partition("p", 0): 5, Partition("p", 1): 9}),
        ("group", {Partition("c", 0): 5}),
    ]


def test_a_broker_that_is_away_is_said_once_and_nothing_else_happens(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.is_away = True
    offsets = CommittedOffsets({"payments": TOPICS["payments"]}, "group")
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            broker.asked.clear()
            offsets.note({"payments": [number]})
            assert broker.asked.wait(WAIT_S)
            time.sleep(0.05)
        broker.is_away = False
        offsets.note({"payments": [7]})
        offsets.close()
    (said,) = (one.message for one in logged_by(module.__name__, caplog))
    assert said == (
        "offsets of 'payments' are not committed to the group 'group', so tools that show lag do "
        "not see them; the stream goes on: nobody listens; try again"
    )
    assert broker.committed == [("group", {Partition("p", 0): 7})]
