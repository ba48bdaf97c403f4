"""A project of payments whose sources go on in topics, as a folder for the command line.

Histories end at `History.until_us`; messages continue from there, in time order by partition.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from kafka import KafkaProducer

from tests.support import fork_server
from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.markdown import ROOT
from tests.support.stream_outputs import rows_in
from tidemill.features.contract import MINUTE, SECOND
from tidemill.pipelines.io.outputs import OutputFolder

_SHOWN: Final = 20_000  # characters of what a stream has said
PROJECT: Final = """
from tidemill import (
    Entity, EventStream, FeatureView, Project, Request, col, count, last, mean, sum
)

payments = EventStream(
    "payments",
    event_time="paid_at",
    event_id="payment",
    transport=["sent_at"],
    out_of_orderness="1s",
    schema={
        "payment": "string", "paid_at": "timestamp", "sent_at": "timestamp", "card": "string",
        "amount": "float64",
    },
)
card = Entity("card")
by_card = FeatureView(
    "by_card", entity=card, stream=payments, hop="1m",
    features={
        "payments_10m": count(over="10m"), "spent_10m": sum(col("amount"), over="10m"),
        "mean_1h": mean(col("amount"), over="1h"), "last_amount": last(col("amount"), over="1h"),
    },
)
checks = Request(
    "checks", request_id="check", request_time="asked_at", out_of_orderness="1s",
    schema={
        "check": "string", "asked_at": "timestamp", "sent_at": "timestamp", "card": "string",
        "wanted": "float64",
    },
)
project = Project("payments", views=[by_card], request=checks)
"""

CONFIGURATION: Final = """
project: project:project
root: run
shards: {shards}
sources:
  payments:
    files: [payments.csv]
    received: sent_at
    kafka: {{bootstrap: "{bootstrap}", topic: {payments}, format: {format}}}
  checks:
    files: [checks.csv]
    received: sent_at
    kafka: {{bootstrap: "{bootstrap}", topic: {checks}, format: {format}}}
splits: {{train_until: "{train_until}", evaluate_until: "{until}"}}
online_store: {{type: sqlite, path: online.db}}
stream: {{engine: {engine}, mode: {mode}, savepoint_every: {savepoint_every}}}
"""

SINKS: Final = """
predictions:
  kafka: {{bootstrap: "{bootstrap}", topic: {predictions}, compression: gzip}}
rejected: {{kafka: {{bootstrap: "{bootstrap}", topic: {rejected}}}}}
"""

CARDS: Final = 20


def instant(time_us: int) -> str:
    return f"{np.datetime64(time_us, 'us')}Z"


Program = subprocess.Popen[bytes] | fork_server.Started
"""A stream or a proof that runs."""


@dataclass
class LiveProject:
    """A folder with a project, its histories, and topics on a broker.

    Attributes:
        folder: The folder.
        broker: The broker.
        engine: The engine of the stream.
        mode: The mode of the stream.
        partitions: How many partitions each topic has.
        savepoint_every: How often the stream keeps its state.
        sinks: Whether predictions and rejected records go to topics, too.
        rejected_bytes: How large a message the topic of rejected records takes.
        seed: Of everything random.
        format: The format of the messages of the sources; `produce` makes JSON.
        shards: How many shards each view has.
        ago: How many minutes ago the histories end.
        client: The client library that reads and writes topics; empty for the default.
        alone: Whether streams and proofs are processes of nothing but their own, which import all
            anew: benchmarks measure these.
        flags: The last arguments of a stream.
    """

    folder: Path
    broker: TestBroker
    engine: str = "fnapi"
    mode: str = "exact"
    partitions: int = 2
    savepoint_every: str = "10m"
    sinks: bool = False
    rejected_bytes: int = 1 << 20
    seed: int = 1
    format: str = "json"
    shards: int = 2
    ago: float = 2
    client: str = ""
    alone: bool = False
    flags: Sequence[str] = ()
    sent: dict[str, int] = field(default_factory=lambda: {"payments": 0, "checks": 0})

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.until_us = (time.time_ns() // 1_000 - round(self.ago * MINUTE)) // MINUTE * MINUTE
        self.topics = {
            name: self.broker.new_topic(self.partitions) for name in ("payments", "checks")
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "project.py").write_text(PROJECT)
        (self.folder / "tidemill.yaml").write_text(
            CONFIGURATION.format(
                bootstrap=self.broker.bootstrap,
                payments=self.topics["payments"],
                checks=self.topics["checks"],
                train_until=instant(self.until_us - 30 * MINUTE),
                until=instant(self.until_us),
                engine=self.engine,
                mode=self.mode,
                savepoint_every=self.savepoint_every,
                format=self.format,
                shards=self.shards,
            )
        )
        if self.sinks:
            self.topics["predictions"] = self.broker.new_topic(2)
            self.topics["rejected"] = self.broker.new_topic(
                2, max_message_bytes=self.rejected_bytes
            )
            with (self.folder / "tidemill.yaml").open("a") as file:
                file.write(SINKS.format(bootstrap=self.broker.bootstrap, **self.topics))
        if self.client:
            yaml = self.folder / "tidemill.yaml"
            client = f"kafka: {{client: {self.client}, "
            yaml.write_text(yaml.read_text().replace("kafka: {", client))
        begin_us = self.until_us - 60 * MINUTE
        times = sorted(self.random.randrange(begin_us, self.until_us - SECOND) for _ in range(400))
        paid = [self._payment(f"h-{n}", at) for n, at in enumerate(times)]
        asked = [self._check(f"q-{n}", at) for n, at in enumerate(times[::4])]
        for name, rows in (("payments", paid), ("checks", asked)):
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            (self.folder / f"{name}.csv").write_text("\n".join(lines) + "\n")

    def _payment(self, name: str, at_us: int) -> dict[str, Any]:
        return {
            "payment": name,
            "paid_at": instant(at_us),
            "sent_at": instant(at_us),
            "card": f"c-{self.random.randrange(CARDS)}",
            "amount": self.random.randrange(1, 100_000) / 100,
        }

    def _check(self, name: str, at_us: int) -> dict[str, Any]:
        return {
            "check": name,
            "asked_at": instant(at_us),
            "sent_at": instant(at_us),
            "card": f"c-{self.random.randrange(CARDS)}",
            "wanted": 1.5,
        }

    def produce(self, payments: int, checks: int) -> None:
        """Send messages of now, in turn."""
        producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap)
        try:
            kinds = ["payments"] * payments + ["checks"] * checks
            self.random.shuffle(kinds)
            for kind in kinds:
                number = self.sent[kind]
                self.sent[kind] += 1
                row = self.row_of_now(kind, f"{kind}-{number}")
                producer.send(
                    self.topics[kind],
                    json.dumps(row).encode(),
                    key=row["card"].encode(),
                    partition=self.random.randrange(self.partitions),
                )
            producer.flush()
        finally:
            producer.close()

    def row_of_now(self, kind: str, name: str) -> dict[str, Any]:
        """Return a row of now, without the time at which it is sent: its message has that."""
        make = self._payment if kind == "payments" else self._check
        row = make(name, time.time_ns() // 1_000)
        del row["sent_at"]
        return row

    def send_raw(self, kind: str, values: Sequence[bytes | None], partition: int = 0) -> None:
        """Send messages as they are."""
        producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap)
        try:
            for value in values:
                producer.send(self.topics[kind], value, key=b"key", partition=partition)
            producer.flush()
        finally:
            producer.close()

    def run(self, *arguments: str, within_s: float = 300) -> str:
        """Run a command to its end; return what it prints. It is killed after some time."""
        done = fork_server.run_command(arguments, self.folder, within_s)
        assert done.status == 0, f"status {done.status}: {done.printed}"
        return done.printed

    def verify(self, within_s: float = 300) -> int:
        """Prove everything; return how many values were compared."""
        said = self.run("verify", within_s=within_s)
        found = re.search(r"^0 mismatches in ([0-9,]+) values$", said, re.MULTILINE)
        assert found is not None
        return int(found[1].replace(",", ""))

    def start_proof(self, *arguments: str) -> Program:
        """Start `tidemill verify --follow`; whoever calls this ends it."""
        return self._start("proof.log", "verify", "--follow", *arguments)

    @contextmanager
    def proving(self, *arguments: str) -> Iterator[Program]:
        """Run `tidemill verify --follow`, and end it by SIGTERM: it must have found nothing."""
        process = self.start_proof(*arguments)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=180)
            assert status == 0, (self.folder / "proof.log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    @contextmanager
    def streaming(self, *arguments: str) -> Iterator[Program]:
        """Run `tidemill stream`; it is killed if it still runs when the block ends."""
        process = self.start_stream(*arguments)
        try:
            yield process
        except BaseException:
            print(f"status {process.poll()}; the streams have said:\n{self.log()[-_SHOWN:]}")
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def start_stream(self, *arguments: str) -> Program:
        """Start `tidemill stream`; whoever calls this ends it."""
        return self._start("stream.log", "stream", *arguments, *self.flags)

    def _start(self, log: str, *arguments: str) -> Program:
        if not self.alone:
            return fork_server.Started(arguments, self.folder, self.folder / log)
        code = "import sys; from tidemill.pipelines.commands.cli import main; sys.exit(main())"
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def drain(self, process: Program) -> None:
        """Stop a stream with SIGTERM, and check that it says so."""
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=180)
        assert status == 0, self.log()

    def log(self) -> str:
        """Return what the streams have printed."""
        return (self.folder / "stream.log").read_text()

    def predictions(self) -> list[dict[str, Any]]:
        """Return the answered requests of the stream."""
        try:
            folder = stream_of(self.folder / "run") / "predictions"
        except Exception:  # noqa: BLE001 - no stream has begun yet
            return []
        return rows_in(folder)

    def answered(self) -> int:
        """Count the answered requests of the stream, some of which a resumed one may repeat."""
        if not (self.folder / "run" / "CURRENT").exists():
            return 0
        return OutputFolder(stream_of(self.folder / "run") / "predictions").count()

    def wait_for(self, answered: int, process: Program, within_s: float = 240) -> None:
        """Wait until so many requests are answered."""
        deadline = time.monotonic() + within_s
        while len(self.predictions()) < answered:
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, (
                f"{len(self.predictions())} of {answered}\n{self.log()}"
            )
            time.sleep(0.2)
