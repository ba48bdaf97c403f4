"""The program that a TaskManager runs to start a Python worker (``--environment_type=PROCESS``).

It takes the arguments of Beam's own boot program, and does for one worker what the pool does
(`pipelines.engines.worker`): the worker has imported the project, and compared it, before it takes
work. What is wrong with it stands in the folder of its attempt, where the program that submitted
the job finds it: a TaskManager says no more of a process that has ended than its exit status. Its
messages are those of the TaskManager's log.

``tidemill-worker``, or ``python -m tidemill.pipelines.engines.worker_boot``
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

WORKER: Final = "TIDEMILL_WORKER"
"""The environment variable with what the worker must have imported (`WorkerCode`), as JSON."""

_log: Final = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Work until the job ends.

    Args:
        arguments: As Beam's runner gives them; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="tidemill-worker",
        description="Starts a worker of a job; a TaskManager of Flink runs it (docs/engines.md).",
        allow_abbrev=False,
    )
    for name in ("--id", "--control_endpoint", "--logging_endpoint"):
        parser.add_argument(name, required=True)
    # It also names where artifacts are, of which there are none, and where options are.
    asked, _ = parser.parse_known_args(arguments)
    if WORKER not in os.environ:
        parser.error(f"{WORKER} is not set: Tidemill sets it for the jobs that it submits")

    from tidemill.pipelines.engines.worker import take_up, work
    from tidemill.pipelines.engines.worker_code import WorkerCode

    code = WorkerCode.of_params(json.loads(os.environ[WORKER]))
    if code is None:
        parser.error(f"{WORKER} names no project: {os.environ[WORKER]}")
    _log_to(asked.logging_endpoint, asked.id)
    if problem := take_up(code):
        code.attempt.report(problem)
        _log.error("worker %s: %s", asked.id, problem.strip())
        sys.exit(1)
    _log.info("worker %s is process %d", asked.id, os.getpid())
    work(asked.control_endpoint, asked.id, code)


def _log_to(endpoint: str, worker: str) -> None:
    """Send the messages of this process to the engine, as Beam's own workers do."""
    import grpc
    from apache_beam.portability.api import endpoints_pb2
    from apache_beam.runners.worker.log_handler import FnApiLogRecordHandler

    os.environ["WORKER_ID"] = worker  # Beam's channels send it
    logging.getLogger().setLevel(logging.INFO)
    try:
        handler = FnApiLogRecordHandler(endpoints_pb2.ApiServiceDescriptor(url=endpoint))
    except grpc.FutureTimeoutError:
        logging.basicConfig()
        _log.warning("nobody takes messages at %s: they are written here", endpoint)
        return
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    main()
