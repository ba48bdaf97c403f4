"""The jobs of a stage in batch, on whatever engine: made, and run to their end.

What they read and write are files that every worker sees, and a task writes the same files each
time. So their results do not depend on the engine, and a job that lost a process of its engine is
run again from its beginning, a few times: by this program, when no worker of the lost one is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidemill.features.errors import EngineLost
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.attempted import attempted
from tidemill.pipelines.engines.choosing import (
    EngineChoice,
    check_engine,
    choose_engine,
    make_runner,
    named_errors,
    run,
)
from tidemill.pipelines.engines.flink import FlinkPlace, check_cluster, flink_options
from tidemill.pipelines.engines.flink_jobs import end_abandoned, end_job
from tidemill.pipelines.engines.flink_run import FlinkRun, flink_runner
from tidemill.pipelines.engines.options import job_name, pipeline_options
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.run import paths

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult

MOST: Final = 3
"""So often a job may be lost; then the command ends."""

Wire = Callable[["Pipeline"], None]
"""Adds the steps of a job to an empty pipeline."""


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class BatchJobs:
    """Runs jobs to their end.

    Attributes:
        choice: The engine.
        project: The project's name.
        reference: ``module:attribute`` of the project, for workers that are other processes.
        definitions: The hash of its definitions, likewise.
        attempts: The folder of attempts, likewise.
        say: Tells a person that a job was lost.
    """

    choice: EngineChoice
    project: str
    reference: str = ""
    definitions: str = ""
    attempts: Path = Path()
    say: Callable[[str], None] = field(default=_nothing, compare=False)

    @staticmethod
    def on(engine: str | None, project: str) -> BatchJobs:
        """Choose an engine whose workers are threads of this process.

        Args:
            engine: ``fnapi`` or ``prism``; None for the default.
            project: The project's name.

        Raises:
            UnknownEngine: There is no such engine, or it only runs streams.
            PrismMissing: The engine is Prism, and its binary is not built.
        """
        return BatchJobs(choose_engine(engine, streaming=False), project)

    @staticmethod
    def of(
        config: Configuration,
        engine: str | None,
        flags: Sequence[str],
        say: Callable[[str], None],
    ) -> BatchJobs:
        """Choose the engine for the jobs of a command, and check that it takes jobs.

        Args:
            config: The configuration.
            engine: ``fnapi``, ``prism`` or ``flink``; None for the default.
            flags: Flags of Beam, for an engine that takes some.
            say: Tells a person that a job was lost.

        Raises:
            UnknownEngine: There is no such engine, or it only runs streams.
            PrismMissing: The engine is Prism, and its binary is not built.
            WrongBeamFlag: The engine does not take a flag, or does not know it.
            ClusterUnreachable: The engine is Flink, and its cluster takes no job.
        """
        choice = choose_engine(engine, streaming=False, flags=flags)
        if choice.flink is not None:
            from tidemill.pipelines.engines.flink_flags import check_flags

            check_cluster(choice.flink)
            check_flags(choice.flink.job_server, choice.flink.flags)
        project = config.project
        return BatchJobs(
            choice, project.name, config.project_name, project.hash, config.root / paths.JOBS, say
        )

    def run(self, step: str, wire: Wire, clear: Callable[[], None] = _nothing) -> PipelineResult:
        """Run a job.

        Args:
            step: The end of its name.
            wire: Adds its steps.
            clear: Removes what a lost job may have left and the next one must not find.

        Raises:
            WrongEngine: It ran on another engine.
            EngineLost: The engine has lost it again and again.
            TidemillError: A step raised this error.
            RuntimeError: A step failed for another reason; the message holds its error.
        """
        place, lost = self.choice.flink, 0
        if place is None:
            return self._run_here(step, wire)
        while True:
            try:
                end_abandoned(self.attempts)
                # Its workers are killed: what they write is whole or not there, and wanted no
                # more, or done.
                with attempted(self.attempts, partial(end_job, patience_s=0.0)) as (attempt, _):
                    return self._run_on_flink(place, attempt, step, wire)
            except EngineLost as error:
                lost += 1
                if lost > MOST:
                    raise EngineLost(
                        f"{error}; the job {step!r} was lost {lost} times: see why, and run the "
                        "command again"
                    ) from error
                self.say(f"{error}; the job is run again from its beginning ({lost} of {MOST})")
            clear()

    def _run_here(self, step: str, wire: Wire) -> PipelineResult:
        import apache_beam as beam

        pipeline = beam.Pipeline(
            runner=make_runner(self.choice),
            options=pipeline_options(self.project, self.choice, step),
        )
        wire(pipeline)
        return run(pipeline, self.choice)

    def _run_on_flink(
        self, place: FlinkPlace, attempt: Attempt, step: str, wire: Wire
    ) -> PipelineResult:
        import apache_beam as beam

        code = WorkerCode.here(self.reference, self.definitions, attempt, ends=True)
        name = f"{step}-{attempt.name}"
        pipeline = beam.Pipeline(
            runner=flink_runner(),
            options=pipeline_options(self.project, self.choice, name, flink_options(place, code)),
        )
        wire(pipeline)
        job = FlinkRun(place, code, job_name(self.project, name))
        with named_errors():
            result = job.submit(pipeline)
            check_engine(result, self.choice)
            job.wait_for_end(result)
        return result
