"""What was asked of a stream under faults, and what a reader of committed messages sees of it.

The ledger is exact itself: every message has an id of its own, every acknowledgement is counted,
and at the end the topics must have each acknowledged message once.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.live_project import LiveProject

EVERY_S: Final = 0.05
_PATIENCE_S: Final = 600
_POLL_MS: Final = 100


@dataclass
class Producer:
    """Sends payments and checks in turn, and counts acknowledgements.

    An idempotent producer of kafka-python sends a message again until the broker has it, once. It
    gives up after ten minutes, which fails the run.

    Attributes:
        project: The project whose topics it writes to.
        rate: How many messages a second it sends.
        asked: How many of them are requests, as a share.
    """

    project: LiveProject
    rate: float
    asked: float
    _acknowledged: dict[str, list[str]] = field(
        default_factory=lambda: {"payments": [], "checks": []}
    )

    def __post_init__(self) -> None:
        self._ended, self._held = threading.Event(), threading.Event()
        self._sent: queue.Queue[tuple[str, str, Any] | None] = queue.Queue()
        self._failed: list[BaseException] = []
        self._random = random.Random(1)
        self._number = 0
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._send, self._count)
        ]

    def _connect(self) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self.project.broker.bootstrap,
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=_PATIENCE_S * 1_000,
            request_timeout_ms=5_000,
            reconnect_backoff_max_ms=200,
            max_block_ms=_PATIENCE_S * 1_000,
        )

    def start(self) -> None:
        """Send from now on."""
        self._producer = self._connect()
        for thread in self._threads:
            thread.start()

    def _row(self, kind: str) -> tuple[str, dict[str, Any]]:
        self._number += 1
        name = f"{kind}-{self._number}"
        return name, self.project.row_of_now(kind, name)

    def _send(self) -> None:
        try:
            began, sent = time.monotonic(), 0
            while not self._ended.wait(EVERY_S):
                due = round((time.monotonic() - began) * self.rate)
                for _ in range(0 if self._held.is_set() else due - sent):
                    self._send_one()
                sent = max(due, sent)
        except BaseException as error:  # noqa: BLE001 - raised by `acknowledged`
            self._failed.append(error)
        finally:
            self._sent.put(None)

    def _send_one(self) -> None:
        kind = "checks" if self._random.random() < self.asked else "payments"
        name, row = self._row(kind)
        future = self._producer.send(
            self.project.topics[kind],
            json.dumps(row).encode(),
            partition=self._random.randrange(self.project.partitions),
        )
        self._sent.put((kind, name, future))

    @property
    def requests(self) -> int:
        """How many requests were acknowledged until now."""
        return len(self._acknowledged["checks"])

    def _count(self) -> None:
        try:
            while (sent := self._sent.get()) is not None:
                kind, name, future = sent
                future.get(timeout=_PATIENCE_S)
                self._acknowledged[kind].append(name)
        except BaseException as error:  # noqa: BLE001 - raised by `acknowledged`
            self._failed.append(error)

    def send_fresh(self) -> tuple[int, int]:
        """Send a payment by a new connection; return its partition and offset."""
        producer = self._connect()
        try:
            name = f"fresh-{time.monotonic_ns()}"
            row = self.project.row_of_now("payments", name)
            value = json.dumps(row).encode()
            sent = producer.send(self.project.topics["payments"], value, partition=0)
            found = sent.get(timeout=120)
            self._acknowledged["payments"].append(name)
            return found.partition, found.offset
        finally:
            producer.close()

    def hold(self) -> None:
        """Send no more for now; what was being sent is acknowledged."""
        self._held.set()
        time.sleep(4 * EVERY_S)
        while not self._sent.empty():
            time.sleep(EVERY_S)
        time.sleep(4 * EVERY_S)

    def go_on(self) -> None:
        """Send again."""
        self._held.clear()

    def requests_so_far(self) -> list[str]:
        """Return the ids of the requests that were acknowledged until now."""
        if self._failed:
            raise self._failed[0]
        return list(self._acknowledged["checks"])

    def stop(self) -> None:
        """Send no more, and wait for all acknowledgements."""
        if not self._ended.is_set():
            self._ended.set()
            for thread in self._threads:
                thread.join(timeout=_PATIENCE_S)
            self._producer.close()

    def acknowledged(self) -> dict[str, list[str]]:
        """Return the ids of the acknowledged messages of each topic, after `stop`."""
        if self._failed:
            raise self._failed[0]
        return self._acknowledged


class _Reader:
    """Reads the committed messages of a topic, each once, also while its broker is away.

    Args:
        project: The project.
        name: The topic's name there.
    """

    def __init__(self, project: LiveProject, name: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=project.broker.bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            reconnect_backoff_max_ms=200,
        )
        topic = project.topics[name]
        places = [TopicPartition(topic, n) for n in self._consumer.partitions_for_topic(topic)]
        self._consumer.assign(places)
        self._consumer.seek_to_beginning(*places)

    def new(self) -> Iterator[Any]:
        """Yield the messages that were not read yet."""
        while found := self._consumer.poll(timeout_ms=_POLL_MS):
            for records in found.values():
                yield from records

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


class Answers:
    """The predictions and rejected requests that a reader of committed messages has seen.

    Args:
        project: The project.

    Attributes:
        predictions: Id of a request to how many predictions it has.
        rejected: The ids of the requests that were rejected.
    """

    def __init__(self, project: LiveProject) -> None:
        self.predictions: Counter[str] = Counter()
        self.rejected: set[str] = set()
        self._predictions = _Reader(project, "predictions")
        self._rejected = _Reader(project, "rejected")

    def look(self) -> None:
        """Read what has come."""
        self.predictions.update(message.key.decode() for message in self._predictions.new())
        for message in self._rejected.new():
            if dict(message.headers)["stream"] == b"checks":
                self.rejected.add(json.loads(message.value)["check"])

    def missing(self, asked: set[str]) -> set[str]:
        """Return which requests have no answer, and were not rejected."""
        return asked - self.predictions.keys() - self.rejected

    def doubled(self) -> int:
        """Count the requests with more than one prediction, or with one though rejected."""
        twice = sum(count > 1 for count in self.predictions.values())
        return twice + len(self.rejected & self.predictions.keys())

    def close(self) -> None:
        """Disconnect."""
        self._predictions.close()
        self._rejected.close()
