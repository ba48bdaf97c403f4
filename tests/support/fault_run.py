"""A live stream whose stream, broker and Redis are killed and paused, while a producer counts.

The harness is exact itself: every message has an id of its own, every acknowledgement is counted,
and at the end the topics must have each acknowledged message once. What a reader of committed
messages sees in the topic of predictions must then be one answer for each request.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kafka import KafkaProducer

from tests.support.flink_cluster import WORKER, TestCluster, workers_of
from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, Program
from tests.support.redis_server import RedisServer
from tests.support.stream_outputs import table_in
from tests.support.topics import committed
from tidemill.features.errors import TidemillError
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog

STREAM: Final = "stream"
BROKER: Final = "broker"
REDIS: Final = "redis"
VICTIMS: Final = (STREAM, BROKER, REDIS)
KILL: Final = "kill -9"
PAUSE: Final = "SIGSTOP"
_EVERY_S: Final = 0.05
RATE: Final = 20.0
_START_S: Final = 120.0


@dataclass(frozen=True)
class Fault:
    """What is done to whom.

    Attributes:
        victim: One of `VICTIMS`.
        how: `KILL` or `PAUSE`.
        seconds: How long it is away or stands still.
        after_s: How long everything ran before it.
    """

    victim: str
    how: str
    seconds: float
    after_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.how} of {self.victim}, back after {self.seconds:.1f} s"


def random_faults(seed: int, longest_s: float = 20.0) -> Iterator[Fault]:
    """Yield faults at random without end: a seed gives the same ones again."""
    chance = random.Random(seed)
    while True:
        yield Fault(
            chance.choice(VICTIMS),
            how := chance.choice((KILL, PAUSE)),
            chance.uniform(0.0, 5.0) if how == KILL else chance.uniform(0.5, longest_s),
            chance.uniform(0.5, 8.0),
        )


@dataclass(frozen=True)
class Verdict:
    """What a run has proven.

    Attributes:
        values: How many values `verify` has compared; none differ.
        requests: How many requests were acknowledged.
        rejected: How many of them were rejected instead: they came too late, say, since a broker
            was away.
        lost: Requests with neither a prediction nor a rejected record that a reader of committed
            messages sees.
        doubled: Requests with more than one.
        ended_by_itself: For each time that the stream ended by itself the end of its log.
        noticed_s: For each fault of the broker, how long after the first acknowledged message of
            the broker that was back the stream had read it.
    """

    values: int
    requests: int
    rejected: int
    lost: int
    doubled: int
    ended_by_itself: Sequence[str]
    noticed_s: Sequence[float]


class FaultRun:
    """A project, its servers, a producer and a stream that is always started again.

    Args:
        folder: Where everything is.
        say: Is told of each fault.
        rate: How many messages a second the producer sends, a third of them requests.
        cluster: The Flink cluster on which the stream runs; None for FnApiRunner.
        parallelism: How many workers the job has there.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = print,
        rate: float = RATE,
        cluster: TestCluster | None = None,
        parallelism: int = 1,
    ) -> None:
        self._parallelism = parallelism
        self._folder, self._say, self._rate = folder, say, rate
        self._cluster = cluster
        self._ended: list[str] = []
        self._noticed: list[float] = []
        self._stream: Program | None = None

    @contextmanager
    def running(self) -> Iterator[FaultRun]:
        """Start servers, producer and stream; end them all after the block."""
        with ExitStack() as ended:
            self.broker = TestBroker(self._folder / "broker")
            ended.callback(self.broker.close)
            self.redis = RedisServer(
                self._folder / "redis", {"appendonly": "yes", "appendfsync": "everysec"}
            )
            ended.callback(self.redis.kill)
            self.broker.start()
            self.redis.start()
            self.project = _project(self._folder / "project", self.broker, self.redis)
            if self._cluster is not None:
                flags = [*self._cluster.flags, f"--parallelism={self._parallelism}"]
                self.project.flags = flags
            self.project.run("backfill")
            self.producer = _Producer(self.project, self._rate)
            ended.callback(self.producer.stop)
            self.producer.start()
            ended.callback(self._kill_stream)
            self._start_stream()
            self._wait_for_answers(1)
            yield self

    def suffer(self, fault: Fault) -> None:
        """Let a fault happen, and wait until answers come again."""
        time.sleep(fault.after_s)
        self._look_after_stream()
        began = time.monotonic()
        self._hurt(fault)
        back = time.monotonic()
        self._wait_for_answers(5)
        self._say(
            f"{fault}: {back - began:.1f} s, answers again after {time.monotonic() - back:.1f} s"
        )

    def suffer_at_the_end(self, fault: Fault) -> tuple[float, float]:
        """Let a fault happen once nothing more is sent; wait until the last request is answered.

        Returns:
            The seconds from the fault until then, and until later requests are answered, too.
        """
        time.sleep(fault.after_s)
        self.producer.hold()
        asked = set(self.producer.so_far())
        began = time.monotonic()
        self._hurt(fault)
        self._wait(lambda: self._answered() >= asked)
        answered_s = time.monotonic() - began
        self.producer.go_on()
        self._wait_for_answers(5)
        return answered_s, time.monotonic() - began

    def finish(self) -> Verdict:
        """Drain the stream, and compare all that came with all that was sent."""
        self.producer.stop()
        acknowledged = self.producer.acknowledged()
        for name, ids in acknowledged.items():
            there = Counter(_id(message) for message in committed(self.project, name))
            assert there == Counter(ids), f"{name}: the harness is not exact"
        wanted = Counter(acknowledged["checks"])
        rejected: set[str] = set()

        def is_answered() -> bool:
            if missing := wanted.keys() - self._answered() - rejected:
                rejected.update(self._rejected() & missing)
            return not missing

        try:
            self._wait(is_answered)
        except AssertionError as error:
            missing = sorted(wanted.keys() - self._answered() - rejected)
            raise AssertionError(f"no answer to {len(missing)}, {missing[:9]}: {error}") from error
        assert self._stream is not None
        self.project.drain(self._stream)
        values = self.project.verify()
        found = Counter(message.key.decode() for message in committed(self.project, "predictions"))
        assert found.keys() <= wanted.keys()
        return Verdict(
            values,
            len(wanted),
            len(rejected),
            len(wanted.keys() - found.keys() - rejected),
            sum(count > 1 for count in found.values()),
            tuple(self._ended),
            tuple(self._noticed),
        )

    def _hurt(self, fault: Fault) -> None:
        hurt = {STREAM: self._hurt_stream, BROKER: self._hurt_broker, REDIS: self._hurt_redis}
        hurt.get(fault.victim, self._hurt_cluster)(fault)

    def _hurt_stream(self, fault: Fault) -> None:
        assert self._stream is not None
        if fault.how == PAUSE:
            os.killpg(self._stream.pid, signal.SIGSTOP)
            time.sleep(fault.seconds)
            os.killpg(self._stream.pid, signal.SIGCONT)
            return
        self._kill_stream()
        time.sleep(fault.seconds)
        self._start_stream()

    def _hurt_broker(self, fault: Fault) -> None:
        if fault.how == PAUSE:
            self.broker.pause()
            time.sleep(fault.seconds)
            self.broker.resume()
        else:
            self.broker.kill()
            time.sleep(fault.seconds)
            self.broker.start()
        self._noticed.append(self._time_to_notice())

    def _hurt_redis(self, fault: Fault) -> None:
        if fault.how == PAUSE:
            self.redis.freeze()
            time.sleep(fault.seconds)
            self.redis.thaw()
        else:
            self.redis.kill()
            time.sleep(fault.seconds)
            self.redis.start()

    def _hurt_cluster(self, fault: Fault) -> None:
        cluster = self._cluster
        assert cluster is not None
        if fault.victim == WORKER:
            root = self.project.folder / "run"
            self._wait(lambda: bool(workers_of(root)))
            victims = workers_of(root)
        else:
            victims = [cluster.running[fault.victim].process]
        if fault.how == PAUSE:
            for victim in victims:
                victim.send(signal.SIGSTOP)
            time.sleep(fault.seconds)
            for victim in victims:
                victim.send(signal.SIGCONT)
            return
        for victim in victims:
            victim.end(0.0)
        time.sleep(fault.seconds)
        cluster.start()

    def _time_to_notice(self) -> float:
        """Send a message through the broker that is back; return how long it is unread."""
        partition, offset = self.producer.send_fresh()
        acknowledged = time.monotonic()
        config = load(self.project.folder / "tidemill.yaml")
        live = LiveLog(config.current.folder / LIVE, config.project)

        def is_read() -> bool:
            try:
                last = live.polls.last()
            except (TidemillError, OSError):  # a seal has just removed its file
                return False
            return last is not None and last.offsets["payments"][partition] > offset

        self._wait(is_read, 0.02)
        return time.monotonic() - acknowledged

    def _answered(self) -> set[str]:
        folder = stream_of(self.project.folder / "run") / "predictions"
        return set(table_in(folder).column("request_id").to_pylist())

    def _rejected(self) -> set[str]:
        """Return the ids of the requests that were rejected."""
        records = committed(self.project, "rejected")
        of_requests = [one for one in records if dict(one.headers)["stream"] == b"checks"]
        return {json.loads(one.value)["check"] for one in of_requests}

    def _wait_for_answers(self, more: int) -> None:
        """Wait until more requests are answered than now."""
        before = self.project.answered()
        self._wait(lambda: self.project.answered() >= before + more)

    def _wait(self, happened: Callable[[], bool], every_s: float = 0.2) -> None:
        deadline = time.monotonic() + _START_S
        while not happened():
            self._look_after_stream()
            assert time.monotonic() < deadline, self.project.log()[-5_000:]
            time.sleep(every_s)

    def _look_after_stream(self) -> None:
        """Start the stream again if it has ended by itself."""
        if self._stream is not None and self._stream.poll() is not None:
            self._ended.append(self.project.log()[-1_500:])
            self._say(f"the stream has ended by itself, status {self._stream.returncode}")
            self._start_stream()

    def _start_stream(self) -> None:
        resumes = self._stream is not None
        self._stream = self.project.start_stream(*(["--resume"] if resumes else []))

    def _kill_stream(self) -> None:
        if self._stream is not None and self._stream.poll() is None:
            os.killpg(self._stream.pid, signal.SIGKILL)
            self._stream.wait()


def _id(message: Any) -> str:
    row = json.loads(message.value)
    found: str = row.get("check") or row["payment"]
    return found


def _project(folder: Path, broker: TestBroker, redis: RedisServer) -> LiveProject:
    project = LiveProject(folder, broker, savepoint_every="5s", sinks=True)
    path = folder / "tidemill.yaml"
    sqlite = "{type: sqlite, path: online.db}"
    assert sqlite in path.read_text()
    store = f"{{type: redis, host: 127.0.0.1, port: {redis.port}, give_up_after: 2m}}"
    path.write_text(path.read_text().replace(sqlite, store))
    return project


@dataclass
class _Producer:
    """Sends payments and checks in turn, and counts acknowledgements.

    An idempotent producer of kafka-python sends a message again until the broker has it, once. It
    gives up after ten minutes, which fails the run.
    """

    project: LiveProject
    rate: float
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
            delivery_timeout_ms=600_000,
            request_timeout_ms=5_000,
            reconnect_backoff_max_ms=200,
            max_block_ms=600_000,
        )

    def start(self) -> None:
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
            while not self._ended.wait(_EVERY_S):
                due = round((time.monotonic() - began) * self.rate)
                for _ in range(0 if self._held.is_set() else due - sent):
                    self._send_one()
                sent = max(due, sent)
        except BaseException as error:  # noqa: BLE001 - raised by `acknowledged`
            self._failed.append(error)
        finally:
            self._sent.put(None)

    def _send_one(self) -> None:
        kind = self._random.choice(("payments", "payments", "checks"))
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
                future.get(timeout=600)
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
        """Send no more for now."""
        self._held.set()

    def go_on(self) -> None:
        """Send again."""
        self._held.clear()

    def so_far(self) -> list[str]:
        """Return the ids of the requests that were acknowledged, while nothing is sent."""
        time.sleep(4 * _EVERY_S)  # what was being sent
        while not self._sent.empty():
            time.sleep(_EVERY_S)
        time.sleep(4 * _EVERY_S)
        return list(self._acknowledged["checks"])

    def stop(self) -> None:
        """Send no more, and wait for all acknowledgements."""
        if not self._ended.is_set():
            self._ended.set()
            for thread in self._threads:
                thread.join(timeout=300)
            self._producer.close()

    def acknowledged(self) -> dict[str, list[str]]:
        """Return the ids of the acknowledged messages of each topic, after `stop`."""
        if self._failed:
            raise self._failed[0]
        return self._acknowledged
