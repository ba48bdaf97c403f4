"""What an exchange costs: requests a second by kind, and how long rows travel through it.

A program and a worker, in one process, meet in an S3 server on this machine, whose answers come at
once, or 20 ms later. The program writes polls down as the reader of a live stream does; the worker
rests for 20 ms with each of them, where it would compute, and hands over what three steps of a
stream do. The time of a row is from when it is there to when the program has its answer: nothing
but the storage, and what waits for it.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apache_beam as beam
import numpy as np
import pyarrow as pa

from benchmarks.measure import AnswersDiffer, Effort, Figure
from tests.support.environment import environment
from tests.support.passing_proxy import PassingProxy
from tests.support.redis_server import free_port
from tests.support.s3_server import S3Server
from tests.support.waiting import wait_until
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange.program_end import exchange
from tidemill.pipelines.io.exchange.worker_end import WorkerEnd
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.stream_run.live_input import ELSEWHERE

RATES: Final = (0, 500, 5_000)
AWAY_MS: Final = (0, 20)
KINDS: Final = ("LIST", "PUT", "HEAD", "GET", "DELETE")
DOLLARS: Final[Mapping[str, float]] = {"LIST": 5.0, "PUT": 5.0, "HEAD": 0.4, "GET": 0.4}
"""What Amazon's S3 takes for a million requests (us-east-1, 2025); deleting is free."""
MONTH_S: Final = 30 * 86_400
_WORK_S: Final = 0.02
_IDLE_S: Final = 0.5
_WARM_S: Final = 2.0


@dataclass
class _Stream:
    """What a stream reads and answers.

    Attributes:
        rate: Rows a second.
        taken: The last poll that the worker has taken, as the program has heard.
        took_s: How long each row has travelled.
    """

    rate: int
    taken: int = 0
    took_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began_s = self._cut_s = time.monotonic()
        self._rows, self._until, self.answers = 0, {0: 0}, 0

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Write the next poll down, as `live_input` does."""
        now_s, unread = time.monotonic(), at.number - self.taken
        apart_s = ELSEWHERE.apart_s if unread else 0.0
        due = int((now_s - self.began_s) * self.rate) - self._rows
        least_s = apart_s if due else _IDLE_S
        if unread >= ELSEWHERE.polls or now_s < self._cut_s + least_s:
            return None
        rows = pa.RecordBatch.from_pydict({"amount": np.arange(due), "card": ["card"] * due})
        stop = self._rows + due
        part = PollPart("payments", 0, self._rows, stop, at.number, rows)
        self._cut_s, self._rows = now_s, stop
        self._until[at.number + 1] = stop
        return Poll(at.number + 1, 0, (part,)), []

    def last(self, at: Cut) -> Poll | None:
        """Never end."""
        return None

    def answered(self, number: int) -> None:
        """Note that the rows of a poll are answered."""
        self.answers += 1
        if number != self.answers:
            raise AnswersDiffer(f"poll {number} is answered after {self.answers - 1}")
        now_s = time.monotonic() - self.began_s
        rows = range(self._until[number - 1], self._until[number])
        self.took_s += [now_s - row / self.rate for row in rows]


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
class _Write(beam.DoFn):
    def __init__(self, stream: _Stream | None = None) -> None:
        self._stream = stream

    def process(self, element: bytes) -> None:
        if self._stream is not None:
            self._stream.answered(int(element))


def _work(worker: WorkerEnd, ended: threading.Event) -> None:
    number = 0
    worker.report(lambda: number)
    polls = worker.polls()
    while not ended.is_set():
        found = polls.next(Cut(number, (0,)))
        if found is None:
            polls.check()
            time.sleep(0.002)
            continue
        time.sleep(_WORK_S)
        number, element = found[0].number, b"%d" % found[0].number
        for step in ("releases", "publications"):
            worker.hand_over(step, [element], is_awaited=False)
        worker.hand_over("predictions", [element])


@contextmanager
def _running(url: str, root: Path, stream: _Stream) -> Iterator[None]:
    def taken(_: str, number: int) -> None:
        stream.taken = number

    ended = threading.Event()
    with exchange(url, root, "root", [root], taken, lambda *_: None, "job") as program:
        for name in ("releases", "publications"):
            program.step(name, _Write(), is_awaited=False)
        program.step("predictions", _Write(stream))
        program.take()
        program.send(stream, Cut(0, (0,)))
        worker = WorkerEnd(program.place)
        thread = threading.Thread(target=_work, args=(worker, ended))
        thread.start()
        try:
            yield
            program.check()
        finally:
            ended.set()
            thread.join()
            worker.close()


def measured(s3: S3Server, root: Path, name: str, rate: int, seconds: float) -> list[Figure]:
    """Measure a stream.

    Args:
        s3: Where its ends meet.
        root: Its root.
        name: What is measured.
        rate: Rows a second.
        seconds: How long.
    """
    root.mkdir()
    stream = _Stream(rate)
    with _running(s3.url, root, stream):
        wait_until(lambda: stream.answers)
        time.sleep(_WARM_S)
        before, began_s, rows = s3.requests(), time.monotonic(), len(stream.took_s)
        time.sleep(seconds)
        found, took_s = s3.requests() - before, time.monotonic() - began_s
    answered = Figure(f"{name}: polls answered in order", stream.answers, "values")
    return [*_times(name, stream.took_s[rows:]), *_requests(name, found, took_s), answered]


def _times(name: str, took_s: list[float]) -> list[Figure]:
    if not took_s:
        return []
    note = f"{len(took_s):,} rows; {1_000 * _WORK_S:.0f} ms of it is work"
    return [
        Figure(
            f"{name}: p{percent}", 1_000 * float(np.percentile(took_s, percent)), "ms", note=note
        )
        for percent in (50, 99)
    ]


def _requests(name: str, found: Counter[str], took_s: float) -> list[Figure]:
    a_second = {kind: found[kind] / took_s for kind in KINDS}
    dollars = sum(DOLLARS.get(kind, 0.0) * n for kind, n in a_second.items()) * MONTH_S / 1e6
    out = [Figure(f"{name}: {kind}", n, "requests/s") for kind, n in a_second.items()]
    return [*out, Figure(f"{name}: a month", dollars, "dollars")]


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    rates: Sequence[int] = RATES
    away: Sequence[int] = AWAY_MS
    seconds = max(2 * effort.seconds, 0.5)
    if quick:
        rates, away = (500,), (0,)
    out: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-exchange-") as top:
        folder = Path(top)
        s3 = S3Server(folder / "s3", free_port(), reached=free_port())
        proxy = PassingProxy((HOST, s3.reached), (HOST, s3.port))
        proxy.start()
        s3.start()
        try:
            with environment(s3.environment):
                for number, (away_ms, rate) in enumerate(itertools.product(away, rates)):
                    proxy.delay_s = away_ms / 2_000
                    name = f"S3 server {away_ms} ms away, {rate:,} rows/s"
                    found = measured(s3, folder / str(number), name, rate, seconds)
                    print(*(f"{one.name} {one.value:,.1f} {one.unit}" for one in found), sep="\n")
                    out += found
        finally:
            s3.kill()
            proxy.stop()
    return out
