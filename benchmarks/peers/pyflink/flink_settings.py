"""What both of PyFlink's APIs run with: the settings of its guide, for rate or for latency."""

from __future__ import annotations

from collections.abc import Mapping

from point_in_time import Job
from pyflink.common import Configuration


def settings(job: Job, further: Mapping[str, str]) -> Configuration:
    """Return the settings of a job.

    Args:
        job: The job.
        further: Those of one API.
    """
    config = Configuration()
    for key, value in {
        **further,
        "execution.buffer-timeout.interval": "1 ms" if job.steady else "100 ms",
        "pipeline.auto-watermark-interval": "10 ms" if job.steady else "200 ms",
        "pipeline.object-reuse": "true",
        "pipeline.jars": ";".join(f"file://{jar}" for jar in job.jars),
        "state.backend.type": "hashmap",
        "execution.checkpointing.interval": "10 s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.dir": f"file://{job.folder}/checkpoints",
        "taskmanager.memory.managed.size": "64 mb",
    }.items():
        config.set_string(key, value)
    return config
