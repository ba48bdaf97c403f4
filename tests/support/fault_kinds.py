"""The faults that a live stream suffers, each a function by name.

A fault does its harm, and undoes what nobody else would: it starts a killed broker again, and mends
a cable. A process of a Flink cluster is left to the cluster's supervisor.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.flink_cluster import JOB_MANAGER, JOB_SERVER, TASK_MANAGER, WORKER_POOL
from tidemill.pipelines.servers.processes import RunningProcess

if TYPE_CHECKING:
    from tests.support.fault_run import FaultRun

FLINK: Final = "a Flink cluster"
TWO: Final = "two workers"
SHARED: Final = "a disk that workers share with the program"
EXCHANGE: Final = "an exchange"
ROOT: Final = "root"
"""What a kind of fault may need."""

_KILLED_S: Final = 5.0
_SLOW_S: Final = 0.5
_WAKES_S: Final = 60.0
_SHOWN: Final = 6_000
_FENCED: Final = "SupersededWriter"
_RESTORING: Final = "_while_restoring"
_LAST: Final = ("pause", "cut", "fill", "slow", "kill_storage")


@dataclass(frozen=True)
class Fault:
    """What happens to a stream.

    Attributes:
        kind: The name of a function of this module.
        seconds: How long something is away or stands still, if the kind leaves that open.
        after_s: How long everything ran before it.
    """

    kind: str
    seconds: float = 0.0
    after_s: float = 0.0

    def __str__(self) -> str:
        takes = f", {self.seconds:.1f} s" if KINDS[self.kind].lasts else ""
        return f"{self.kind.replace('_', ' ')}{takes}"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        do: Does it; takes the run and the seconds.
        needs: What it needs.
        lasts: Whether the seconds say how long it lasts.
    """

    do: Callable[[FaultRun, float], None]
    needs: frozenset[str] = frozenset()
    lasts: bool = False


# The program, the broker, the store.


def kill_program(run: FaultRun, seconds: float) -> None:
    """kill -9 of `tidemill stream`; somebody resumes it."""
    run.kill_stream()
    time.sleep(seconds)
    run.start_stream()


def pause_program(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of `tidemill stream`."""
    os.killpg(run.stream.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.killpg(run.stream.pid, signal.SIGCONT)


def kill_broker(run: FaultRun, seconds: float) -> None:
    """kill -9 of the broker."""
    run.broker.kill()
    time.sleep(seconds)
    run.broker.start()
    run.note_noticed()


def pause_broker(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the broker."""
    run.broker.pause()
    time.sleep(seconds)
    run.broker.resume()
    run.note_noticed()


def kill_store(run: FaultRun, seconds: float) -> None:
    """kill -9 of Redis, which may lose its last second."""
    run.store.kill()
    time.sleep(seconds)
    run.store.start()


def pause_store(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of Redis."""
    run.store.freeze()
    time.sleep(seconds)
    run.store.thaw()


def cut_store_off(run: FaultRun, seconds: float) -> None:
    """A cut cable between Redis and everything else: no packet passes, and nobody is told."""
    assert run.network is not None
    run.network.cut()
    time.sleep(seconds)
    run.network.mend()


def fill_disk(run: FaultRun, seconds: float) -> None:
    """A full disk below the root: savepoints, outputs and the poll log have no room.

    The stream ends with an error that says so; somebody makes room, and resumes it.
    """
    assert run.disk is not None
    run.expect("the disk is full")
    run.disk.fill()
    time.sleep(seconds)
    run.disk.make_room()


def stop_and_resume(run: FaultRun, seconds: float) -> None:
    """SIGTERM, and `tidemill stream --resume` from the savepoint."""
    run.drain_stream()
    time.sleep(seconds)
    run.start_stream()


# The storage through which workers elsewhere meet the program.


def kill_storage(run: FaultRun, seconds: float) -> None:
    """kill -9 of the S3 server of the exchange."""
    run.storage.kill()
    time.sleep(seconds)
    run.storage.start()


def pause_storage(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the S3 server of the exchange."""
    run.storage.pause()
    time.sleep(seconds)
    run.storage.resume()


def slow_storage(run: FaultRun, seconds: float) -> None:
    """Half a second for each packet to and from the S3 server of the exchange."""
    run.road.delay_s = _SLOW_S
    time.sleep(seconds)
    run.road.delay_s = 0.0


# The workers of a Flink job.


def rescale(run: FaultRun, seconds: float) -> None:
    """SIGTERM, and another number of workers from the savepoint; then the same back again."""
    for _ in range(2):
        run.drain_stream()
        run.parallelism = 3 - run.parallelism
        time.sleep(seconds)
        run.start_stream()
        run.wait_for_answers(5)


def kill_workers(run: FaultRun, _: float) -> None:
    """kill -9 of all workers."""
    _kill(run.workers())


def kill_one_worker(run: FaultRun, _: float) -> None:
    """kill -9 of one of several workers, which does not join."""
    _kill(run.other_workers())


def kill_joining_worker(run: FaultRun, _: float) -> None:
    """kill -9 of the worker that joins, scores and writes predictions."""
    _kill(run.joining_workers())


def pause_workers(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of all workers."""
    _pause(run.workers(), seconds)


def pause_one_worker(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of one of several workers, which does not join."""
    _pause(run.other_workers(), seconds)


def pause_joining_worker(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the worker that joins."""
    _pause(run.joining_workers(), seconds)


def outdate_worker(run: FaultRun, _: float) -> None:
    """A worker stands still while its cluster is lost, and wakes in the time of the next job.

    It never does: it holds the lock of its attempt, so it is ended before the next job begins.
    """
    (victim,) = run.joining_workers()[:1]
    attempt = run.attempt()
    assert victim.send(signal.SIGSTOP)
    _kill([run.process(TASK_MANAGER)])
    run.wait(lambda: run.is_in_another_job(attempt))
    assert not victim.send(signal.SIGCONT), "a worker of the job before still lived"


def outdate_worker_without_lock(run: FaultRun, _: float) -> None:
    """A worker that the cluster believes dead goes on writing beside the next job.

    Its TaskManager stands still, so nothing tells the worker; the lock of its attempt does not
    hold, so nobody ends it. The store was killed under its write, so it repeats that when it wakes.
    The token of the store must refuse it: then the error stands in the workers' log. A worker that
    stood still for long ends instead, since its connections to the cluster are lost.
    """
    attempt, alone = run.attempt(), run.process(TASK_MANAGER)
    run.store.freeze()
    run.wait(lambda: bool(run.workers_in_write()), 0.05)
    victims = run.workers_in_write()
    for one in (*victims, alone):
        assert one.send(signal.SIGSTOP)
    run.store.kill()
    run.store.start()
    attempt.workers_lock.unlink()
    attempt.workers_lock.touch()
    with run.second_taskmanager():
        run.wait(lambda: run.is_in_another_job(attempt))
        run.wait_for_answers(5)
        said = len(run.log_of_workers())
        for one in victims:
            assert one.send(signal.SIGCONT), "a worker without a lock was ended"

        def is_refused() -> bool:
            return _FENCED in run.log_of_workers()[said:]

        def writes_no_more() -> bool:
            return is_refused() or not any(one.is_alive() for one in victims)

        with suppress(AssertionError):
            run.wait(writes_no_more, within_s=_WAKES_S)
        run.fenced.append(writes_no_more())
        if not is_refused():
            left = [one.pid for one in victims if one.is_alive()]
            run.say(f"not refused by the store: {victims}, of which {left} are left; they said:")
            run.say(run.log_of_workers()[said:][-_SHOWN:])
        run.wait_for_answers(5)
        _kill([alone])
        run.wait(lambda: not any(one.is_alive() for one in victims))


# The cluster.


def kill_taskmanager(run: FaultRun, _: float) -> None:
    """kill -9 of the TaskManager."""
    _kill([run.process(TASK_MANAGER)])


def pause_taskmanager(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the TaskManager."""
    _pause([run.process(TASK_MANAGER)], seconds)


def kill_jobmanager(run: FaultRun, _: float) -> None:
    """kill -9 of the JobManager."""
    _kill([run.process(JOB_MANAGER)])


def pause_jobmanager(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the JobManager."""
    _pause([run.process(JOB_MANAGER)], seconds)


def kill_worker_pool(run: FaultRun, _: float) -> None:
    """kill -9 of the pool, whose workers end with it."""
    _kill([run.process(WORKER_POOL)])


def pause_worker_pool(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of the pool."""
    _pause([run.process(WORKER_POOL)], seconds)


def kill_job_server(run: FaultRun, _: float) -> None:
    """kill -9 of Beam's job server."""
    _kill([run.process(JOB_SERVER)])


def pause_job_server(run: FaultRun, seconds: float) -> None:
    """SIGSTOP of Beam's job server."""
    _pause([run.process(JOB_SERVER)], seconds)


def kill_taskmanager_while_restoring(run: FaultRun, seconds: float) -> None:
    """kill -9 of all workers, and of the TaskManager while the next job is on its way."""
    _while_restoring(run, TASK_MANAGER, seconds)


def kill_jobmanager_while_restoring(run: FaultRun, seconds: float) -> None:
    """kill -9 of all workers, and of the JobManager while the next job is on its way."""
    _while_restoring(run, JOB_MANAGER, seconds)


def kill_worker_pool_while_restoring(run: FaultRun, seconds: float) -> None:
    """kill -9 of all workers, and of the pool while the next job is on its way."""
    _while_restoring(run, WORKER_POOL, seconds)


def kill_job_server_while_restoring(run: FaultRun, seconds: float) -> None:
    """kill -9 of all workers, and of the job server while it takes the next job."""
    _while_restoring(run, JOB_SERVER, seconds)


def _while_restoring(run: FaultRun, victim: str, seconds: float) -> None:
    before = run.attempt()
    _kill(run.workers())
    run.wait(lambda: run.attempts()[-1:] not in ([], [before.folder]), 0.02)
    time.sleep(seconds)
    _kill([run.process(victim)])


def _kill(victims: Sequence[RunningProcess]) -> None:
    for victim in victims:
        victim.end(0.0)


def _pause(victims: Sequence[RunningProcess], seconds: float) -> None:
    for victim in victims:
        victim.send(signal.SIGSTOP)
    time.sleep(seconds)
    for victim in victims:
        victim.send(signal.SIGCONT)


_ON_FLINK: Final = frozenset({FLINK})
_ON_SHARED: Final = frozenset({FLINK, SHARED})
_ON_TWO: Final = frozenset({FLINK, SHARED, TWO})
_IN_EXCHANGE: Final = frozenset({FLINK, EXCHANGE})
_AS_ROOT: Final = frozenset({ROOT})

KINDS: Final[Mapping[str, Kind]] = {
    "kill_program": Kind(kill_program, lasts=True),
    "pause_program": Kind(pause_program, lasts=True),
    "kill_broker": Kind(kill_broker, lasts=True),
    "pause_broker": Kind(pause_broker, lasts=True),
    "kill_store": Kind(kill_store, lasts=True),
    "pause_store": Kind(pause_store, lasts=True),
    "cut_store_off": Kind(cut_store_off, _AS_ROOT, lasts=True),
    "fill_disk": Kind(fill_disk, _AS_ROOT, lasts=True),
    "stop_and_resume": Kind(stop_and_resume),
    "kill_storage": Kind(kill_storage, _IN_EXCHANGE, lasts=True),
    "pause_storage": Kind(pause_storage, _IN_EXCHANGE, lasts=True),
    "slow_storage": Kind(slow_storage, _IN_EXCHANGE, lasts=True),
    "rescale": Kind(rescale, _ON_FLINK),
    "kill_workers": Kind(kill_workers, _ON_FLINK),
    "kill_one_worker": Kind(kill_one_worker, _ON_TWO),
    "kill_joining_worker": Kind(kill_joining_worker, _ON_SHARED),
    "pause_workers": Kind(pause_workers, _ON_FLINK, lasts=True),
    "pause_one_worker": Kind(pause_one_worker, _ON_TWO, lasts=True),
    "pause_joining_worker": Kind(pause_joining_worker, _ON_SHARED, lasts=True),
    "outdate_worker": Kind(outdate_worker, _ON_SHARED),
    "outdate_worker_without_lock": Kind(outdate_worker_without_lock, _ON_SHARED),
    "kill_taskmanager": Kind(kill_taskmanager, _ON_FLINK),
    "pause_taskmanager": Kind(pause_taskmanager, _ON_FLINK, lasts=True),
    "kill_jobmanager": Kind(kill_jobmanager, _ON_FLINK),
    "pause_jobmanager": Kind(pause_jobmanager, _ON_FLINK, lasts=True),
    "kill_worker_pool": Kind(kill_worker_pool, _ON_SHARED),
    "pause_worker_pool": Kind(pause_worker_pool, _ON_SHARED, lasts=True),
    "kill_job_server": Kind(kill_job_server, _ON_FLINK),
    "pause_job_server": Kind(pause_job_server, _ON_FLINK, lasts=True),
    "kill_taskmanager_while_restoring": Kind(
        kill_taskmanager_while_restoring, _ON_FLINK, lasts=True
    ),
    "kill_jobmanager_while_restoring": Kind(kill_jobmanager_while_restoring, _ON_FLINK, lasts=True),
    "kill_worker_pool_while_restoring": Kind(
        kill_worker_pool_while_restoring, _ON_SHARED, lasts=True
    ),
    "kill_job_server_while_restoring": Kind(kill_job_server_while_restoring, _ON_FLINK, lasts=True),
}


def kinds(has: frozenset[str]) -> list[str]:
    """Return the names of the kinds that need nothing else than what a run has."""
    return [name for name, kind in KINDS.items() if kind.needs <= has]


def random_faults(seed: int, names: Sequence[str], longest_s: float = 20.0) -> Iterator[Fault]:
    """Yield faults at random without end: a seed gives the same ones again.

    Args:
        seed: The seed.
        names: The kinds to choose from.
        longest_s: How long the longest pause is; a killed server comes back after five seconds at
            most.
    """
    chance = random.Random(seed)
    while True:
        kind = chance.choice(names)
        is_killed = kind.startswith("kill") and not kind.endswith(_RESTORING)
        yield Fault(
            kind,
            chance.uniform(0.0, _KILLED_S) if is_killed else chance.uniform(0.5, longest_s),
            chance.uniform(0.5, 8.0),
        )


def each_kind(names: Sequence[str], pause_s: float = 20.0) -> Iterator[Fault]:
    """Yield a fault of each kind, in turn."""
    for name in names:
        yield Fault(name, pause_s if name.startswith(_LAST) else 1.0, 3.0)
