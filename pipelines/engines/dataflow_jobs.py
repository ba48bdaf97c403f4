"""Jobs on Dataflow and their attempts: recorded before they are created, and ended for sure.

A job has the name of its attempt, and no other job has it. The name is on the disk before the
service is asked for the job, so that a program which is killed at any time leaves a job that the
next one finds. A job was ended when the service says that it is over, or that it knows none of the
name.

A job costs money until it is over. So nobody goes on before that; its workers would not be in the
way (`pipelines.io.exchange`).
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedState, ServiceUnreachable
from tidemill.pipelines.engines.dataflow_service import ENDING, OVER, Job, Service
from tidemill.pipelines.io.attempts import Attempt
from tidemill.serving.files.atomic_write import write_text

_ENGINE: Final = "dataflow"
_APPEARS_S: Final = 60.0
"""So long after it was asked for it a job may become known by its name."""
_OVER_S: Final = 900.0
"""So long a job may take until it is over, and the service may be away meanwhile."""
_LOOK_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


def record_job(attempt: Attempt, service: Service, name: str, job_id: str | None = None) -> None:
    """Record which job an attempt is: before it is created, and its id as soon as it is known.

    Args:
        attempt: The attempt.
        service: The service.
        name: The job's name.
        job_id: Its id; None before it is created.
    """
    found = {
        "engine": _ENGINE,
        "project": service.project,
        "region": service.region,
        "access": service.access,
        "name": name,
        "id": job_id,
    }
    write_text(attempt.job, json.dumps(found))


def forget_job(attempt: Attempt) -> None:
    """Record that an attempt has no job: the service has refused it."""
    attempt.job.unlink(missing_ok=True)


def _recorded(attempt: Attempt) -> tuple[Service, str, str | None] | None:
    """Return service, name and id of the job of an attempt; None if it is none on Dataflow."""
    try:
        found = json.loads(attempt.job.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # `flink_jobs` names a record that is damaged
        return None
    if not isinstance(found, dict) or found.get("engine") != _ENGINE:
        return None
    try:
        service = Service(found["project"], found["region"], tuple(found["access"]))
        return service, found["name"], found["id"]
    except (KeyError, TypeError) as error:
        raise DamagedState(
            f"{attempt.job} does not name a job ({error}); cancel it yourself, and remove "
            f"{attempt.folder}"
        ) from None


def is_of_dataflow(attempt: Attempt) -> bool:
    """Tell whether an attempt has a job on Dataflow, as far as its record says.

    Raises:
        DamagedState: The record does not name a job.
    """
    return _recorded(attempt) is not None


def stop_job(attempt: Attempt) -> None:
    """Cancel the job of an attempt, if it is not over, and wait until it is.

    Raises:
        ServiceUnreachable: Whether it is over could not be found out, or it does not end.
        JobRefused: The service does not let this program look, or cancel.
    """
    recorded = _recorded(attempt)
    if recorded is None:
        return
    service, name, job_id = recorded
    deadline_s = time.monotonic() + _OVER_S
    while True:
        why = ""
        try:
            job = _find(service, name, job_id)
            if job is None and (job_id is not None or _age_s(attempt) > _APPEARS_S):
                return
            if job is not None:
                if job.state in OVER:
                    return
                job_id, why = job.id, f"it is {job.state}"
                if job.state not in ENDING:
                    _log.info("the job %s (%s) is cancelled", name, job.id)
                    service.cancel(job)
        except ServiceUnreachable as error:
            why = str(error)
        if time.monotonic() > deadline_s:
            raise ServiceUnreachable(
                f"the job {name} may still run ({why}): cancel it yourself (`gcloud dataflow jobs "
                f"cancel {job_id or 'ID'} --region {service.region}`), and run the command again"
            )
        time.sleep(_LOOK_S)


def _find(service: Service, name: str, job_id: str | None) -> Job | None:
    if job_id is not None:
        return service.get(job_id)
    return next(iter(service.find(name)), None)


def _age_s(attempt: Attempt) -> float:
    try:
        return time.time() - attempt.job.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def end_job(attempt: Attempt) -> None:
    """Stop the job of an attempt, and remove what it has left. Errors as for `stop_job`."""
    stop_job(attempt)
    attempt.remove()


def end_jobs(folder: Path) -> None:
    """End the jobs on Dataflow of all attempts that were not ended, such as of a killed program.

    Args:
        folder: The folder of attempts; the caller holds the stream's lock.

    Raises:
        ServiceUnreachable, JobRefused: As for `stop_job`.
    """
    for found in sorted(folder.glob("*/")) if folder.exists() else ():
        if is_of_dataflow(attempt := Attempt(found)):
            end_job(attempt)
