"""A job on Flink that runs: submitted, waited for, and what is said of it when it fails.

`pipelines.engines.flink` has the promises.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.errors import ClusterUnreachable, EngineLost, WorkerNotStarted
from tidemill.pipelines.engines.exit_status import error_of_status
from tidemill.pipelines.engines.flink import FlinkPlace, check_cluster
from tidemill.pipelines.engines.flink_jobs import (
    ENDED,
    FINISHED,
    RUNNING,
    Job,
    find_jobs,
    record_job,
    why_failed,
    workers_here,
)
from tidemill.pipelines.engines.flink_workers import WorkerCommand
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.io.exchange.program_end import ProgramEnd

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.portability.portable_runner import PipelineResult, PortableRunner

_READY_S: Final = 60.0
_SUBMITTED_S: Final = 300.0
_SILENT_S: Final = 15.0
_FAILS_S: Final = 5.0
"""So long after the end of a worker its job may begin to fail by itself, with the reason."""
_ENDS_S: Final = 60.0
"""So long it may then take until it has failed."""
_LOOK_S: Final = 0.05
_ASK_S: Final = 0.5

_log: Final = logging.getLogger(__name__)


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
        meets: The program's end of the exchange, if the workers do not share its disk.
    """

    def __init__(
        self, place: FlinkPlace, code: WorkerCode, name: str, meets: ProgramEnd | None = None
    ) -> None:
        self._place, self._code, self._name, self._meets = place, code, name, meets
        self._asked_s = 0.0
        self._submitted_s = 0.0
        self._seen = False
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
        self._submitted_s = time.monotonic()
        return result

    def wait(self, result: Any, is_whole: Callable[[], bool]) -> None:
        """Wait until all outputs of a job that stays are written.

        Args:
            result: From `submit`.
            is_whole: Tells whether they are; it may raise why they never will be.

        Raises:
            EngineLost: A process of the cluster was lost, and the job with it.
            RuntimeError: A worker failed; the message holds its error.
        """
        while not is_whole():
            job = self._look(result)
            if job is not None and job.state in ENDED:
                raise self._failure(job)

    def wait_for_end(self, result: Any, check: Callable[[], None]) -> None:
        """Wait until a job that ends by itself has done all of its work.

        Args:
            result: From `submit`.
            check: Raises why it never will, if something else says so.

        Raises:
            EngineLost: A process of the cluster was lost, and the job with it.
            ClusterUnreachable: The cluster has too little memory.
            RuntimeError: A worker failed; the message holds its error.
        """
        while (job := self._look(result)) is None or job.state != FINISHED:
            if job is not None and job.state in ENDED:
                raise self._failure(job)
            check()

    def _look(self, result: Any) -> Job | None:
        """Ask for the job now and then; return it if it was found just now.

        Raises:
            EngineLost: A process of the cluster was lost, and the job with it.
            RuntimeError: A worker that has taken up no work has said why.
        """
        time.sleep(_LOOK_S)
        if time.monotonic() - self._asked_s < _ASK_S:
            return None
        self._asked_s = time.monotonic()
        job = self._job()
        if job is not None:
            self._seen = True
            if job.state not in ENDED:
                self._check_workers(job)
            return job
        if self._silent_since_s is None and self._seen:
            raise EngineLost(
                f"the JobManager at {self._place.url} does not know the job {self._name} any "
                "more: it was restarted"
            )
        if self._silent_since_s is None:
            result.check_submitted()
            if time.monotonic() - self._submitted_s > _SUBMITTED_S:
                raise EngineLost(
                    f"the job {self._name} has not reached the JobManager within "
                    f"{_SUBMITTED_S:.0f} s"
                )
        return None

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
            RuntimeError: One has taken up no work, and has said why.
        """
        if problem := self._problem():
            raise RuntimeError(problem)
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

    def _problem(self, *, at_last: bool = False) -> str:
        """Return what a worker that took up no work has said; empty if none has."""
        if self._meets is None:
            return self._code.attempt.problem()
        return self._meets.last_problem() if at_last else self._meets.problem()

    def _failure(self, job: Job) -> Exception:
        text = why_failed(self._place.url, job)
        # Of a pool Flink knows what it has said; a command has ended just before the job.
        has_command = self._place.command is not None
        said = self._problem(at_last=has_command) or worker_error(text)
        if said:
            return RuntimeError(said)
        if self._place.command is not None and (why := boot_error(text)) is not None:
            return self._not_started(self._place.command, why)
        if any(lacks in text for lacks in _NO_ROOM):
            return ClusterUnreachable(
                f"the TaskManagers at {self._place.url} lack memory for the job: "
                f"{last_cause(text)} Give them more, or lower --parallelism (docs/engines.md)"
            )
        _log.info("the job %s is %s:\n%s", self._name, job.state, text)
        return EngineLost(f"the job {self._name} is {job.state}: {last_cause(text)}")

    def _not_started(self, command: WorkerCommand, why: str) -> Exception:
        disk = "the root as a folder of that machine"
        if self._meets is not None:
            disk = "to be there, as one that you name by --environment_config"
            if (ended := _NOT_RUN.search(why)) is not None and ended[1] is not None:
                found = error_of_status(int(ended[1]), self._meets.shown)
                if found is not None:
                    return found
        return WorkerNotStarted(
            f"no worker was started by {command.program or 'the command that starts it'}: {why}; "
            f"run it on the TaskManager's machine: it needs Tidemill in its environment, {disk}, "
            "and the right to be executed (the TaskManager's log has its messages)"
        )


_CAUSE: Final = "Caused by: "
_OF_JAVA: Final = "\n\tat "
_NOT_RUN: Final = re.compile(r"Cannot run program [^\n]*|Process died with exit code (\d+)")
_KILLED: Final = 128
"""The exit status of a process that a signal has ended is more than this."""
_NO_ROOM: Final = ("Insufficient number of network buffers", "Too few memory segments")
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


def boot_error(text: str) -> str | None:
    """Return why a command has started no worker, from the text of a job's exception.

    Args:
        text: The stack traces of Java.

    Returns:
        What Java says of the command; None if it was started, or was killed.
    """
    found = _NOT_RUN.search(text)
    if found is None or (found[1] is not None and int(found[1]) > _KILLED):
        return None
    return found[0].strip()
