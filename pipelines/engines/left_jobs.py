"""What killed programs have left on engines whose jobs outlive a program."""

from __future__ import annotations

from pathlib import Path

from tidemill.pipelines.engines import dataflow_jobs, flink_jobs
from tidemill.pipelines.io.attempts import Attempt


def end_left_jobs(folder: Path) -> None:
    """End the jobs of all attempts of a stream that were not ended.

    Args:
        folder: The folder of attempts; the caller holds the stream's lock.

    Raises:
        ServerNotStopped: A worker of Flink cannot be ended.
        ServiceUnreachable, JobRefused: A job on Dataflow may still run.
        DamagedState: A record does not name a job.
    """
    dataflow_jobs.end_jobs(folder)
    flink_jobs.end_jobs(folder)


def end_job(attempt: Attempt, patience_s: float) -> None:
    """End the job of an attempt, and remove what it has left.

    Args:
        attempt: The attempt.
        patience_s: How long workers on this machine may take to end by themselves.

    Raises:
        ServerNotStopped, ServiceUnreachable, JobRefused, DamagedState: As for `end_left_jobs`.
    """
    if dataflow_jobs.is_of_dataflow(attempt):
        dataflow_jobs.end_job(attempt)
    else:
        flink_jobs.end_job(attempt, patience_s)


def end_abandoned(folder: Path) -> None:
    """End the jobs of attempts whose program has ended; those of programs that run are left alone.

    Args:
        folder: The folder of attempts.

    Raises:
        ServerNotStopped, ServiceUnreachable, JobRefused, DamagedState: As for `end_left_jobs`.
    """
    for found in sorted(folder.glob("[!.]*/")) if folder.exists() else ():
        if not (attempt := Attempt(found)).is_submitted:
            end_job(attempt, flink_jobs.EXIT_S)
