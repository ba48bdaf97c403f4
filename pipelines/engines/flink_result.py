"""The result of a job on Flink; its class tells afterwards which engine ran."""

from __future__ import annotations

import grpc
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.runner import PipelineState

from tidemill.features.errors import EngineLost


class FlinkResult(PipelineResult):
    """A job that was submitted to Flink through Beam's job server."""

    def __init__(self, submitted: PipelineResult) -> None:
        super().__init__(
            submitted._job_service,
            submitted._job_id,
            submitted._message_stream,
            submitted._state_stream,
            submitted._cleanup_callbacks,
        )
        submitted._cleanup_callbacks = ()

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
