"""The jobs of a stage in batch, on whatever engine: made, and run to their end.

What they read and write are files that every worker sees. So their results do not depend on the
engine, and a job that was lost is run again from its beginning, by the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.pipelines.engines.choosing import EngineChoice, choose_engine, make_runner, run
from tidemill.pipelines.engines.options import pipeline_options

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult

Wire = Callable[["Pipeline"], None]
"""Adds the steps of a job to an empty pipeline."""


@dataclass(frozen=True)
class BatchJobs:
    """Runs jobs to their end.

    Attributes:
        choice: The engine.
        project: The project's name.
    """

    choice: EngineChoice
    project: str

    @staticmethod
    def on(engine: str | None, project: str, flags: Sequence[str] = ()) -> BatchJobs:
        """Choose the engine of the jobs.

        Args:
            engine: ``fnapi`` or ``prism``; None for the default.
            project: The project's name.
            flags: Flags of Beam, for an engine that takes some.

        Raises:
            UnknownEngine: There is no such engine, or it only runs streams.
            PrismMissing: The engine is Prism, and its binary is not built.
            WrongBeamFlag: The engine does not take a flag.
        """
        return BatchJobs(choose_engine(engine, streaming=False, flags=flags), project)

    def run(self, step: str, wire: Wire) -> PipelineResult:
        """Run a job.

        Args:
            step: The end of its name.
            wire: Adds its steps.

        Raises:
            WrongEngine: It ran on another engine.
            TidemillError: A step raised this error.
            RuntimeError: A step failed for another reason; the message holds its error.
        """
        import apache_beam as beam

        pipeline = beam.Pipeline(
            runner=make_runner(self.choice),
            options=pipeline_options(self.project, self.choice, step),
        )
        wire(pipeline)
        return run(pipeline, self.choice)
