"""Taking the place of the result that Beam's runner gives for a job that it has submitted."""

from __future__ import annotations

from apache_beam.runners.portability.portable_runner import PipelineResult


class TakenResult(PipelineResult):
    """The result of a submitted job, in the place of Beam's, which has nothing left to clean up.

    Args:
        submitted: Beam's result.
    """

    def __init__(self, submitted: PipelineResult) -> None:
        super().__init__(
            submitted._job_service,
            submitted._job_id,
            submitted._message_stream,
            submitted._state_stream,
            submitted._cleanup_callbacks,
        )
        submitted._cleanup_callbacks = ()
