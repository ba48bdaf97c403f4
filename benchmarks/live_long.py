"""Live streams for long: a soak, or catching up after a standstill. Not part of `make bench`.

    make soak                                          # an hour at 2,000 rows/s on Prism
    make soak ARGS="--minutes 5 --engine fnapi"
    make soak ARGS="--standstill 60 --engine fnapi"    # messages of an hour wait, more come
    make soak ARGS="--filled 60"                       # a soak that begins with full windows
    make soak ARGS="--engine flink"                    # on a Flink cluster of this machine

Writes ``live_soak.json`` or ``live_catch_up.json``, with the engine's name if it is Flink, whose
processes all count for memory; a soak draws with ``--picture FILE`` how
latency and memory went. The longest window is an hour, so memory rises in the first hour, unless
the stream has taken the rows of an hour before. The exit status is 1 if a value differs, or a
prediction was lost or doubled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import confluent_kafka
import numpy as np
import psutil
from kafka import KafkaConsumer, TopicPartition

from benchmarks.live import DISORDER_MS, Reader, load, prove
from benchmarks.live_load import CARDS, PARTITIONS, REQUEST_EVERY, row_of
from benchmarks.measure import AnswersDiffer, Figure, Report, kept_on_failure
from tests.support.flink_cluster import TestCluster
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, Program, instant
from tests.support.topics import committed
from tidemill.features.errors import TidemillError
from tidemill.pipelines.config.configuration import load as load_configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog

RESULTS: Final = Path(__file__).parent / "results"
Found = TypeVar("Found")
_TENTH: Final = 10
_CAUGHT_UP_S: Final = 2.0
"""A stream has caught up when it is behind by less than the rows of so many seconds."""


@dataclass
class Watch:
    """Samples a stream while the block of `watching` runs.

    Attributes:
        at_s: When each sample was taken, from the beginning.
        memory_gib: The memory of the stream, of all its processes, and of its cluster.
    """

    at_s: list[float] = field(default_factory=list)
    memory_gib: list[float] = field(default_factory=list)

    def most(self, name: str) -> Figure:
        """Return the most memory that was seen.

        Raises:
            AnswersDiffer: The stream ended before the first sample.
        """
        if not self.memory_gib:
            raise AnswersDiffer(f"{name}: it ended before its memory was looked at once")
        return Figure(f"{name}: memory at most", max(self.memory_gib), "GiB")


@contextmanager
def watching(pids: Sequence[int], every_s: float) -> Iterator[Watch]:
    """Sample processes and their children."""
    watch, ended, began = Watch(), threading.Event(), time.monotonic()
    processes = [psutil.Process(pid) for pid in pids]

    def run() -> None:
        while not ended.wait(every_s):
            total = 0
            try:
                for process in processes:
                    for one in (process, *process.children(recursive=True)):
                        total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            watch.at_s.append(time.monotonic() - began)
            watch.memory_gib.append(total / 2**30)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def begun_before(
    given: argparse.Namespace, folder: Path, broker: TestBroker, minutes: float
) -> LiveProject:
    """Return a project that is ready to stream; its topics have the rows of the minutes before."""
    project = LiveProject(
        folder,
        broker,
        given.engine,
        savepoint_every="10s",
        sinks=True,
        ago=minutes + 2,
        alone=True,
    )
    if given.cluster is not None:
        project.flags = given.cluster.flags
    project.run("backfill")
    if minutes:
        now_us = time.time_ns() // 1_000
        rows = round(given.rate * minutes * 60)
        produce_past(project, rows, now_us - round(minutes * 60e6), now_us)
    return project


def processes_of(given: argparse.Namespace, process: Program) -> list[int]:
    """Return the processes of a stream, and of the cluster that it runs on."""
    of_cluster = [] if given.cluster is None else given.cluster.running.values()
    return [process.pid, *(one.pid for one in of_cluster)]


def soak(given: argparse.Namespace, folder: Path, broker: TestBroker) -> list[Figure]:
    """Let a stream run for long at a rate."""
    project = begun_before(given, folder, broker, given.filled)
    seconds = given.minutes * 60
    with project.streaming() as process:
        if given.filled:
            catching_up(project, process, given.rate)
        else:
            project.produce(10, 5)
            project.wait_for(5, process)
        reader, began_us = Reader(project), time.time_ns() // 1_000
        with (
            watching(processes_of(given, process), max(seconds / 360, 1.0)) as watch,
            load(project, given.rate, seconds) as producing,
        ):
            while producing.poll() is None:
                assert process.poll() is None, project.log()
                time.sleep(1.0)
        project.drain(process)
        time.sleep(1.0)
        reader.close()
    if not reader.came:
        raise AnswersDiffer(
            f"nothing was answered in {seconds:g} s; the stream said:\n{project.log()}"
        )
    asked, came = (np.array(column, np.float64) for column in zip(*reader.came, strict=True))
    at_s, took_ms = (asked - began_us) / 1e6, (came - asked) / 1_000 - DISORDER_MS["exact"]
    name = f"{given.engine}, {given.rate:,.0f} rows/s for {given.minutes:g} minutes"
    out = []
    for part, first in (("first", 0), ("last", _TENTH - 1)):
        low, high = seconds * first / _TENTH, seconds * (first + 1) / _TENTH
        within = took_ms[(at_s >= low) & (at_s < high)]
        held = [
            memory
            for at, memory in zip(watch.at_s, watch.memory_gib, strict=True)
            if low <= at < high
        ]
        for percent in (50, 99):
            what = f"{name}: p{percent} of the {part} tenth"
            out.append(Figure(what, float(np.percentile(within, percent)), "ms"))
        out.append(Figure(f"{name}: memory in the {part} tenth", float(np.mean(held)), "GiB"))
    out.append(watch.most(name))
    if given.picture is not None:
        draw(given.picture, at_s, took_ms, watch)
    return [*out, *whole(project, name)]


def whole(project: LiveProject, name: str) -> list[Figure]:
    """Check that each request has one prediction in the topic, and verify all values.

    Raises:
        AnswersDiffer: Predictions were lost or doubled, or there is none.
    """
    found = Counter(message.key for message in committed(project, "predictions"))
    wanted = Counter(row["request_id"].encode() for row in project.predictions())
    if not wanted:
        raise AnswersDiffer(
            f"{name}: no request was answered before the stream was stopped, so nothing can be "
            f"compared: let rows come for longer (--minutes); the stream said:\n{project.log()}"
        )
    if found != wanted or max(wanted.values()) > 1:
        raise AnswersDiffer(f"{name}: {len(wanted - found)} lost, {len(found - wanted)} doubled")
    return [
        Figure(f"{name}: predictions", len(wanted), "predictions"),
        prove(project, name).figure(name),
    ]


def draw(path: Path, at_s: np.ndarray, took_ms: np.ndarray, watch: Watch) -> None:
    """Draw latency and memory over time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    mpl.rcParams["svg.hashsalt"] = "tidemill"
    drawing = Drawing(figsize=(9, 5), layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True)
    ends = np.linspace(0, at_s.max(), 121)
    middles = (ends[1:] + ends[:-1]) / 120
    for percent, style in ((50, "-"), (99, "--")):
        spans = (took_ms[(at_s >= low) & (at_s < high)] for low, high in itertools.pairwise(ends))
        values = [np.percentile(found, percent) if len(found) else np.nan for found in spans]
        above.plot(middles, values, style, color="tab:blue", label=f"p{percent}")
    above.set(ylabel="request to prediction, ms", ylim=(0, None))
    above.legend()
    below.plot(np.array(watch.at_s) / 60, watch.memory_gib, color="tab:orange")
    below.set(xlabel="minutes", ylabel="memory, GiB", ylim=(0, None))
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def produce_past(project: LiveProject, rows: int, begin_us: int, end_us: int) -> None:
    """Send messages whose times lie evenly in a span of the past, as fast as possible."""
    settings = {"bootstrap.servers": project.broker.bootstrap, "linger.ms": 20}
    producer = confluent_kafka.Producer(
        {**settings, "queue.buffering.max.messages": 200_000, "compression.type": "lz4"}
    )
    chance = random.Random(1)
    for number in range(rows):
        at_us = begin_us + (end_us - begin_us) * number // rows
        is_request, card = number % REQUEST_EVERY == 0, chance.randrange(CARDS)
        row = row_of(is_request, f"old-{number}", card, instant(at_us))
        topic = project.topics["checks" if is_request else "payments"]
        while True:
            try:
                producer.produce(
                    topic,
                    json.dumps(row).encode(),
                    partition=card % PARTITIONS,
                    timestamp=at_us // 1_000,
                )
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1_000 == 0:
            producer.poll(0)
    if producer.flush(120):
        raise AnswersDiffer("the broker has not taken all messages")


class Behind:
    """Tells how far the reader of a stream is in each partition, and how far the topics go."""

    def __init__(self, project: LiveProject) -> None:
        config = load_configuration(project.folder / "tidemill.yaml")
        self._live = LiveLog(config.current.folder / LIVE, config.project)
        self._consumer = KafkaConsumer(bootstrap_servers=project.broker.bootstrap)
        self._places = {
            (name, number): TopicPartition(project.topics[name], number)
            for name in ("payments", "checks")
            for number in range(PARTITIONS)
        }

    def offsets(self) -> dict[tuple[str, int], int] | None:
        """Return the next offset to read of each partition; None if a seal is at work."""
        try:
            last = self._live.polls.last()
        except (TidemillError, OSError):
            return None
        if last is None:
            return None
        return {(name, n): last.offsets[name][n] for name, n in self._places}

    def rows(self) -> int | None:
        """Return how many messages are not read."""
        offsets = self.offsets()
        if offsets is None:
            return None
        ends = self._consumer.end_offsets([*self._places.values()])
        return sum(int(ends[place]) - offsets[key] for key, place in self._places.items())

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def catch_up(given: argparse.Namespace, folder: Path, broker: TestBroker) -> list[Figure]:
    """Let a stream catch up with what has come while it stood still, and with what comes."""
    project = begun_before(given, folder, broker, given.standstill)
    rows = round(given.rate * given.standstill * 60)
    name = f"{given.engine}, {rows:,} rows wait and {given.rate:,.0f} rows/s come"
    with project.streaming() as process:
        with (
            watching(processes_of(given, process), 1.0) as watch,
            load(project, given.rate, given.minutes * 60) as producing,
        ):
            took, stood = catching_up(project, process, given.rate)
            producing.terminate()
        project.drain(process)
    return [
        Figure(f"{name}: caught up after", took, "s"),
        Figure(f"{name}: rows", (rows + given.rate * took) / took, "rows/s"),
        watch.most(name),
        Figure(f"{name}: longest standstill of a partition", stood, "s"),
        *whole(project, name),
    ]


def catching_up(project: LiveProject, process: Program, rate: float) -> tuple[float, float]:
    """Wait until a stream has taken what its topics have.

    Args:
        project: The project.
        process: The stream.
        rate: The rows a second that come meanwhile.

    Returns:
        The seconds that it took, and the longest in which a partition did not move.
    """

    def check() -> None:
        assert process.poll() is None, project.log()

    stood: dict[tuple[str, int], float] = defaultdict(float)
    behind = wait_for(lambda: Behind(project), check)
    before = wait_for(behind.offsets, check)
    began, moved = time.monotonic(), dict.fromkeys(before, 0.0)
    while (left := behind.rows()) is None or left > rate * _CAUGHT_UP_S:
        check()
        time.sleep(0.2)
        if (found := behind.offsets()) is None:
            continue
        now = time.monotonic() - began
        for place, offset in found.items():
            if offset > before[place]:
                moved[place] = now
            stood[place] = max(stood[place], now - moved[place])
        before = found
    behind.close()
    return time.monotonic() - began, max(stood.values(), default=0.0)


def wait_for(look: Callable[[], Found | None], check: Callable[[], None]) -> Found:
    """Return what is found once it is there."""
    while True:
        check()
        try:
            found = look()
        except TidemillError:
            found = None  # no stream has begun yet
        if found is not None:
            return found
        time.sleep(0.2)


def _measured(given: argparse.Namespace, folder: Path) -> list[Figure]:
    """Run what was asked for, with servers of its own below a folder."""
    what = catch_up if given.standstill else soak
    broker, given.cluster = TestBroker(folder / "kafka"), None
    broker.start()
    try:
        if given.engine == "flink":
            given.cluster = TestCluster(folder / "cluster", supervised=True)
            given.cluster.start()
        return what(given, folder / "project", broker)
    finally:
        if given.cluster is not None:
            given.cluster.close()
        broker.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_long", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long rows come")
    parser.add_argument("--rate", type=float, default=2_000.0, help="rows a second")
    parser.add_argument("--engine", default="prism", choices=("fnapi", "prism", "flink"))
    parser.add_argument("--standstill", type=float, default=0.0, help="minutes whose rows wait")
    parser.add_argument(
        "--filled", type=float, default=0.0, help="minutes that a soak takes before"
    )
    parser.add_argument("--picture", type=Path, help="where to draw latency and memory (soak)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    given_text = " ".join(sys.argv[1:] if arguments is None else arguments)
    try:
        with kept_on_failure("tidemill-long-") as folder:
            figures = _measured(given, folder)
    except AnswersDiffer as error:
        print(error, file=sys.stderr)
        return 1
    name = "live_catch_up" if given.standstill else "live_soak"
    name += "_flink" if given.engine == "flink" else ""
    command = f"python -m benchmarks.live_long {given_text}".rstrip()
    Report(name, command, quick=False, figures=figures).write(given.results)
    for one in figures:
        print(f"{one.name}: {one.value:,.1f} {one.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
