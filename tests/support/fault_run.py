"""A live stream under faults (`tests.support.fault_kinds`), while a producer counts.

What a reader of committed messages sees in the topic of predictions must be one answer for each
request: after each fault for all that were asked before its end, and at the end for all.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from tests.support.cut_network import DistantRedis, Network
from tests.support.elsewhere import Elsewhere, elsewhere
from tests.support.environment import environment
from tests.support.fault_kinds import EXCHANGE, FLINK, KINDS, ROOT, SHARED, TWO, Fault
from tests.support.fault_ledger import Answers, Producer
from tests.support.flink_cluster import TestCluster, workers_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, Program
from tests.support.passing_proxy import PassingProxy
from tests.support.redis_server import RedisServer, free_port
from tests.support.s3_server import S3Server
from tests.support.small_disk import SmallDisk
from tests.support.topics import committed
from tidemill.features.errors import TidemillError
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.servers.flink_cluster import TaskManager
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.processes import RunningProcess, running_process

RATE: Final = 20.0
ASKED: Final = 1 / 3
_PATIENCE_S: Final = 300.0
_VERIFY_S: Final = 1_800.0
_STORE: Final = {"appendonly": "yes", "appendfsync": "everysec"}


class Recovery(NamedTuple):
    """How a stream came back.

    Attributes:
        fault: What happened.
        lasted_s: How long it lasted, until what nobody else would mend was mended.
        whole_s: Seconds from its beginning until all was answered that was asked before its end.
        later_s: Seconds from its beginning until later requests were answered, too.
        asked: How many requests had been asked by its end.
    """

    fault: Fault
    lasted_s: float
    whole_s: float
    later_s: float
    asked: int


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
        fenced: For each worker that the lock of its attempt did not stop, whether the store did, or
            it ended before it wrote.
    """

    values: int
    requests: int
    rejected: int
    lost: int
    doubled: int
    ended_by_itself: Sequence[str]
    noticed_s: Sequence[float]
    fenced: Sequence[bool] = ()


@dataclass
class FaultRun:
    """A project, its servers, a producer and a stream that is always started again.

    Attributes:
        folder: Where everything is.
        say: Is told of each fault.
        rate: How many messages a second the producer sends.
        asked: The share of requests among them.
        cluster: The supervised Flink cluster on which the stream runs; None for FnApiRunner.
        parallelism: How many workers a job has there.
        as_root: Whether the root has a disk of its own and Redis a network: only root can make
            them.
        savepoint_every: How often the stream keeps its state.
        shards: How many shards the view has.
        exchange: Whether the workers of the cluster are elsewhere, and meet the program in S3.
        fenced: As in `Verdict`.
    """

    folder: Path
    say: Callable[[str], None] = print
    rate: float = RATE
    asked: float = ASKED
    cluster: TestCluster | None = None
    parallelism: int = 1
    as_root: bool = False
    savepoint_every: str = "5s"
    shards: int = 2
    exchange: bool = False
    fenced: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk: SmallDisk | None = None
        self.network: Network | None = None
        self._pool: Elsewhere | None = None
        self._ended: list[str] = []
        self._noticed: list[float] = []
        self._stream: Program | None = None
        self._expected = ""

    @property
    def has(self) -> frozenset[str]:
        """What faults may need (`fault_kinds.kinds`)."""
        found = {FLINK} if self.cluster is not None else set()
        found.add(EXCHANGE if self.exchange else SHARED)
        if self.parallelism > 1:
            found.add(TWO)
        return frozenset(found | {ROOT} if self.as_root else found)

    @contextmanager
    def running(self) -> Iterator[FaultRun]:
        """Start servers, producer and stream; end them all after the block."""
        with ExitStack() as ended:
            self.broker = TestBroker(self.folder / "broker")
            ended.callback(self.broker.close)
            if self.as_root:
                self.network = Network()
                ended.callback(self.network.close)
                self.disk = SmallDisk(self.folder / "project" / "run")
                ended.callback(self.disk.close)
                self.store: RedisServer = DistantRedis(self.folder / "redis", _STORE, self.network)
            else:
                self.store = RedisServer(self.folder / "redis", _STORE)
            ended.callback(self.store.kill)
            self.broker.start()
            self.store.start()
            if self.exchange:
                self._start_storage(ended)
            self.project = self._made_project()
            self.project.run("backfill")
            if self.exchange:
                root = self.project.folder / "run"
                pool = elsewhere(root, self.folder / "elsewhere", self.storage.environment)
                self._pool = ended.enter_context(pool)
            self.producer = Producer(self.project, self.rate, self.asked)
            ended.callback(self.producer.stop)
            self.answers = Answers(self.project)
            ended.callback(self.answers.close)
            self.producer.start()
            ended.callback(self.kill_stream)
            self.start_stream()
            self.wait_for_answers(1)
            yield self

    def _start_storage(self, ended: ExitStack) -> None:
        self.road = PassingProxy((HOST, free_port()), (HOST, free_port()))
        ended.callback(self.road.stop)
        self.road.start()
        self.storage = S3Server(self.folder / "s3", self.road.server[1], self.road.address[1])
        ended.callback(self.storage.kill)
        self.storage.start()
        ended.enter_context(environment(self.storage.environment))

    def _made_project(self) -> LiveProject:
        project = LiveProject(
            self.folder / "project",
            self.broker,
            savepoint_every=self.savepoint_every,
            sinks=True,
            shards=self.shards,
        )
        path = self.folder / "project" / "tidemill.yaml"
        sqlite = "{type: sqlite, path: online.db}"
        assert sqlite in path.read_text()
        place = f"host: {self.store.host}, port: {self.store.port}"
        store = f"{{type: redis, {place}, give_up_after: 10m}}"
        text = path.read_text().replace(sqlite, store)
        if self.exchange:
            text = text.replace("stream: {", f'stream: {{exchange: "{self.storage.url}", ')
        path.write_text(text)
        return project

    def suffer(self, fault: Fault, *, at_the_end: bool = False) -> Recovery:
        """Let a fault happen; wait until all is answered that was asked before its end, and more.

        Args:
            fault: The fault.
            at_the_end: Whether nothing more is sent from before the fault until all is answered:
                the last requests are then among those that are answered after it.
        """
        time.sleep(fault.after_s)
        self._look_after_stream()
        if at_the_end:
            self.producer.hold()
        began = time.monotonic()
        KINDS[fault.kind].do(self, fault.seconds)
        lasted_s = time.monotonic() - began
        asked = set(self.producer.requests_so_far())
        self.wait(lambda: not self._missing(asked))
        whole_s = time.monotonic() - began
        if at_the_end:
            self.producer.go_on()
        self.wait_for_answers(5)
        assert not self.answers.doubled(), f"{fault}: {self.answers.doubled()} are answered twice"
        found = Recovery(fault, lasted_s, whole_s, time.monotonic() - began, len(asked))
        self.say(
            f"{fault}: lasted {lasted_s:.1f} s; all {found.asked:,} requests were answered after "
            f"{whole_s:.1f} s, later ones after {found.later_s:.1f} s"
        )
        return found

    def finish(self) -> Verdict:
        """Drain the stream, and compare all that came with all that was sent."""
        self.producer.stop()
        acknowledged = self.producer.acknowledged()
        for name, ids in acknowledged.items():
            there = Counter(_id(message) for message in committed(self.project, name))
            assert there == Counter(ids), f"{name}: the harness is not exact"
        wanted = Counter(acknowledged["checks"])
        try:
            self.wait(lambda: not self._missing(set(wanted)))
        except AssertionError as error:
            missing = sorted(self._missing(set(wanted)))
            raise AssertionError(f"no answer to {len(missing)}, {missing[:9]}: {error}") from error
        self.drain_stream()
        values = self.project.verify(_VERIFY_S)
        found = Counter(message.key.decode() for message in committed(self.project, "predictions"))
        rejected = self.answers.rejected & wanted.keys()
        assert found.keys() <= wanted.keys()
        return Verdict(
            values,
            len(wanted),
            len(rejected),
            len(wanted.keys() - found.keys() - rejected),
            sum(count > 1 for count in found.values()) + len(rejected & found.keys()),
            tuple(self._ended),
            tuple(self._noticed),
            tuple(self.fenced),
        )

    # What faults do.

    @property
    def stream(self) -> Program:
        """The program `tidemill stream`."""
        assert self._stream is not None
        return self._stream

    def start_stream(self) -> None:
        """Start the stream, or resume it."""
        resumes = self._stream is not None
        if self.cluster is not None:
            flags = [*self.cluster.flags, f"--parallelism={self.parallelism}"]
            self.project.flags = flags if self._pool is None else [*flags, self._pool.flag]
        self._stream = self.project.start_stream(*(["--resume"] if resumes else []))

    def kill_stream(self) -> None:
        """Kill the program with SIGKILL."""
        if self._stream is not None and self._stream.poll() is None:
            os.killpg(self._stream.pid, signal.SIGKILL)
            self._stream.wait()

    def drain_stream(self) -> None:
        """Stop the stream with SIGTERM, at a savepoint."""
        self._look_after_stream()
        self.project.drain(self.stream)

    def expect(self, said: str) -> None:
        """Expect that the stream may end once, if it says this."""
        self._expected = said

    def note_noticed(self) -> None:
        """Note how long after a broker is back the stream has read what it got."""
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

        self.wait(is_read, 0.02)
        self._noticed.append(time.monotonic() - acknowledged)

    def process(self, name: str) -> RunningProcess:
        """Return a process of the cluster, once it runs."""
        assert self.cluster is not None
        cluster = self.cluster
        self.wait(lambda: cluster.process(name) is not None)
        found = cluster.process(name)
        assert found is not None
        return found

    def workers(self) -> list[RunningProcess]:
        """Return the workers of the job, once it has as many as it should."""
        self.wait(lambda: len(self._workers_now()) >= self.parallelism)
        return self._workers_now()

    def _workers_now(self) -> list[RunningProcess]:
        if self._pool is None:
            return workers_of(self.project.folder / "run")
        return [one for pid in self._pool.workers() if (one := running_process(pid)) is not None]

    def joining_workers(self) -> list[RunningProcess]:
        """Return the workers that join answers, and write them."""
        return self._writers_of("outputs/predictions/")

    def workers_in_write(self) -> list[RunningProcess]:
        """Return the workers whose store, which stands still, has something to read from them."""
        unread = self.store.unread()
        return [one for one in self.workers() if _ports(one, self.store.port) & unread]

    def other_workers(self) -> list[RunningProcess]:
        """Return a worker that does not join."""
        joining = set(self.joining_workers())
        return [one for one in self.workers() if one not in joining][:1]

    def _writers_of(self, part: str) -> list[RunningProcess]:
        """Return the workers that have an output open whose path has a part."""
        found: list[RunningProcess] = []

        def are_there() -> bool:
            found[:] = [one for one in self.workers() if any(part in name for name in _open(one))]
            return bool(found)

        self.wait(are_there)
        return found

    @contextmanager
    def second_taskmanager(self) -> Iterator[None]:
        """Let the cluster have another TaskManager, without a supervisor, while the block runs."""
        assert self.cluster is not None
        second = TaskManager(self.folder / "second-taskmanager", self.cluster.ports)
        second.start()
        assert second.process is not None
        try:
            yield
        finally:
            second.process.end(0.0)

    def log_of_workers(self) -> str:
        """Return what workers have logged."""
        assert self.cluster is not None
        return (self.cluster.folder / "flink" / "workers.log").read_text(errors="replace")

    def attempt(self) -> Attempt:
        """Return the present job's attempt."""
        return Attempt(self.attempts()[-1])

    def is_in_another_job(self, before: Attempt) -> bool:
        """Tell whether another job has begun, with workers of its own."""
        attempts = self.attempts()
        is_new = bool(attempts) and attempts[-1] != before.folder
        return is_new and bool(Attempt(attempts[-1]).workers())

    def attempts(self) -> list[Path]:
        """Return the folders of the attempts that were not ended, the last one last."""
        return sorted(self.project.folder.glob("run/generations/*/jobs/*/"))

    def wait_for_answers(self, more: int) -> None:
        """Wait until more requests are answered than now."""
        self.answers.look()
        before = self._answered()
        self.wait(lambda: self._answered() >= before + more)

    def wait(
        self, happened: Callable[[], bool], every_s: float = 0.2, within_s: float = _PATIENCE_S
    ) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + within_s
        while not happened():
            self._look_after_stream()
            assert time.monotonic() < deadline, self.project.log()[-5_000:]
            time.sleep(every_s)

    def _answered(self) -> int:
        self.answers.look()
        return len(self.answers.predictions)

    def _missing(self, asked: set[str]) -> set[str]:
        self.answers.look()
        return self.answers.missing(asked)

    def _look_after_stream(self) -> None:
        """Start the stream again if it has ended by itself."""
        if self._stream is not None and self._stream.poll() is not None:
            said = self.project.log()[-1_500:]
            if self._expected and self._expected in said:
                self.say(f"the stream has ended, since {self._expected}")
                self._expected = ""
            else:
                self._ended.append(said)
                self.say(
                    f"the stream has ended by itself, status {self._stream.returncode}:\n{said}"
                )
            self.start_stream()


def _id(message: Any) -> str:
    row = json.loads(message.value)
    found: str = row.get("check") or row["payment"]
    return found


def _ports(process: RunningProcess, to: int) -> set[int]:
    """Return the ports of a process's connections to another port."""
    try:
        found = psutil.Process(process.pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {one.laddr.port for one in found if one.raddr and one.raddr.port == to}


def _open(process: RunningProcess) -> list[str]:
    try:
        return [file.path for file in psutil.Process(process.pid).open_files()]
    except psutil.Error:
        return []
