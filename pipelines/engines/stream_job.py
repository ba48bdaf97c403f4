"""The job of a stream, on whatever engine: made, run until its outputs are whole, ended.

On FnApiRunner and Prism the source ends, and with it the job; the workers are threads of this
process. On Flink and Dataflow the source stays, and the workers are other processes: the job has an
*attempt* (`pipelines.io.attempts`), and is ended when somebody who looks at its outputs says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.pipelines.engines import dataflow_jobs, flink_jobs
from tidemill.pipelines.engines.attempted import attempted
from tidemill.pipelines.engines.choosing import (
    EngineChoice,
    check_engine,
    make_runner,
    named_errors,
)
from tidemill.pipelines.engines.choosing import run as run_to_end
from tidemill.pipelines.engines.dataflow import dataflow_options
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace
from tidemill.pipelines.engines.dataflow_run import DataflowRun, submitted_pipeline
from tidemill.pipelines.engines.dataflow_service import Service
from tidemill.pipelines.engines.flink import FlinkPlace, flink_options
from tidemill.pipelines.engines.flink_run import FlinkRun, flink_runner
from tidemill.pipelines.engines.options import job_name, pipeline_options
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.program_end import ProgramEnd

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult

    from tidemill.pipelines.engines.attempted import Meeting

STEP = "stream"


@dataclass(frozen=True)
class StreamJob:
    """A job that ends when its source does.

    Attributes:
        choice: The engine.
        project: The project's name.
    """

    choice: EngineChoice
    project: str

    @property
    def attempt(self) -> Attempt | None:
        """The attempt, if the workers are other processes and the source is to stay."""
        return None

    @property
    def exchange(self) -> ProgramEnd | None:
        """The program's end of the exchange, if the workers do not share its disk."""
        return None

    @property
    def by_impulses(self) -> bool:
        """Whether impulses call the source, and it is no splittable DoFn."""
        return False

    def pipeline(self) -> Pipeline:
        """Return an empty pipeline for the engine."""
        import apache_beam as beam

        options = pipeline_options(self.project, self.choice, STEP)
        return beam.Pipeline(runner=make_runner(self.choice), options=options)

    def run(self, pipeline: Pipeline, is_whole: Callable[[], bool]) -> PipelineResult:
        """Run a pipeline until all of its outputs are written, and end it.

        Args:
            pipeline: From `pipeline`, with its steps.
            is_whole: Tells whether all outputs are written; it may raise why they never will be.

        Returns:
            The result; no worker runs any more.

        Raises:
            WrongEngine: The pipeline ran on another engine.
            EngineLost: A process of the engine was lost, and the job with it.
            TidemillError: A step raised this error.
            RuntimeError: A step failed for another reason; the message holds its error.
        """
        return run_to_end(pipeline, self.choice)


@dataclass(frozen=True)
class _FlinkJob(StreamJob):
    place: FlinkPlace
    code: WorkerCode
    meets: ProgramEnd | None

    @property
    def attempt(self) -> Attempt:
        return self.code.attempt

    @property
    def exchange(self) -> ProgramEnd | None:
        return self.meets

    @property
    def by_impulses(self) -> bool:
        return True

    @property
    def _step(self) -> str:
        return f"{STEP}-{self.attempt.name}"

    def pipeline(self) -> Pipeline:
        import apache_beam as beam

        options = flink_options(self.place, self.code)
        return beam.Pipeline(
            runner=flink_runner(),
            options=pipeline_options(self.project, self.choice, self._step, options),
        )

    def run(self, pipeline: Pipeline, is_whole: Callable[[], bool]) -> PipelineResult:
        name = job_name(self.project, self._step)
        job = FlinkRun(self.place, self.code, name, self.meets)
        if self.meets is not None:
            self.meets.take()
        with named_errors():
            result = job.submit(pipeline)
            check_engine(result, self.choice)
            job.wait(result, _checked(self.meets, is_whole))
        flink_jobs.stop_job(self.attempt)
        return result


@dataclass(frozen=True)
class _DataflowJob(StreamJob):
    place: DataflowPlace
    of: Attempt
    meets: ProgramEnd

    @property
    def attempt(self) -> Attempt:
        return self.of

    @property
    def exchange(self) -> ProgramEnd:
        return self.meets

    @property
    def _name(self) -> str:
        begins = self.place.job_name or job_name(self.project, STEP)
        return f"{begins}-{self.of.name}"

    def pipeline(self) -> Pipeline:
        options = dataflow_options(
            self.place,
            self._name,
            streaming=True,
            operators=self.place.workers,
            has_accelerator=False,
            is_submitted=True,
        )
        return submitted_pipeline(options)

    def run(self, pipeline: Pipeline, is_whole: Callable[[], bool]) -> PipelineResult:
        service = Service.of(self.place)
        job = DataflowRun(service, self.of, self._name, lambda: self.meets.has_heard)
        self.meets.take()
        with named_errors():
            result = job.submit(pipeline)
            check_engine(result, self.choice)
            job.wait(_checked(self.meets, is_whole))
        return result


def _checked(meets: ProgramEnd | None, is_whole: Callable[[], bool]) -> Callable[[], bool]:
    """Look also whether workers that share no disk with this program go on."""

    def whole() -> bool:
        if meets is not None:
            if problem := meets.problem():
                raise RuntimeError(problem)
            meets.check()
        return is_whole()

    return whole


@contextmanager
def stream_job(
    choice: EngineChoice,
    project: str,
    reference: str,
    definitions: str,
    attempts: Path,
    meeting: Meeting | None = None,
) -> Iterator[StreamJob]:
    """Make the job of a stream; whatever happens in the block, no worker is left behind it.

    Args:
        choice: The engine.
        project: The project's name.
        reference: ``module:attribute`` of the project.
        definitions: The hash of its definitions.
        attempts: The folder of attempts.
        meeting: Opens the program's end of an exchange for a job of a name, if the workers of an
            engine that has some are to share no disk with this program.
    """
    if choice.dataflow is not None:
        assert meeting is not None  # `dataflow.refuse_local_places` has checked it
        with attempted(attempts, dataflow_jobs.end_job) as (attempt, opened):
            program = opened.enter_context(meeting(attempt.name))
            program.let_workers_check(ProgramCode.here(reference, definitions))
            yield _DataflowJob(choice, project, choice.dataflow, attempt, program)
        return
    if choice.flink is None:
        yield StreamJob(choice, project)
        return
    with attempted(attempts, flink_jobs.end_job) as (attempt, opened):
        end = None if meeting is None else opened.enter_context(meeting(attempt.name))
        meets = None if end is None else end.place
        code = WorkerCode.here(reference, definitions, attempt, meets)
        yield _FlinkJob(choice, project, choice.flink, code, end)
