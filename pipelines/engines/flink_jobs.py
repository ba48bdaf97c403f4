"""Jobs of a Flink cluster: what its REST interface says of them, and how they are ended for sure.

Ending a job is asking the cluster to cancel it *and* waiting until no worker of its attempt is left
(`pipelines.io.attempts`). A cluster that does not answer, or that has forgotten the job, changes
nothing: the workers are processes of this machine, which are killed if they do not end.
"""

from __future__ import annotations

import json
import logging
import socket
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple

from tidemill.features.errors import DamagedState, ServerNotStopped
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.servers.flink_cluster import ask_rest
from tidemill.pipelines.servers.processes import RunningProcess
from tidemill.serving.files.atomic_write import write_text

RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
ENDED: Final = frozenset({"FAILED", "CANCELED", FINISHED, "SUSPENDED"})
"""The states that a job does not leave."""

_ANSWER_S: Final = 10.0
_CANCEL_S: Final = 15.0
EXIT_S: Final = 10.0
"""So long workers may take to end by themselves."""
_KILLED_S: Final = 60.0
_LOOK_S: Final = 0.05

_log: Final = logging.getLogger(__name__)


class Job(NamedTuple):
    """A job, as the cluster knows it.

    Attributes:
        id: Its id.
        state: Its state, such as ``RUNNING``.
    """

    id: str
    state: str


def find_jobs(rest: str, name: str) -> list[Job] | None:
    """Return the jobs of a name: one, or none if the cluster knows none.

    Args:
        rest: ``http://HOST:PORT`` of the JobManager.
        name: The job's name, which no other has.

    Returns:
        The jobs; None if the JobManager does not answer.
    """
    found = ask_rest(rest, "/jobs/overview")
    if found is None:
        return None
    return [Job(one["jid"], one["state"]) for one in found["jobs"] if one["name"] == name]


def why_failed(rest: str, job: Job) -> str:
    """Return the text of the exception with which a job has failed; empty if it is not known."""
    found: Any = ask_rest(rest, f"/jobs/{job.id}/exceptions") or {}
    history = (found.get("exceptionHistory") or {}).get("entries") or []
    texts = [one.get("stacktrace") or "" for one in history]
    texts += [(found.get("root-exception") or "")]
    # Other subtasks fail with the first one: what a worker said is the reason.
    return next((text for text in texts if "SDK harness" in text), "".join(texts[:1]) or texts[-1])


def cancel(rest: str, job: Job) -> None:
    """Ask a cluster to cancel a job; what it answers does not matter."""
    request = urllib.request.Request(f"{rest}/jobs/{job.id}?mode=cancel", method="PATCH")
    with suppress(OSError, HTTPException):
        urllib.request.urlopen(request, timeout=_ANSWER_S).close()


def record_job(attempt: Attempt, rest: str, name: str) -> None:
    """Record which job an attempt is, before it is submitted."""
    write_text(attempt.job, json.dumps({"rest": rest, "name": name}))


def stop_job(attempt: Attempt, patience_s: float = EXIT_S) -> None:
    """Stop the job of an attempt, and wait until none of its workers is left.

    Args:
        attempt: The attempt.
        patience_s: How long its workers may take to end by themselves; 0.0 kills them at once.

    Raises:
        ServerNotStopped: A worker cannot be ended.
    """
    _cancel(attempt)
    deadline_s = time.monotonic() + patience_s
    while not attempt.close_if_unused():
        if time.monotonic() > deadline_s:
            _kill(attempt)
            break
        time.sleep(_LOOK_S)


def end_job(attempt: Attempt, patience_s: float = EXIT_S) -> None:
    """Stop the job of an attempt, and remove what it has left; as `stop_job`."""
    stop_job(attempt, patience_s)
    attempt.remove()


def ask_to_cancel(attempt: Attempt) -> None:
    """Ask the cluster to cancel the job of an attempt, if it runs; do not wait for it."""
    rest, name = _recorded(attempt)
    for job in find_jobs(rest, name) or ():
        if job.state not in ENDED:
            cancel(rest, job)


def _recorded(attempt: Attempt) -> tuple[str, str]:
    """Return where the job of an attempt was submitted, and its name; empty if it was not."""
    try:
        found = json.loads(attempt.job.read_text(encoding="utf-8"))
        return found["rest"], found["name"]
    except FileNotFoundError:
        return "", ""
    except (ValueError, KeyError) as error:
        raise DamagedState(
            f"{attempt.job} does not name a job ({error}); cancel it yourself, and remove "
            f"{attempt.folder}"
        ) from None


def _cancel(attempt: Attempt) -> None:
    rest, name = _recorded(attempt)
    if not rest:
        return
    deadline_s = time.monotonic() + _CANCEL_S
    while jobs := [job for job in find_jobs(rest, name) or () if job.state not in ENDED]:
        job = jobs[0]
        if job.state != "CANCELLING":
            cancel(rest, job)
        if time.monotonic() > deadline_s:
            _log.warning(
                "the job %s is %s and does not end; its workers are killed", name, job.state
            )
            return
        time.sleep(_LOOK_S)


def workers_here(attempt: Attempt) -> tuple[list[RunningProcess], list[RunningProcess]]:
    """Return the workers of an attempt on this machine: those that run, and the lost ones."""
    here = socket.gethostname()
    found = [
        RunningProcess(int(one["pid"]), str(one["started"]))
        for one in attempt.workers()
        if one["host"] == here
    ]
    alive = [worker for worker in found if worker.is_alive()]
    ended = [worker for worker in found if worker not in alive]
    return alive, [worker for worker in ended if not attempt.has_left(worker.pid)]


def _kill(attempt: Attempt) -> None:
    deadline_s = time.monotonic() + _KILLED_S
    while not attempt.close_if_unused():
        workers = attempt.workers()
        for one in workers_here(attempt)[0]:
            one.end(0.0)
        if time.monotonic() > deadline_s:
            said = ", ".join(f"process {one['pid']} on {one['host']}" for one in workers)
            raise ServerNotStopped(
                f"workers of an earlier job may still write ({said or 'unknown processes'}; they "
                f"lock {attempt.workers_lock}): end them, and run the command again"
            )
        time.sleep(_LOOK_S)


def end_jobs(folder: Path) -> None:
    """End the jobs of all attempts that were not ended, such as those of a killed program.

    Args:
        folder: The folder of attempts; the caller holds the stream's lock.

    Raises:
        ServerNotStopped: A worker cannot be ended.
    """
    for found in sorted(folder.glob("*/")) if folder.exists() else ():
        end_job(Attempt(found))
