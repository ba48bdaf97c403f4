"""A project whose events come through a broker in disorder, and what must come of each.

A test writes messages with times and partitions of its choice (`Script`), and several streams of
one mode each read them (`DisorderedProject`).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.parquet as pq
from kafka import KafkaProducer

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, instant
from tidemill.features.contract import MINUTE, SECOND
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.run.progress import QuietProgress

PROJECT: Final = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count, last, sum

paid = EventStream(
    "paid", event_time="at", event_id="id", transport=["sent_at"],
    out_of_orderness="2s", allowed_lateness="3s", max_ahead="10s",
    schema={
        "id": "string", "at": "timestamp", "sent_at": "timestamp", "card": "string",
        "amount": "int64",
    },
)
by_card = FeatureView(
    "by_card", entity=Entity("card"), stream=paid, hop="1m",
    features={
        "n": count(over="10m"), "total": sum(col("amount"), over="10m"),
        "newest": last(col("amount"), over="10m"),
    },
)
asked = Request(
    "asked", request_id="id", request_time="at", out_of_orderness="2s", max_ahead="10s",
    schema={"id": "string", "at": "timestamp", "sent_at": "timestamp", "card": "string"},
)
project = Project("disorder", views=[by_card], request=asked)
"""
CONFIGURATION: Final = """
project: project:project
root: run
shards: 2
sources:
  paid:
    received: sent_at
    kafka: {{bootstrap: &broker "{bootstrap}", topic: {paid}, clock: messages, quiet: 1s}}
  asked:
    received: sent_at
    kafka: {{bootstrap: *broker, topic: {asked}, clock: messages, quiet: 1s}}
splits: {{train_until: "{train_until}", evaluate_until: "{until}"}}
online_store: {{type: sqlite, path: online.db}}
stream: {{engine: fnapi, mode: {mode}}}
"""
COUNTS: Final = "counts"
PARTITIONS: Final = 4


@dataclass
class Script:
    """Messages in the topics of events and requests, and what must become of each event.

    Attributes:
        broker: The broker.
        begin_us: The instant from which times are counted, in seconds.
    """

    broker: TestBroker
    begin_us: int
    accepted: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    refused: list[tuple[str, bytes]] = field(default_factory=list)
    requests: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def __post_init__(self) -> None:
        self.topics = {"paid": self.broker.new_topic(PARTITIONS), "asked": self.broker.new_topic(1)}
        self._producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap)

    def at_us(self, seconds: float) -> int:
        return self.begin_us + round(seconds * SECOND)

    def pay(
        self, card: str, seconds: float, amount: int = 1, partition: int = 0, *,
        name: str | None = None, becomes: str = COUNTS, stamped: float | None = None,
    ) -> None:  # fmt: skip
        """Send an event; ``becomes`` says what must come of it: a reason, or that it counts."""
        at_us = self.at_us(seconds)
        row = {"id": name or f"{card}-{seconds}-{amount}", "at": instant(at_us), "card": card}
        value = json.dumps({**row, "amount": amount}).encode()
        stamp_ms = self.at_us(seconds if stamped is None else stamped) // 1_000
        self._producer.send(
            self.topics["paid"], value, key=card.encode(), partition=partition,
            timestamp_ms=stamp_ms,
        )  # fmt: skip
        self.sent[partition] += 1
        if becomes == COUNTS:
            event = {**row, "at": at_us, "sent_at": at_us, "amount": amount}
            if event not in self.accepted[card]:  # delivered twice, it is one event
                self.accepted[card].append(event)
        else:
            self.refused.append((becomes, value))

    def ask(self, name: str, card: str, seconds: float, stamped: float | None = None) -> None:
        """Send a request; the events that were accepted before it are those it must count."""
        at_us = self.at_us(seconds)
        row = {"id": name, "at": instant(at_us), "card": card}
        stamp_ms = self.at_us(seconds if stamped is None else stamped) // 1_000
        self._producer.send(self.topics["asked"], json.dumps(row).encode(), timestamp_ms=stamp_ms)
        self.requests[name] = card, at_us, len(self.accepted[card])

    def beat(self, seconds: float, *partitions: int) -> None:
        """Let time go on in partitions."""
        for partition in partitions:
            self.pay("beat", seconds, partition=partition, name=f"beat-{seconds}-{partition}")

    def flush(self) -> None:
        self._producer.flush()


class DisorderedProject(LiveProject):
    """A folder whose stream reads the topics of a script."""

    def __post_init__(self) -> None:
        self.script: Script

    def prepare(self, script: Script) -> None:
        """Write the project, and backfill it."""
        self.script = script
        self.folder.mkdir(parents=True)
        (self.folder / "project.py").write_text(PROJECT)
        (self.folder / "tidemill.yaml").write_text(
            CONFIGURATION.format(
                bootstrap=self.broker.bootstrap,
                train_until=instant(script.begin_us - 30 * MINUTE),
                until=instant(script.begin_us),
                mode=self.mode,
                **script.topics,
            )
        )
        backfill(load(self.folder / "tidemill.yaml"), QuietProgress())

    def wait_until_read(self) -> None:
        """Wait until everything that the script has sent is written down."""

        config = load(self.folder / "tidemill.yaml")
        live = LiveLog(config.current.folder / LIVE, config.project)

        def is_read() -> bool:
            last = live.polls.last()
            if last is None:
                return False
            events = list(last.offsets["paid"]) == self.script.sent
            return events and last.offsets["asked"] == (len(self.script.requests),)

        self.wait_until(is_read)

    def wait_until_answered(self, *names: str) -> None:
        self.wait_until(lambda: set(names) <= {row["request_id"] for row in self.predictions()})

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not happened():
            assert time.monotonic() < deadline, (
                f"{sorted(row['request_id'] for row in self.predictions())}\n{self._state()}\n"
                f"{self.log()}"
            )
            time.sleep(0.2)

    def _state(self) -> str:
        """Return the watermarks after the last poll, in seconds of the script."""
        config = load(self.folder / "tidemill.yaml")
        last = LiveLog(config.current.folder / LIVE, config.project).polls.last()
        if last is None:
            return "no poll"
        return "; ".join(
            f"{part.source}/{part.partition}: {part.stop} rows, watermark "
            f"{(part.watermark_us - self.script.begin_us) / SECOND}"
            for part in Poll.decode(bytes(last.poll)).parts
        )

    def rejected(self) -> list[tuple[str, bytes]]:
        folder = stream_of(self.folder / "run") / "rejected_by_stream"
        rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        return [(row["reason"], row["payload"]) for row in rows]


@contextmanager
def all_streaming(projects: list[DisorderedProject]) -> Iterator[list[Any]]:
    """Run the streams of several projects at once."""
    if not projects:
        yield []
        return
    with projects[0].streaming() as process, all_streaming(projects[1:]) as others:
        yield [process, *others]
