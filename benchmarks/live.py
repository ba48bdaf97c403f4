"""Live streams: Kafka in, features, Kafka out, on one machine, with a real broker.

*Latency* is from when a producer makes a request to when a reader of committed messages has its
prediction, less the 1 s by which rows may be out of order (mode ``exact`` waits for it; ``eager``
does not). Producer, broker, stream and reader share the machine. *Sustained* is how fast a stream
takes a topic that is full, in turn with a reader of the same client that does nothing else, or with
the kernel alone. At the end of each stream `verify` recomputes every value.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import psutil
from kafka import KafkaConsumer, TopicPartition

from benchmarks.kernel import SLICE_ROWS, OneView, cut
from benchmarks.live_load import CARDS, REQUEST_EVERY
from benchmarks.measure import AnswersDiffer, Effort, Figure, spread
from benchmarks.workload import make_workload
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tidemill.features.definitions import Aggregation, col, count, last, mean
from tidemill.features.definitions import sum as sum_

ROOT: Final = Path(__file__).parents[1]
ENGINES: Final = ("fnapi", "prism")
MODES: Final = ("exact", "eager")
RATES: Final = (500, 5_000)
DISORDER_MS: Final = {"exact": 1_000.0, "eager": 0.0}
BACKLOG_ROWS: Final = 100_000
LARGE_ROWS: Final = 1_000
"""The rows of a large message."""
LARGE_BACKLOG: Final = {"arrow": 4_000_000, "json": 1_000_000}
FOUR: Final[dict[str, Aggregation]] = {
    "payments_10m": count(over="10m"),
    "spent_10m": sum_(col("amount"), over="10m"),
    "mean_1h": mean(col("amount"), over="1h"),
    "last_amount": last(col("amount"), over="1h"),
}
"""The features of the project, on the payments of `benchmarks.workload`."""
_WARM_S: Final = 5.0
"""Predictions of the first seconds are not measured: the stream catches up, kernels load."""
_LOOK_MS: Final = 100
_WAIT_S: Final = 120.0
_VERIFY_S: Final = 3_600.0


class Reader:
    """Reads the predictions of a topic in a thread, and notes when each came."""

    def __init__(self, project: LiveProject) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=project.broker.bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
        )
        topic = project.topics["predictions"]
        places = [TopicPartition(topic, number) for number in range(2)]
        self._consumer.assign(places)
        self._consumer.seek_to_end()
        for place in places:
            self._consumer.position(place)
        self.came: list[tuple[int, int]] = []
        """When each request was made and its prediction came, in microseconds."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for messages in self._consumer.poll(timeout_ms=_LOOK_MS).values():
                now_us = time.time_ns() // 1_000
                for one in messages:
                    asked = json.loads(one.value)["request_time"].removesuffix("Z")
                    self.came.append((int(np.datetime64(asked, "us").astype(np.int64)), now_us))

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()


@contextmanager
def load(
    project: LiveProject, rate: float, amount: float, rows: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Produce in another process while the block runs (`benchmarks.live_load`)."""
    topics = project.topics["payments"], project.topics["checks"]
    command = [sys.executable, "-m", "benchmarks.live_load", project.broker.bootstrap, *topics]
    how = [str(rate), str(amount), str(rows), project.format]
    with subprocess.Popen([*command, *how], cwd=ROOT) as process:
        yield process


Adapt = Callable[[LiveProject], None]
"""Changes a project before anything is done with it."""


def as_it_is(project: LiveProject) -> None:
    """Change nothing."""


def quickly(project: LiveProject) -> None:
    """Let a quick run's streams be forked from a process that has imported what they need."""
    project.alone = False


def latency(
    folder: Path,
    broker: TestBroker,
    engine: str,
    mode: str,
    rate: int,
    seconds: float,
    adapt: Adapt = as_it_is,
) -> list[Figure]:
    """Measure the latency of a steady stream.

    Args:
        folder: Where it runs.
        broker: The broker.
        engine: Its name in the figures, and in the configuration unless `adapt` changes it.
        mode: ``exact`` or ``eager``.
        rate: Rows per second.
        seconds: How long.
        adapt: Changes its project.
    """
    project = LiveProject(
        folder, broker, engine, mode, savepoint_every="10s", sinks=True, alone=True
    )
    adapt(project)
    project.run("backfill")
    with project.streaming() as process:
        project.produce(10, 5)
        project.wait_for(5, process)
        reader = Reader(project)
        began_us = time.time_ns() // 1_000 + round(_WARM_S * 1e6)
        with load(project, rate, _WARM_S + seconds) as producing:
            assert producing.wait() == 0
        expected = round(rate * (_WARM_S + seconds)) // REQUEST_EVERY
        deadline = time.monotonic() + _WAIT_S
        # Requests of the last second wait for rows that do not come.
        while len(reader.came) < 0.8 * expected and time.monotonic() < deadline:
            time.sleep(0.1)
        project.drain(process)
        time.sleep(1.0)
        reader.close()
    asked, came = (np.array(column, np.float64) for column in zip(*reader.came, strict=True))
    until_us = began_us + (seconds - 1) * 1e6
    steady = (asked >= began_us) & (asked < until_us)
    took_ms = (came - asked)[steady] / 1_000 - DISORDER_MS[mode]
    name = f"{engine}, {mode}, {rate:,} rows/s"
    proof = prove(project, name)
    note = (
        f"{len(took_ms):,} predictions; beyond {DISORDER_MS[mode]:,.0f} ms of disorder; "
        f"{proof.late:,} late events"
    )
    figures = [
        Figure(f"{name}: p{percent}", float(np.percentile(took_ms, percent)), "ms", note=note)
        for percent in (50, 99)
    ]
    return [*figures, proof.figure(name)]


@dataclass(frozen=True)
class Proof:
    """What `verify` has found of a stream that has ended: no mismatch.

    Attributes:
        values: How many values were equal.
        late: How many events had come too late for an answer.
    """

    values: int
    late: int

    def figure(self, name: str) -> Figure:
        """Return the figure of the values."""
        return Figure(f"{name}: values verified", self.values, "values")


def prove(project: LiveProject, name: str) -> Proof:
    """Verify a stream that has ended."""
    found = project.run("verify", within_s=_VERIFY_S)
    figures = json.loads((project.folder / "run" / "summary.json").read_text())
    if figures["verify"]["mismatches"]:
        raise AnswersDiffer(f"{name}: {found}")
    return Proof(figures["verify"]["values"], figures["stream"]["late"])


def bare_reader(project: LiveProject, rows: int) -> float:
    """Return how many rows per second a reader of the stream's client takes, and does no more."""
    consumer = KafkaConsumer(
        bootstrap_servers=project.broker.bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    consumer.assign(
        [
            TopicPartition(project.topics[name], number)
            for name in ("payments", "checks")
            for number in range(2)
        ]
    )
    consumer.seek_to_beginning()
    began, seen = time.monotonic(), 0
    while seen < rows:
        seen += sum(len(found) for found in consumer.poll(timeout_ms=_LOOK_MS).values())
    taken = time.monotonic() - began
    consumer.close()
    return rows / taken


class Sustained(NamedTuple):
    """How fast a stream has taken a topic that is full.

    Attributes:
        rate: Rows per second.
        memory: The most memory of the stream, in GiB.
        against: The rate, as a multiple of what it was measured in turn with.
        alone: The rate of that, in rows per second.
        proof: What `verify` found.
    """

    rate: float
    memory: float
    against: float
    alone: float
    proof: Proof


def take_backlog(project: LiveProject, name: str, rows: int, alone: float) -> Sustained:
    """Let a stream take all rows that its topics have.

    Args:
        project: Whose topics are full.
        name: What is measured.
        rows: How many rows the topics have.
        alone: The rate of what the stream is compared with, in rows per second.
    """
    requests = rows // REQUEST_EVERY
    with project.streaming() as process:
        watched, most = psutil.Process(process.pid), 0.0
        while project.answered() < 1:
            assert process.poll() is None, project.log()
            time.sleep(0.05)
        first, began = project.answered(), time.monotonic()
        while (answered := project.answered()) < 0.9 * requests:
            assert process.poll() is None, project.log()
            most = max(most, watched.memory_info().rss / 2**30)
            time.sleep(0.2)
        rate = (answered - first) * REQUEST_EVERY / (time.monotonic() - began)
        project.drain(process)
    return Sustained(rate, most, rate / alone, alone, prove(project, name))


def figures_of(name: str, what: str, runs: Sequence[Sustained], note: str) -> list[Figure]:
    """Return the figures of a case: medians, with the least and the greatest.

    Args:
        name: The case.
        what: What it was measured in turn with.
        runs: Its runs.
        note: How its rows came.
    """
    late = f"{note}; {sum(one.proof.late for one in runs):,} late events"
    return [
        spread(f"{name}: rows", [one.rate for one in runs], "rows/s", late),
        spread(f"{name}: {what}", [one.alone for one in runs], "rows/s"),
        spread(f"{name}: against {what}", [one.against for one in runs], "x"),
        spread(f"{name}: memory at most", [one.memory for one in runs], "GiB"),
        Figure(f"{name}: values verified", sum(one.proof.values for one in runs), "values"),
    ]


def sustained(
    folder: Path,
    broker: TestBroker,
    engine: str,
    rows: int,
    pairs: int,
    adapt: Adapt = as_it_is,
    *,
    sinks: bool,
) -> list[Figure]:
    """Measure how fast a stream takes messages of one row.

    Args:
        folder: Where it runs.
        broker: The broker.
        engine: Its name in the figures, and in the configuration unless `adapt` changes it.
        rows: The rows of its topics.
        pairs: How often it and the reader run, in turn.
        adapt: Changes its project.
        sinks: Whether predictions also go to a topic.
    """
    name = f"{engine}, sustained, {'predictions to a topic' if sinks else 'features'}"
    runs = []
    for pair in range(pairs):
        place = folder / str(pair)
        project = LiveProject(place, broker, engine, savepoint_every="10s", sinks=sinks, alone=True)
        adapt(project)
        project.run("backfill")
        with load(project, 0, rows) as producing:
            assert producing.wait() == 0
        runs.append(take_backlog(project, name, rows, bare_reader(project, rows)))
    return figures_of(name, "a bare reader", runs, "one row a message, JSON")


def kernel_alone(rows: int) -> float:
    """Return the rows per second of preparing and advancing, in slices, on one core."""
    workload, one = make_workload(rows, CARDS), OneView(FOUR)
    slices = cut(workload, SLICE_ROWS)
    one.advance_over([one.prepare(part) for part in slices[:2]])
    began = time.process_time()
    one.advance_over([one.prepare(part) for part in slices])
    return rows / (time.process_time() - began)


def large_messages(
    folder: Path,
    broker: TestBroker,
    form: str,
    rows: int,
    kernel_rows: int,
    pairs: int,
    engine: str = "fnapi",
    adapt: Adapt = as_it_is,
) -> list[Figure]:
    """Measure how fast a stream takes messages of many rows, and writes answers to files.

    Args:
        folder: Where it runs.
        broker: The broker.
        form: The format of the messages.
        rows: The rows of its topics.
        kernel_rows: The rows that the kernel takes alone.
        pairs: How often it and the kernel run, in turn.
        engine: Its name in the figures, and in the configuration unless `adapt` changes it.
        adapt: Changes its project.
    """
    name = f"{engine}, {LARGE_ROWS:,} rows a message as {form}"
    runs = []
    for pair in range(pairs):
        place = folder / str(pair)
        project = LiveProject(place, broker, engine, savepoint_every="10s", format=form, alone=True)
        adapt(project)
        project.run("backfill")
        with load(project, 0, rows, LARGE_ROWS) as producing:
            assert producing.wait() == 0
        runs.append(take_backlog(project, name, rows, kernel_alone(kernel_rows)))
        shutil.rmtree(place)
    return figures_of(name, "the kernel alone", runs, "answers to files")


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    cases: list[tuple[str, str, int]] = [
        (engine, mode, rate) for engine in ENGINES for mode in MODES for rate in RATES
    ]
    seconds, rows = max(3 * effort.seconds, 2.0), BACKLOG_ROWS
    adapt = as_it_is
    if quick:
        cases, rows, adapt = [("fnapi", "eager", 40)], 400, quickly
    out: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-live-") as folder:
        broker = TestBroker(Path(folder) / "kafka")
        broker.start()
        try:
            for engine, mode, rate in cases:
                place = Path(folder) / f"{engine}-{mode}-{rate}"
                out += latency(place, broker, engine, mode, rate, seconds, adapt)
                print(
                    *(f"{one.name} {one.value:,.1f} {one.unit}" for one in out[-3:]),
                    sep="; ",
                    flush=True,
                )
            for engine in ENGINES if not quick else ("fnapi",):
                for sinks in (False, True) if not quick else (False,):
                    place = Path(folder) / f"{engine}-full-{sinks}"
                    out += sustained(place, broker, engine, rows, effort.pairs, adapt, sinks=sinks)
            for form, backlog in LARGE_BACKLOG.items():
                place = Path(folder) / f"large-{form}"
                large, kernel = (8_000, 2_000) if quick else (backlog, 1_000_000)
                out += large_messages(place, broker, form, large, kernel, effort.pairs, adapt=adapt)
        finally:
            broker.close()
    return out
