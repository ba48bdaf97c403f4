"""Flights live: Kafka in, features, TensorFlow, Kafka out, on one machine, with a real broker.

The rows of December are sent in the order in which they happened, one a message, at a steady rate;
model and features are those of the live demo. *Latency* is from when a request is sent to when a
reader of committed messages has its prediction with a score. In mode ``exact`` an answer waits
until no earlier row of any source can come. The weather comes once an hour, so what it waits for is
the broker's word that the weather is quiet (`LiveReader`). Producer, broker, stream and reader
share the machine; `verify` recomputes every value and every score.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer
from kafka import KafkaConsumer

from benchmarks.measure import AnswersDiffer, Effort, Figure
from tests.support import fork_server
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import Program
from tidemill.examples.flights.live import TOPICS, configuration
from tidemill.examples.flights.live_data import prepare
from tidemill.examples.flights.live_producer import messages
from tidemill.pipelines.io.kafka.connection import CONFLUENT, KAFKA_PYTHON
from tidemill.pipelines.servers.project_topics import make_topics
from tidemill.serving.files.atomic_write import atomic_write

ROOT: Final = Path(__file__).parents[1]
ENGINES: Final = ("fnapi", "prism")
MODES: Final = ("exact", "eager")
RATES: Final = (500, 5_000)
STEADY_S: Final = 30.0
MONTH_S: Final = 31 * 86_400
_TRAVEL_S: Final = 0.1
"""How long a message may be on its way to the broker, at the average speed of the month."""
_WARM_S: Final = 5.0
"""Predictions of the first seconds are not measured: the stream catches up, the model loads."""
_SLOWLY: Final = 200.0
"""Messages per second before the first prediction has come."""
_BEGAN: Final = "began"
_LOOK_MS: Final = 20
_WAIT_S: Final = 120.0
_COMMAND_S: Final = 1_200.0
_COMMAND: Final = "import sys; from tidemill.pipelines.commands.cli import main; sys.exit(main())"


class Reader(threading.Thread):
    """Notes when the prediction of each request comes.

    Args:
        bootstrap: ``HOST:PORT`` of the broker.
    """

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self._broker, self._over = bootstrap, threading.Event()
        self.first = threading.Event()
        self.came: dict[str, int] = {}
        """Request id to when its prediction came, in microseconds since 1970."""
        self.without_score = 0

    def run(self) -> None:
        """See `Reader`."""
        consumer = KafkaConsumer(
            "predictions",
            bootstrap_servers=self._broker,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        while not self._over.is_set():
            for found in consumer.poll(timeout_ms=_LOOK_MS).values():
                now_us = time.time_ns() // 1_000
                for one in found:
                    row = json.loads(one.value)
                    self.came[row["request_id"]] = now_us
                    self.without_score += row["score"] is None
                self.first.set()
        consumer.close()

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join()


def tidemill(folder: Path, *arguments: str) -> str:
    """Run a command of `tidemill` in a folder; return what it prints.

    Raises:
        AnswersDiffer: It failed.
    """
    done = fork_server.run_command(arguments, folder, _COMMAND_S)
    if done.status != 0:
        raise AnswersDiffer(f"tidemill {' '.join(arguments)}: {done.printed}")
    return done.printed


@contextmanager
def broker_with_topics(folder: Path, speed: float, edits: dict[str, str]) -> Iterator[str]:
    """Start a broker with empty topics, and write the configuration; yields ``HOST:PORT``."""
    broker = TestBroker(folder / "kafka")
    broker.start()
    try:
        make_topics(broker.bootstrap, TOPICS)
        text = configuration(broker.bootstrap, speed, _TRAVEL_S)
        for before, after in edits.items():
            assert before in text
            text = text.replace(before, after)
        (folder / "tidemill.yaml").write_text(text)
        yield broker.bootstrap
    finally:
        broker.close()


def train(folder: Path) -> int:
    """Prepare the data, the features of November and the model; return how many rows there are."""
    counts = prepare(folder / "data")
    with broker_with_topics(folder, 1.0, {}):
        tidemill(folder, "backfill")
        tidemill(folder, "train")
    shutil.rmtree(folder / "kafka")
    return sum(counts.values())


@contextmanager
def streaming(folder: Path, log: Path, *, alone: bool) -> Iterator[Program]:
    """Run a stream while the block runs; it reads its topics when the block begins.

    Args:
        folder: Where it runs.
        log: What it prints.
        alone: Whether it imports all anew, and is not forked from a process that has.
    """
    command = [sys.executable, "-c", _COMMAND, "stream"]
    with log.open("w") as file:
        stream: Program = (
            subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
            if alone
            else fork_server.Started(("stream",), folder, log)
        )
        try:
            deadline = time.monotonic() + _WAIT_S
            while not any(folder.glob("run/generations/*/live/topics.json")):
                if stream.poll() is not None or time.monotonic() > deadline:
                    raise AnswersDiffer(f"the stream does not begin:\n{log.read_text()}")
                time.sleep(0.1)
            yield stream
        finally:
            if stream.poll() is None:
                stream.kill()
            stream.wait()


def latency(
    made: Path,
    folder: Path,
    engine: str,
    mode: str,
    rate: int,
    rows: int,
    seconds: float,
    client: str = KAFKA_PYTHON,
    *,
    alone: bool = True,
) -> list[Figure]:
    """Measure the latency of a steady stream of flights.

    Args:
        made: What `train` has made.
        folder: Where the stream runs.
        engine: ``fnapi`` or ``prism``.
        mode: ``exact`` or ``eager``.
        rate: Messages per second.
        rows: How many messages the month has.
        seconds: How long is measured, or until the month is over.
        client: The client library that reads and writes the topics of the stream.
        alone: Whether the stream imports all anew.

    Raises:
        AnswersDiffer: A prediction has no score, a value differs, or nothing was answered.
    """
    name = f"{engine}, {mode}, {rate:,} rows/s"
    if client != KAFKA_PYTHON:
        name += f", {client}"
    # A tenth of the month is for what is sent slowly.
    seconds = min(seconds, 0.9 * rows / rate - _WARM_S)
    shutil.copytree(made, folder)
    edits = {
        "engine: fnapi, mode: exact": f"engine: {engine}, mode: {mode}",
        "kafka: {": f"kafka: {{client: {client}, ",
    }
    with broker_with_topics(folder, rate * MONTH_S / rows, edits) as bootstrap:
        tidemill(folder, "backfill")
        go, sent, done = folder / "go", folder / "sent.json", folder / "done"
        log = folder / "stream.log"
        reader = Reader(bootstrap)
        with streaming(folder, log, alone=alone) as stream:
            reader.start()
            load = [sys.executable, "-m", "benchmarks.live_flights", str(folder / "data")]
            how = [bootstrap, str(rate), str(_WARM_S + seconds), str(go), str(sent), str(done)]
            with subprocess.Popen([*load, *how], cwd=ROOT) as producer:
                try:
                    if not reader.first.wait(_WAIT_S):
                        raise AnswersDiffer(
                            f"{name}: no answer in {_WAIT_S:g} s:\n{log.read_text()}"
                        )
                    go.touch()
                    while not sent.exists():
                        if producer.poll() is not None:
                            raise AnswersDiffer(f"{name}: the producer ended: {producer.poll()}")
                        time.sleep(0.1)
                    asked: dict[str, int] = json.loads(sent.read_text())
                    begin_us = asked.pop(_BEGAN) + _WARM_S * 1e6
                    # Those of the last second wait for rows that come slowly.
                    until_us = begin_us + (seconds - 1) * 1e6
                    steady = {one for one, at_us in asked.items() if begin_us <= at_us < until_us}
                    deadline = time.monotonic() + _WAIT_S
                    while (unanswered := steady - reader.came.keys()) and (
                        time.monotonic() < deadline
                    ):
                        time.sleep(0.1)
                finally:
                    done.touch()
            stream.send_signal(signal.SIGTERM)
            if stream.wait() != 0:
                raise AnswersDiffer(f"{name}: the stream failed:\n{log.read_text()}")
        time.sleep(1.0)
        reader.stop()
        if reader.without_score or unanswered or not steady:
            raise AnswersDiffer(
                f"{name}: {reader.without_score} of {len(reader.came)} predictions have no score, "
                f"{len(unanswered)} of {len(steady)} requests no prediction:\n{log.read_text()}"
            )
        took_ms = [(reader.came[one] - asked[one]) / 1_000 for one in steady]
        streamed = summary(folder)["stream"]
        printed = tidemill(folder, "verify")
        verified = summary(folder)["verify"]
        if verified["mismatches"]:
            raise AnswersDiffer(f"{name}: {printed}")
    note = f"{len(took_ms):,} predictions; {streamed['late']:,} late events"
    return [
        *(
            Figure(f"{name}: p{percent}", float(np.percentile(took_ms, percent)), "ms", note=note)
            for percent in (50, 99)
        ),
        Figure(f"{name}: values verified", verified["values"], "values"),
    ]


def summary(folder: Path) -> dict[str, Any]:
    """Return the figures of the stages that have run in a folder."""
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def send(
    folder: Path, bootstrap: str, rate: float, seconds: float, go: Path, sent: Path, done: Path
) -> None:
    """Send rows at a steady rate, and write when each request was sent, by its id.

    Then rows go on to come slowly, since exact answers wait for them.

    Args:
        folder: What `prepare` has written.
        bootstrap: ``HOST:PORT`` of the broker.
        rate: Messages per second.
        seconds: For how long.
        go: Until this file is there, rows come slowly.
        sent: Where the times are written.
        done: Until this file is there, rows go on to come.
    """
    rows = []
    for at, name, row in messages(folder):
        value = json.dumps(row, default=lambda one: one.isoformat()).encode()
        rows.append((name, str(next(iter(row.values()))), value, round(at.timestamp() * 1_000)))
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2})
    asked: dict[str, int] = {}
    began, due_s, goes, has_sent = time.monotonic(), 0.0, False, False
    for name, key, value, at_ms in rows:
        while (now_s := time.monotonic() - began) < due_s:
            producer.poll(0)
            if not goes and go.exists():
                began, due_s, goes = time.monotonic(), 0.0, True
                now_s = 0.0
                asked[_BEGAN] = time.time_ns() // 1_000
                break
            time.sleep(min(due_s - now_s, 0.01))
        if goes and not has_sent and now_s > seconds:
            _write(producer, asked, sent)
            has_sent = True
        if done.exists():
            break
        due_s += 1 / (rate if goes and not has_sent else min(rate, _SLOWLY))
        if name == "requests" and not has_sent:
            asked[key] = time.time_ns() // 1_000
        producer.produce(name, value, key=key.encode(), timestamp=at_ms)
    if not has_sent:
        _write(producer, asked, sent)


def _write(producer: Producer, asked: Mapping[str, int], sent: Path) -> None:
    if producer.flush(60):
        raise AnswersDiffer("the broker has not taken all messages")
    with atomic_write(sent) as unfinished:
        unfinished.write_text(json.dumps(asked))


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    cases = [
        (engine, mode, rate, KAFKA_PYTHON) for engine in ENGINES for mode in MODES for rate in RATES
    ]
    cases += [("fnapi", "exact", rate, CONFLUENT) for rate in RATES]
    seconds = max(10 * effort.seconds, STEADY_S)
    if quick:
        cases, seconds = [("fnapi", "exact", 200, KAFKA_PYTHON)], 2.0
    out: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-flights-") as place:
        made = Path(place) / "made"
        made.mkdir()
        rows = train(made)
        for engine, mode, rate, client in cases:
            folder = Path(place) / f"{engine}-{mode}-{rate}-{client}"
            out += latency(made, folder, engine, mode, rate, rows, seconds, client, alone=not quick)
            shutil.rmtree(folder)
            for one in out[-3:]:
                print(f"{one.name}: {one.value:,.1f} {one.unit} {one.note}", flush=True)
    return out


if __name__ == "__main__":
    where, to, how_fast, how_long, *paths = sys.argv[1:]
    send(Path(where), to, float(how_fast), float(how_long), *map(Path, paths))
