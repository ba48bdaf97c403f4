"""The result of a job on Flink; its class tells afterwards which engine ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from apache_beam.runners.runner import PipelineState

from tidemill.features.errors import EngineLost
from tidemill.pipelines.engines.taken_result import TakenResult

_AWAY: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""What gRPC says of a server that is not there, or does not answer."""


@contextmanager
def job_server_answers() -> Iterator[None]:
    """Say by name that the job server was lost while it was asked.

    Raises:
        EngineLost: It was.
    """
    try:
        yield
    except grpc.FutureTimeoutError as error:
        raise EngineLost("Beam's job server was lost: it takes no connection") from error
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() in _AWAY:
            raise EngineLost(f"Beam's job server was lost: {error.details()}") from error
        raise


class FlinkResult(TakenResult):
    """A job that was submitted to Flink through Beam's job server."""

    def check_submitted(self) -> None:
        """Check that a job which the JobManager does not know yet is on its way.

        Raises:
            EngineLost: The job server does not answer.
            RuntimeError: It could not submit the job; the message has the reason.
        """
        try:
            state = self.state
        except grpc.RpcError as error:
            raise EngineLost(f"Beam's job server was lost: {error}") from error
        if PipelineState.is_terminal(state):
            self.wait_until_finish()
            raise EngineLost(f"the job ended as {state} before Flink had it")
