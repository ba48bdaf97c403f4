"""Dataflow's service: what it says of jobs, and what it is asked. Its answers become typed errors.

How Google is reached, and as whom, is Beam's and Google's own: flags such as
``--dataflow_endpoint``, the file of ``GOOGLE_APPLICATION_CREDENTIALS``, the service account of a
machine. Nothing of a credential is kept or shown here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from tidemill.features.errors import JobRefused, ServiceUnreachable
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace

DONE: Final = "DONE"
OVER: Final = frozenset({DONE, "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
"""The states that a job does not leave."""
ENDING: Final = frozenset({"CANCELLING", "RESOURCE_CLEANING_UP"})
"""The states of a job that is about to be over."""

_ANSWER_S: Final = 30.0
_STATE: Final = "JOB_STATE_"
_TOO_MANY: Final = 429
_REFUSALS: Final = range(400, 500)
_SECRET: Final = re.compile(r"(?i)(bearer|key=|token=|password=)\s*\S+")


class Job(NamedTuple):
    """A job, as the service knows it.

    Attributes:
        id: Its id.
        state: Its state, such as ``RUNNING``.
    """

    id: str
    state: str


@dataclass(frozen=True)
class Service:
    """The service, for the jobs of a project in a region.

    Attributes:
        project: The Google Cloud project.
        region: Its region.
        access: Beam's flags that say how the service is reached, and as whom.
    """

    project: str
    region: str
    access: tuple[str, ...] = ()

    @staticmethod
    def of(place: DataflowPlace) -> Service:
        """Return that of a place."""
        return Service(place.project, place.region, place.access)

    @property
    def shown(self) -> str:
        """What errors call it."""
        return f"Dataflow (project {self.project}, {self.region})"

    @cached_property
    def _client(self) -> Any:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

        flags = [f"--project={self.project}", f"--region={self.region}", *self.access]
        with answered(self, "is not asked"):
            return DataflowApplicationClient(PipelineOptions(flags), "gs://unused")

    def check_bucket(self, location: str) -> None:
        """Check that the bucket of a location is there.

        Args:
            location: Such as ``gs://BUCKET/temp``.

        Raises:
            JobRefused: There is none, or this program may not look.
            ServiceUnreachable: The storage does not answer.
        """
        bucket = location.removeprefix("gs://").partition("/")[0]
        with answered(self, f"is given no files through gs://{bucket}"):
            self._client._storage_client.get_bucket(bucket, timeout=_ANSWER_S, retry=None)

    def find(self, name: str) -> list[Job]:
        """Return the jobs of a name: one, or none if the service knows none.

        Args:
            name: The job's name, which no other has.

        Raises:
            JobRefused: The service does not let this program list jobs.
            ServiceUnreachable: It does not answer.
        """
        from google.cloud import dataflow

        request = dataflow.ListJobsRequest(
            project_id=self.project,
            location=self.region,
            filter=dataflow.ListJobsRequest.Filter.ALL,
            name=name,
        )
        with answered(self, "does not list jobs"):
            found = list(self._client._jobs_client.list_jobs(request=request, timeout=_ANSWER_S))
        return [_job(one) for one in found if one.name == name]

    def get(self, job_id: str) -> Job | None:
        """Return a job; None if the service does not know it. Errors as for `find`."""
        from google.api_core.exceptions import NotFound
        from google.cloud import dataflow

        request = dataflow.GetJobRequest(
            project_id=self.project, location=self.region, job_id=job_id
        )
        with answered(self, f"does not tell the state of the job {job_id}"):
            try:
                return _job(self._client._jobs_client.get_job(request=request, timeout=_ANSWER_S))
            except NotFound:
                return None

    def cancel(self, job: Job) -> None:
        """Ask for a job to be cancelled. Errors as for `find`."""
        from google.api_core.exceptions import FailedPrecondition, NotFound
        from google.cloud import dataflow

        request = dataflow.UpdateJobRequest(
            project_id=self.project,
            location=self.region,
            job_id=job.id,
            job=dataflow.Job(requested_state=dataflow.JobState.JOB_STATE_CANCELLED),
        )
        with answered(self, f"does not cancel the job {job.id}"):
            try:
                self._client._jobs_client.update_job(request=request, timeout=_ANSWER_S)
            except (NotFound, FailedPrecondition):  # it is over meanwhile
                return

    def errors(self, job: Job, seen: set[str]) -> list[str]:
        """Return the errors that the service has told of a job, but for those seen before.

        Args:
            job: The job.
            seen: The ids of messages that were seen; those that are returned are added.

        Raises:
            JobRefused, ServiceUnreachable: As for `find`.
        """
        from google.cloud import dataflow

        request = dataflow.ListJobMessagesRequest(
            project_id=self.project,
            location=self.region,
            job_id=job.id,
            minimum_importance=dataflow.JobMessageImportance.JOB_MESSAGE_ERROR,
        )
        with answered(self, f"does not list the messages of the job {job.id}"):
            found = list(
                self._client._messages_client.list_job_messages(request=request, timeout=_ANSWER_S)
            )
        new = [one for one in found if one.id not in seen]
        seen.update(one.id for one in new)
        return [one.message_text for one in new]


def _job(found: Any) -> Job:
    return Job(found.id, found.current_state.name.removeprefix(_STATE))


@contextmanager
def answered(service: Service, what: str) -> Iterator[None]:
    """Say by name what the service answers to a request.

    Args:
        service: The service.
        what: What it does not do, for the error.

    Raises:
        JobRefused: It refuses, such as for want of a permission.
        ServiceUnreachable: It does not answer, or has failed itself.
    """
    import requests
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except GoogleAPICallError as error:
        raise _named(service, what, error) from error
    except (TransportError, RetryError, requests.RequestException) as error:
        raise ServiceUnreachable(f"{service.shown} {what}: {said(error)}") from error
    except GoogleAuthError as error:
        raise JobRefused(f"{service.shown} {what}: {said(error)}; {_LOOK}") from error
    except OSError as error:
        raise ServiceUnreachable(f"{service.shown} {what}: {said(error)}") from error


_LOOK: Final = "see the project, its quotas and APIs, and the roles of who runs this"


def _named(service: Service, what: str, error: Any) -> Exception:
    text = f"{service.shown} {what}: {said(error)}"
    if error.code in _REFUSALS:
        return JobRefused(f"{text}; {_LOOK}")
    return ServiceUnreachable(text)


def may_be_asked_later(refusal: JobRefused) -> bool:
    """Tell whether only a quota was used up for the moment."""
    return getattr(refusal.__cause__, "code", None) == _TOO_MANY


def said(error: Exception) -> str:
    """Return what an error of Google's libraries says, in one line and without secrets."""
    text = " ".join(str(error).split())
    return _SECRET.sub(r"\1...", text)[:600].rstrip(".")
