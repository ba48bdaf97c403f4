"""What is measured of each system: a full topic, and a steady stream."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.peers.environments import ROOT
from benchmarks.peers.load import fill
from benchmarks.peers.rows import (
    DISORDER_MS,
    PARTITIONS,
    REQUEST_EVERY,
    Rows,
    differences,
    evenly,
)
from benchmarks.peers.systems import Run, System, SystemFailed
from benchmarks.peers.watching import Answers, Processes, Read
from tests.support.kafka_broker import TestBroker

HOUR_MS: Final = 3_600_000
DONE_SHARE: Final = 0.97
FILLED_ROWS: Final = 40_000
"""The rows that a steady stream has before it: two a card, over a day."""
_WARM_S: Final = 4.0
_SETTLE_S: Final = 3.0
_LAST_S: Final = 20.0
_LOOK_S: Final = 0.05


@dataclass(frozen=True)
class Limits:
    """How long a case lasts.

    Attributes:
        seconds: How long a system is measured, at most.
        patience_s: How long it may take to its first answers.
    """

    seconds: float
    patience_s: float


@dataclass(frozen=True)
class Backlog:
    """Topics that are full.

    Attributes:
        topics: Those of payments and of requests.
        rows: What is in them.
        form: As messages of which form.
    """

    topics: tuple[str, str]
    rows: Rows
    form: str


@dataclass
class Outcome:
    """What a case has found; figures that it lacks are None.

    Attributes:
        system: The system's name.
        case: What was measured.
        parallelism: How many workers it had.
        values: The figures, by name.
        problem: Why there are none.
        promises: What the system's answers and state promise.
    """

    system: str
    case: str
    parallelism: int
    values: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    promises: str = ""


def make_backlog(broker: TestBroker, form: str, rows: int) -> Backlog:
    """Fill topics with rows of the last 26 hours."""
    now = time.time_ns() // 1_000_000
    made = evenly(rows, now - 26 * HOUR_MS, now - 60_000)
    topics = broker.new_topic(PARTITIONS), broker.new_topic(PARTITIONS)
    fill(broker.bootstrap, topics, made, form)
    return Backlog(topics, made, form)


@contextmanager
def running(system: System, run: Run) -> Iterator[tuple[Answers, Processes]]:
    """Run a system, and watch it."""
    answers = processes = None
    try:
        system.start(run)
        answers = Answers(run.bootstrap, run.topics[2])
        processes = Processes(lambda: list(system.processes()))
        yield answers, processes
    finally:
        if processes is not None:
            processes.close()
        system.stop()
        if answers is not None:
            answers.close()


def wait(until: Callable[[], bool], system: System, seconds: float) -> bool:
    """Wait until something holds; False if it does not in time.

    Raises:
        SystemFailed: The system has ended.
    """
    deadline = time.monotonic() + seconds
    while not until():
        failure = system.failure()
        if failure is not None:
            raise SystemFailed(failure)
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def sustained(
    system: System,
    broker: TestBroker,
    folder: Path,
    backlog: Backlog,
    parallelism: int,
    limits: Limits,
) -> Outcome:
    """Measure how fast a system takes topics that are full.

    Args:
        system: The system.
        broker: The broker.
        folder: Where it runs.
        backlog: The topics.
        parallelism: How many workers it may have.
        limits: How long that may take.
    """
    topics = (*backlog.topics, broker.new_topic(PARTITIONS))
    begin = int(backlog.rows.times.min()) - 60_000
    run = Run(
        folder, broker.bootstrap, topics, backlog.form, parallelism, steady=False, begin_ms=begin
    )
    asked = len(backlog.rows.sent) // REQUEST_EVERY
    with running(system, run) as (answers, processes):
        if not wait(lambda: bool(answers.came), system, limits.patience_s):
            raise SystemFailed(f"no answer in {limits.patience_s:.0f} s")
        wait(lambda: answers.count >= DONE_SHARE * asked, system, limits.seconds)
        time.sleep(1.0)  # for the last sample of CPU time
        # A system that corrects answers counts once a request.
        read = answers.read(system.answer)
        times = np.sort(np.fromiter(read.came.values(), float))
        first = times[0]
        last = times[min(int(DONE_SHARE * asked), len(times)) - 1]
        rows = REQUEST_EVERY * float(np.count_nonzero((times > first) & (times <= last)))
        if last <= first:
            raise SystemFailed("all answers came at once: the rate cannot be told")
        values = {
            "rows/s": rows / (last - first),
            "CPU s a million rows": processes.cpu_s(first, last) / rows * 1e6,
            "CPU s from start": processes.cpu_s(0.0, last),
            "memory GiB": processes.most_bytes / 2**30,
            "answered": len(read.answers) / asked,
        }
        values["rows/s a core"] = 1e6 / values["CPU s a million rows"]
    values.update(_checked([backlog.rows], read, system))
    return Outcome(system.name, backlog.form, parallelism, values, promises=system.promises)


def steady(
    system: System,
    broker: TestBroker,
    folder: Path,
    rates: Sequence[int],
    parallelism: int,
    limits: Limits,
) -> list[Outcome]:
    """Measure the latency of steady streams, one rate after the other.

    Latency is from when a request is made to when a reader of committed messages has its answer,
    less the second by which rows may be out of order.
    """
    topics = (*(broker.new_topic(PARTITIONS) for _ in range(2)), broker.new_topic(PARTITIONS))
    now = time.time_ns() // 1_000_000
    before = evenly(FILLED_ROWS, now - 25 * HOUR_MS, now - 2_000, seed=2)
    fill(broker.bootstrap, topics[:2], before, "rows")
    run = Run(
        folder,
        broker.bootstrap,
        topics,
        "rows",
        parallelism,
        steady=True,
        begin_ms=int(before.times.min()) - 60_000,
    )
    file = folder.with_suffix(".npz")
    seconds = limits.seconds
    phase_s = seconds + _WARM_S
    with running(system, run) as (answers, processes):
        asked = len(before.sent) // REQUEST_EVERY
        if not wait(lambda: answers.count >= 0.9 * asked, system, limits.patience_s):
            raise SystemFailed(
                f"{answers.count:,} of {asked:,} answers in {limits.patience_s:.0f} s, before the "
                "stream"
            )
        time.sleep(_SETTLE_S)
        command = [sys.executable, "-m", "benchmarks.peers.load", run.bootstrap, *topics[:2]]
        command += [str(FILLED_ROWS), str(file), str(phase_s), *map(str, rates)]
        with subprocess.Popen(command, cwd=ROOT) as producer:
            wait(lambda: producer.poll() is not None, system, phase_s * len(rates) + 60)
        sent = Rows.load(file)
        due = asked + int(np.count_nonzero(sent.asks)) - 2 * REQUEST_EVERY * 100
        wait(lambda: answers.count >= due, system, _LAST_S)
        read = answers.read(system.answer)
    checked = _checked([before, sent], read, system)
    numbers = (sent.first + np.flatnonzero(sent.asks)).tolist()
    made = sent.times[sent.asks] / 1_000
    came = np.array([read.came.get(f"r-{number}", np.inf) for number in numbers])
    out = []
    for place, rate in enumerate(rates):
        begin = sent.times[0] / 1_000 + place * phase_s + _WARM_S
        end = begin + seconds - 1.5
        which = (made >= begin) & (made < end)
        took_ms = (came - made)[which] * 1_000 - DISORDER_MS
        answered = np.isfinite(took_ms)
        if answered.mean() < 0.99:
            out.append(
                Outcome(
                    system.name,
                    f"{rate:,} rows/s",
                    parallelism,
                    {"answered": float(answered.mean())},
                    f"{answered.mean():.0%} answered {_LAST_S:.0f} s after the last request",
                    system.promises,
                )
            )
            continue
        values = {
            "p50 ms": float(np.percentile(took_ms[answered], 50)),
            "p99 ms": float(np.percentile(took_ms[answered], 99)),
            "answered": float(answered.mean()),
            "cores": processes.cpu_s(begin, end) / (end - begin),
            "memory GiB": processes.most_bytes / 2**30,
            **checked,
        }
        out.append(
            Outcome(system.name, f"{rate:,} rows/s", parallelism, values, promises=system.promises)
        )
    return out


def _checked(logs: Sequence[Rows], read: Read, system: System) -> dict[str, float]:
    wrong = differences(logs, read.answers, system.grid_ms)
    if wrong:
        print(f"{system.name}: {len(wrong):,} wrong answers; {wrong[0]}", flush=True)
    return {
        "checked": float(len(read.answers)),
        "wrong": float(len(wrong)),
        "corrected": float(read.corrected),
        "repeated": float(read.repeated),
    }
