"""Flink: a job on a session cluster, whose workers are processes of their own.

The promises:

* A job that loses a process fails, and is never restarted by Flink: the states of its stages would
  come from a checkpoint or from nowhere, while stores, files and topics have what came after it. So
  restarts and checkpoints of Flink are off, and a stream that loses its job resubmits it with the
  states of its own savepoint (`pipelines.stream_run.stream`).
* A job never ends by itself: its source stays, since Flink forgets the states of a source that has
  ended. The program that submitted it looks at what is written, and cancels it when all is.
* When a job was ended (`pipelines.engines.flink_jobs`), no worker of it is left.
* A job whose worker has ended is lost, though Flink may not know: Beam's runner does not notice the
  end of a worker in all states of a bundle, and such a job would run for ever and do nothing.
* What a worker says is wrong with the program ends the run, as the worker's own error.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.errors import ClusterUnreachable, EngineLost, WrongBeamFlag
from tidemill.pipelines.engines.flink_jobs import (
    ENDED,
    RUNNING,
    Job,
    find_jobs,
    record_job,
    why_failed,
    workers_here,
)
from tidemill.pipelines.engines.user_flags import check_form, flag_parser, parse_flags
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.servers.flink_cluster import ask_rest
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.kafka_settings import HOST

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.portability.portable_runner import PipelineResult, PortableRunner

_PORTS: Final = FlinkPorts()
_BUNDLE_MS: Final = 5
_ANSWER_S: Final = 5.0
_READY_S: Final = 60.0
_SUBMITTED_S: Final = 300.0
_SILENT_S: Final = 15.0
_FAILS_S: Final = 5.0
"""So long after the end of a worker its job may begin to fail by itself, with the reason."""
_ENDS_S: Final = 60.0
"""So long it may then take until it has failed."""
_LOOK_S: Final = 0.05
_ASK_S: Final = 0.5
_UP: Final = "start a cluster with `tidemill up --flink`, or name another one"

_REFUSED: Final = {
    "runner": "the engine is named by --engine",
    "streaming": "a stream is one",
    "job_name": "it tells the jobs of one stream apart",
    "checkpointing_interval": "a stream keeps its own savepoints, and Flink no checkpoints",
    "number_of_execution_retries": "a stream resubmits its job with the states of its savepoint",
    "savepoint_path": "a stream resumes from its own savepoint, with --resume",
    "shutdown_sources_after_idle_ms": "it would end the source, and with it the states",
    "flink_submit_uber_jar": "jobs are submitted through the job server",
}

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlinkPlace:
    """Where and how jobs run.

    Attributes:
        rest: ``HOST:PORT`` of the JobManager's REST interface.
        job_server: ``HOST:PORT`` of Beam's job server.
        workers: ``HOST:PORT`` of the worker pool.
        parallelism: How many subtasks, and workers, a job has.
        flags: Beam's flags that the user has given and that nothing here reads.
    """

    rest: str = f"{HOST}:{_PORTS.rest}"
    job_server: str = f"{HOST}:{_PORTS.job}"
    workers: str = f"{HOST}:{_PORTS.workers}"
    parallelism: int = 1
    flags: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The address of the REST interface."""
        return f"http://{self.rest}"


def read_flags(flags: Sequence[str]) -> FlinkPlace:
    """Read the Beam flags of a user.

    Args:
        flags: As on the command line, such as ``--parallelism=2``.

    Raises:
        WrongBeamFlag: One would break what a stream promises, or is no flag.
    """
    default = FlinkPlace()
    parser = flag_parser()
    parser.add_argument("--flink_master", default=default.rest)
    parser.add_argument("--job_endpoint", default=default.job_server)
    parser.add_argument("--environment_type", default="EXTERNAL")
    parser.add_argument("--environment_config", default=default.workers)
    parser.add_argument("--parallelism", type=int, default=default.parallelism)
    given, others = parse_flags(parser, flags, _REFUSED, "a stream sets {} itself")
    if given.environment_type != "EXTERNAL":
        raise WrongBeamFlag(
            f"--environment_type={given.environment_type}: workers come from a pool that "
            "`tidemill up --flink` starts (EXTERNAL), since its workers can be waited for; leave "
            "it out"
        )
    if given.parallelism < 1:
        raise WrongBeamFlag(f"--parallelism={given.parallelism}: give 1 or more")
    check_form(others)
    rest = given.flink_master.removeprefix("http://").rstrip("/")
    return FlinkPlace(
        rest, given.job_endpoint, given.environment_config, given.parallelism, tuple(others)
    )


def flink_options(place: FlinkPlace, code: WorkerCode) -> list[str]:
    """Return the command-line arguments for `PipelineOptions`.

    Args:
        place: Where the job runs.
        code: What its workers must have imported.
    """
    workers = {"url": place.workers, "params": code.params()}
    return [
        f"--job_endpoint={place.job_server}",
        f"--flink_master={place.rest}",
        "--environment_type=EXTERNAL",
        f"--environment_config={json.dumps(workers)}",
        f"--parallelism={place.parallelism}",
        f"--sdk_worker_parallelism={place.parallelism}",
        f"--max_bundle_time_mills={_BUNDLE_MS}",
        "--number_of_execution_retries=0",
        *place.flags,
    ]


def check_cluster(place: FlinkPlace, patience_s: float = 0.0) -> None:
    """Check that all processes of a cluster answer, and that it has room for a job.

    Args:
        place: Where the job is to run.
        patience_s: How long to wait for them.

    Raises:
        ClusterUnreachable: One does not answer, or there is no room.
    """
    deadline_s = time.monotonic() + patience_s
    while (problem := _problem(place)) is not None:
        if time.monotonic() >= deadline_s:
            raise ClusterUnreachable(problem)
        time.sleep(_ASK_S)


def _problem(place: FlinkPlace) -> str | None:
    overview = ask_rest(place.url, "/overview")
    if overview is None:
        return (
            f"no JobManager of Flink answers at {place.url}: {_UP} with "
            "`-- --flink_master=HOST:PORT`"
        )
    if overview["slots-available"] < place.parallelism:
        return (
            f"the Flink cluster at {place.url} has {overview['slots-available']} of "
            f"{overview['slots-total']} slots free in {overview['taskmanagers']} TaskManagers, and "
            f"the job needs {place.parallelism}: start a TaskManager (`tidemill up --flink`), end "
            "other jobs, or lower --parallelism"
        )
    for what, address, flag in (
        ("job server of Beam", place.job_server, "job_endpoint"),
        ("worker pool", place.workers, "environment_config"),
    ):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        except (OSError, ValueError) as error:
            return f"no {what} answers at {address} ({error}): {_UP} with `-- --{flag}=HOST:PORT`"
    return None


def flink_runner() -> PortableRunner:
    """Return Beam's runner for a job."""
    from apache_beam.runners.portability.portable_runner import PortableRunner

    from tidemill.pipelines.engines.flink_result import FlinkResult

    class FlinkRunner(PortableRunner):
        """Submits a job; its result is one that `run` waits for."""

        def run_portable_pipeline(self, pipeline: Any, options: Any) -> PipelineResult:
            return FlinkResult(super().run_portable_pipeline(pipeline, options))

    return FlinkRunner()


class FlinkRun:
    """A job that was submitted.

    Args:
        place: Where it runs.
        code: That of this program.
        name: The job's name.
    """

    def __init__(self, place: FlinkPlace, code: WorkerCode, name: str) -> None:
        self._place, self._code, self._name = place, code, name
        self._silent_since_s: float | None = None
        self._dead_since_s: float | None = None

    def submit(self, pipeline: Pipeline) -> PipelineResult:
        """Submit a job.

        Raises:
            EngineLost: A process of the cluster was lost meanwhile.
        """
        from tidemill.pipelines.engines.flink_result import job_server_answers

        try:
            check_cluster(self._place, _READY_S)
        except ClusterUnreachable as error:
            raise EngineLost(f"the cluster was lost before it had the job: {error}") from error
        record_job(self._code.attempt, self._place.url, self._name)
        with job_server_answers():
            result: Any = pipeline.run()
        return result

    def wait(self, result: Any, is_whole: Callable[[], bool]) -> None:
        """Wait until all outputs of the job are written.

        Args:
            result: From `submit`.
            is_whole: Tells whether they are; it may raise why they never will be.

        Raises:
            EngineLost: A process of the cluster was lost, and the job with it.
            RuntimeError: A worker failed; the message holds its error.
        """
        asked_s, seen = 0.0, False
        deadline_s = time.monotonic() + _SUBMITTED_S
        while not is_whole():
            time.sleep(_LOOK_S)
            if time.monotonic() - asked_s < _ASK_S:
                continue
            asked_s = time.monotonic()
            job = self._job()
            if job is not None:
                seen = True
                if job.state in ENDED:
                    raise self._failure(job)
                self._check_workers(job)
            elif self._silent_since_s is None and seen:
                raise EngineLost(
                    f"the JobManager at {self._place.url} does not know the job {self._name} any "
                    "more: it was restarted"
                )
            elif self._silent_since_s is None:
                result.check_submitted()
                if time.monotonic() > deadline_s:
                    raise EngineLost(
                        f"the job {self._name} has not reached the JobManager within "
                        f"{_SUBMITTED_S:.0f} s"
                    )

    def _job(self) -> Job | None:
        jobs = find_jobs(self._place.url, self._name)
        if jobs is None:
            now = time.monotonic()
            self._silent_since_s = self._silent_since_s or now
            if now - self._silent_since_s > _SILENT_S:
                raise EngineLost(
                    f"the JobManager at {self._place.url} has not answered for {_SILENT_S:.0f} s"
                )
            return None
        self._silent_since_s = None
        return jobs[0] if jobs else None

    def _check_workers(self, job: Job) -> None:
        """Check that no worker has ended, and was not replaced, while the job goes on.

        Raises:
            EngineLost: One has.
        """
        alive, ended = workers_here(self._code.attempt)
        if not ended or len(alive) >= self._place.parallelism:
            self._dead_since_s = None
            return
        now = time.monotonic()
        self._dead_since_s = self._dead_since_s or now
        if now - self._dead_since_s > (_FAILS_S if job.state == RUNNING else _ENDS_S):
            raise EngineLost(
                f"a Python worker of the job {self._name} has ended (process {ended[-1].pid}), "
                f"and Flink still calls the job {job.state}"
            )

    def _failure(self, job: Job) -> Exception:
        text = why_failed(self._place.url, job)
        said = worker_error(text)
        if said is not None:
            return RuntimeError(said)
        _log.info("the job %s is %s:\n%s", self._name, job.state, text)
        return EngineLost(f"the job {self._name} is {job.state}: {last_cause(text)}")


_CAUSE: Final = "Caused by: "
_OF_JAVA: Final = "\n\tat "
_SAID: Final = ("Traceback (most recent call last)", "\ntidemill.features.errors.")


def last_cause(text: str) -> str:
    """Return what was lost, from the text of a job's exception.

    Args:
        text: The stack traces of Java; the first line says that Flink restarts nothing.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    return (causes[-1] if causes else next(iter(lines), "no reason is known"))[:600]


def worker_error(text: str) -> str | None:
    """Return what a worker has said is wrong, from the text of a job's exception.

    Args:
        text: The stack traces of Java, which hold it.

    Returns:
        Python's part of the text; None if no worker has said anything.
    """
    for cause in text.split(_CAUSE):
        if any(said in cause for said in _SAID):
            with suppress(ValueError):
                cause = cause[: cause.index(_OF_JAVA)]
            return cause.strip()
    return None
