"""The program that a TaskManager runs to start a Python worker (``--environment_type=PROCESS``).

It takes the arguments of Beam's own boot program, and does for one worker what the pool does
(`pipelines.engines.worker`): the worker has imported the project, and compared it, before it takes
work. What is wrong with it stands in the folder of its attempt, or is told through the exchange,
where the program that submitted the job finds it: a TaskManager says no more of a process that has
ended than its exit status. So a worker that does not reach the exchange says why by that. Its
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
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tidemill.features.errors import TidemillError
    from tidemill.pipelines.engines.worker_code import WorkerCode

WORKER: Final = "TIDEMILL_WORKER"
"""The environment variable with what the worker must have imported (`WorkerCode`), as JSON."""

_ANSWER_S: Final = 60.0

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
    for name in ("--id", "--provision_endpoint"):
        parser.add_argument(name, required=True)
    # Others may follow, such as a folder for artifacts, of which there are none.
    asked, _ = parser.parse_known_args(arguments)
    if WORKER not in os.environ:
        parser.error(f"{WORKER} is not set: Tidemill sets it for the jobs that it submits")

    from tidemill.pipelines.engines.worker import take_up, work
    from tidemill.pipelines.engines.worker_code import WorkerCode

    code = WorkerCode.of_params(json.loads(os.environ[WORKER]))
    if code is None:
        parser.error(f"{WORKER} names no project: {os.environ[WORKER]}")
    os.environ["WORKER_ID"] = asked.id  # what Beam's channels say of themselves
    control, logs = _endpoints(asked.provision_endpoint)
    _log_to(logs)
    if (error := take_up(code)) is not None:
        _log.error("worker %s: %s", asked.id, error)
        sys.exit(_reported(code, error))
    _log.info("worker %s is process %d", asked.id, os.getpid())
    work(control, asked.id, code)


def _reported(code: WorkerCode, error: TidemillError) -> int:
    """Let the program know why this process takes up no work; return its exit status."""
    from tidemill.features.errors import ExchangeError
    from tidemill.pipelines.engines.exit_status import exit_status
    from tidemill.pipelines.engines.worker import named

    if not isinstance(error, ExchangeError):
        try:
            code.report(named(error))
        except ExchangeError as unheard:
            _log.error("%s", unheard)
            error = unheard
    return exit_status(error)


def _endpoints(provision: str) -> tuple[str, str]:
    """Ask the engine where it gives work, and where it takes messages."""
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor

    with grpc.insecure_channel(provision) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(
            grpc.intercept_channel(channel, WorkerIdInterceptor())
        )
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = service.GetProvisionInfo(request, timeout=_ANSWER_S, wait_for_ready=True).info
    return info.control_endpoint.url, info.logging_endpoint.url


def _log_to(endpoint: str) -> None:
    """Send the messages of this process to the engine, as Beam's own workers do."""
    import grpc
    from apache_beam.portability.api import endpoints_pb2
    from apache_beam.runners.worker.log_handler import FnApiLogRecordHandler

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
