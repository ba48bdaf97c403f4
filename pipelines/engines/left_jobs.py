"""What killed programs have left on engines whose jobs outlive a program."""

from __future__ import annotations

from pathlib import Path

from tidemill.pipelines.engines import dataflow_jobs, flink_jobs


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
