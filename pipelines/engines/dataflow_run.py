"""A job on Dataflow that runs: submitted, watched, and what is said of it when it fails.

The promises:

* The job is created once, under a name of its own, which is recorded before
  (`pipelines.engines.dataflow_jobs`). If the answer to its creation is lost, it is found by that
  name.
* Dataflow does again and again what has failed: of a stream for ever, in batch four times. So what
  is wrong with a worker ends the run, as the worker's own error: it tells it through the exchange,
  and what it cannot tell there, such as that it lacks Tidemill, is read in the messages of the job.
* A service that does not answer for a while changes nothing. A job that is over, or that the
  service does not know any more, is lost: another one goes on from the stream's savepoint, or does
  the work of one in batch again, which may be over when it is done.
* A job that the service gives up before a worker of it has begun is refused, and not tried again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tidemill.features import errors
from tidemill.features.errors import (
    EngineLost,
    JobRefused,
    ServiceUnreachable,
    WorkerLacksModule,
    WrongBeamFlag,
)
from tidemill.pipelines.engines.dataflow import QUIET, check_known
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace
from tidemill.pipelines.engines.dataflow_jobs import forget_job, record_job
from tidemill.pipelines.engines.dataflow_service import (
    DONE,
    OVER,
    Job,
    Service,
    answered,
    may_be_asked_later,
    said,
)
from tidemill.pipelines.io.attempts import Attempt

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult

_APPEARS_S: Final = 60.0
"""So long a job that was just created may be unknown."""
_SILENT_S: Final = 600.0
"""So long the service may be away before the job counts as lost."""
_LOOK_S: Final = 0.05
_ASK_S: Final = 2.0
_LATER_S: Final = (1.0, 4.0, 15.0, 40.0)
"""After so long a job is asked for again while a quota is used up."""
_TRACEBACK: Final = "Traceback (most recent call last)"
_CONFLICT: Final = 409
_LACKS: Final = re.compile(r"^(?:ModuleNotFoundError|ImportError): (.*)$", re.MULTILINE)
_OURS: Final = f"{errors.__name__}."

_log: Final = logging.getLogger(__name__)


def submitted_pipeline(options: list[str]) -> Pipeline:
    """Return an empty pipeline that is submitted when it runs.

    Args:
        options: From `dataflow.dataflow_options`.

    Raises:
        WrongBeamFlag: Beam does not know a flag, or refuses it.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    check_known(options)
    try:
        with _silent():
            return beam.Pipeline(runner=DataflowRunner(), options=PipelineOptions(options))
    except ValueError as error:
        raise WrongBeamFlag(f"Beam refuses the flags: {error}") from None


def check_service(place: DataflowPlace, patience_s: float = 0.0) -> None:
    """Check that the service answers, lets this program look for jobs, and finds the bucket.

    Beam tries for minutes to write to a bucket that is not there.

    Args:
        place: Where a job is to run.
        patience_s: How long to wait for an answer.

    Raises:
        JobRefused: It does not let this program look for jobs, or there is no such bucket.
        ServiceUnreachable: It does not answer.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            service = Service.of(place)
            service.find("tidemill")
            for location in {place.temp_location, place.staging_location or place.temp_location}:
                service.check_bucket(location)
        except ServiceUnreachable:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_ASK_S)
        else:
            return


class DataflowRun:
    """A job that is submitted.

    Args:
        service: The service.
        attempt: The attempt, which has the name of the job.
        name: The job's name.
        has_heard: Tells whether a worker of it has told anything.
    """

    def __init__(
        self, service: Service, attempt: Attempt, name: str, has_heard: Callable[[], bool]
    ) -> None:
        self._service, self._attempt, self._name = service, attempt, name
        self._has_heard = has_heard
        self._id = ""
        self._submitted_s = self._answered_s = self._asked_s = 0.0
        self._seen = False
        self._messages: set[str] = set()
        self._said = "it does not say why"

    def submit(self, pipeline: Pipeline) -> PipelineResult:
        """Submit a job; do not wait for it to run.

        Args:
            pipeline: From `submitted_pipeline`, with its steps.

        Raises:
            JobRefused: The service, or the storage for the pipeline, refuses it.
            EngineLost: The service was not reached.
        """
        record_job(self._attempt, self._service, self._name)
        found = self._created(pipeline)
        self._id = found.job_id()
        record_job(self._attempt, self._service, self._name, self._id)
        self._submitted_s = self._answered_s = time.monotonic()
        _log.info("%s has the job %s (%s)", self._service.shown, self._name, self._id)
        return found

    def _created(self, pipeline: Pipeline) -> Any:
        for wait_s in (*_LATER_S, None):
            try:
                with _silent(), answered(self._service, "does not take the job"):
                    return _run(pipeline)
            except JobRefused as refusal:
                if (found := self._created_before(refusal)) is not None:
                    return found
                if wait_s is None or not may_be_asked_later(refusal):
                    forget_job(self._attempt)
                    raise
                _log.warning("%s; it is tried again in %.0f s", refusal, wait_s)
                time.sleep(wait_s)
            except ServiceUnreachable as error:
                found = self._created_before(error)
                if found is None:
                    raise EngineLost(f"the job was not submitted: {error}") from error
                return found
        raise AssertionError("the last try returns or raises")

    def _created_before(self, error: Exception) -> Any:
        """Return the job as Beam's result, if it was created and only the answer was lost."""
        if isinstance(error, JobRefused) and getattr(error.__cause__, "code", 0) != _CONFLICT:
            return None
        try:
            found = self._service.find(self._name)
        except (JobRefused, ServiceUnreachable):
            return None  # `stop_job` looks again
        if not found:
            return None
        from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult
        from google.cloud import dataflow

        _log.info("the answer was lost, and the job %s exists: %s", self._name, said(error))
        return DataflowPipelineResult(dataflow.Job(id=found[0].id, name=self._name), None)

    def wait(self, is_whole: Callable[[], bool]) -> None:
        """Wait until all outputs of the job are written.

        Args:
            is_whole: Tells whether they are; it may raise why they never will be.

        Raises:
            EngineLost: The job was lost.
            JobRefused: The service has given it up before it began.
            RuntimeError: A worker failed; the message holds its error.
        """
        while not is_whole():
            time.sleep(_LOOK_S)
            if time.monotonic() - self._asked_s >= _ASK_S:
                self._asked_s = time.monotonic()
                self._look()

    def wait_for_end(self, check: Callable[[], None]) -> None:
        """Wait until a job that ends by itself is done. Errors as for `wait`.

        Args:
            check: Raises why it never will be, if something else says so.
        """
        while True:
            check()
            time.sleep(_LOOK_S)
            if time.monotonic() - self._asked_s >= _ASK_S:
                self._asked_s = time.monotonic()
                if self._look(ends=True):
                    return

    def _look(self, *, ends: bool = False) -> bool:
        """Ask for the job; tell whether it is done, which only one that ends by itself may be."""
        try:
            job = self._service.get(self._id)
            said_of_it = [] if job is None else self._service.errors(job, self._messages)
        except (JobRefused, ServiceUnreachable) as error:
            if time.monotonic() - self._answered_s > _SILENT_S:
                raise EngineLost(
                    f"the service has said nothing of the job {self._name} ({self._id}) for "
                    f"{_SILENT_S:.0f} s: {error}"
                ) from error
            _log.info("%s; it is asked again", error)
            return False
        self._answered_s = time.monotonic()
        for text in said_of_it:
            _log.warning("the job %s: %s", self._name, text)
            self._said = text
            if (problem := worker_error(text)) is not None:
                raise problem
        if job is None:
            if self._seen or time.monotonic() - self._submitted_s > _APPEARS_S:
                raise EngineLost(
                    f"{self._service.shown} does not know the job {self._name} ({self._id}) any "
                    "more"
                )
            return False
        self._seen = True
        if ends and job.state == DONE:
            return True
        if job.state in OVER:
            raise self._failure(job)
        return False

    def _failure(self, job: Job) -> Exception:
        job_of = f"{self._service.shown}: the job {self._name} ({job.id})"
        text = f"{job_of} is {job.state}: {self._said}"
        if job.state == "FAILED" and not self._has_heard():
            return JobRefused(f"{text}; no worker of it has begun")
        return EngineLost(text)


def worker_error(text: str) -> Exception | None:
    """Return the error of a worker that a message of a job holds.

    Args:
        text: The message.

    Returns:
        The error; None if it is none of Tidemill's, nor one of importing: what fails because a
        machine was lost is tried again.
    """
    if _TRACEBACK not in text:
        return None
    if (lacks := _LACKS.search(text)) is not None:
        return WorkerLacksModule(
            f"a worker cannot import what a step needs: {lacks[1]}; let --sdk_container_image have "
            "Tidemill and the project (docs/dataflow.md)"
        )
    return RuntimeError(text) if _OURS in text else None


def _run(pipeline: Pipeline) -> Any:
    try:
        return pipeline.run()
    except OSError as error:
        # So Beam says that it cannot stage the pipeline.
        if "GCS" in str(error):
            raise JobRefused(f"the pipeline cannot be staged: {said(error)}") from error
        raise


@contextmanager
def _silent() -> Iterator[None]:
    """Let Beam say nothing: what it logs of a submission has all options, and is said here."""
    log = logging.getLogger(QUIET)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
