"""The jobs of a stage in batch, on whatever engine: made, and run to their end.

What they read and write are files that every worker sees, and a task writes the same files each
time. So their results do not depend on the engine, and a job that lost a process of its engine is
run again from its beginning, a few times: by this program, when no worker of the lost one is left.

Workers that do not share this program's disk are given the files that they read, and leave those
that they write, in an exchange (`pipelines.io.exchange.batch_end`). What workers of a lost job
still leave there is not taken, or is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
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
from tidemill.pipelines.engines.dataflow import dataflow_options, refuse_local_places
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace
from tidemill.pipelines.engines.dataflow_run import DataflowRun, check_service, submitted_pipeline
from tidemill.pipelines.engines.dataflow_service import Service
from tidemill.pipelines.engines.exchange_urls import missing_exchange
from tidemill.pipelines.engines.flink import FlinkPlace, check_cluster, flink_options
from tidemill.pipelines.engines.flink_run import FlinkRun, flink_runner
from tidemill.pipelines.engines.left_jobs import end_abandoned, end_job
from tidemill.pipelines.engines.options import job_name, pipeline_options
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.batch_end import BatchEnd, JobEnd, batch_exchange
from tidemill.pipelines.io.exchange.chunked import ChunkedObject
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.task_place import TaskPlace
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import root_id

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult

MOST: Final = 3
"""So often a job may be lost; then the command ends."""

Wire = Callable[["Pipeline", TaskPlace | None], None]
"""Adds the steps of a job to an empty pipeline; and where tasks meet this program, if workers do
not share its disk."""


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
        root: The root, below which attempts are, likewise.
        say: Tells a person that a job was lost.
        exchange: The URL of the exchange; None if workers share this program's disk.
        end: This program's end of it, while it meets them (`meeting`).
    """

    choice: EngineChoice
    project: str
    reference: str = ""
    definitions: str = ""
    root: Path = Path()
    say: Callable[[str], None] = field(default=_nothing, compare=False)
    exchange: str | None = None
    end: BatchEnd | None = None

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
            engine: ``fnapi``, ``prism``, ``flink`` or ``dataflow``; None for the default.
            flags: Flags of Beam, for an engine that takes some.
            say: Tells a person that a job was lost.

        Raises:
            UnknownEngine: There is no such engine.
            PrismMissing: The engine is Prism, and its binary is not built.
            WrongBeamFlag: The engine does not take a flag, or does not know it.
            ClusterUnreachable: The engine is Flink, and its cluster takes no job.
            RootNotShared: The engine is Dataflow, and its workers would not reach the exchange.
            JobRefused, ServiceUnreachable: The engine is Dataflow, and takes no job.
        """
        choice = choose_engine(engine, streaming=False, flags=flags)
        if choice.flink is not None:
            from tidemill.pipelines.engines.flink_flags import check_flags

            check_cluster(choice.flink)
            check_flags(choice.flink.job_server, choice.flink.flags)
        url = config.stream.exchange if choice.has_workers else None
        if choice.dataflow is not None:
            missing = missing_exchange(url, is_here=choice.dataflow.is_here)
            refuse_local_places(config.root, missing)
            check_service(choice.dataflow)
        project = config.project
        return BatchJobs(
            choice, project.name, config.project_name, project.hash, config.root, say, url
        )

    @property
    def attempts(self) -> Path:
        """The folder of attempts."""
        return self.root / paths.JOBS

    @contextmanager
    def meeting(self, writes: Sequence[Path]) -> Iterator[BatchJobs]:
        """Meet workers that do not share this program's disk while the block runs, if there are.

        Args:
            writes: The folders below the root where tasks write.

        Yields:
            What runs the jobs of the block.

        Raises:
            ExchangeError: The storage cannot be written or read.
        """
        if self.exchange is None:
            yield self
            return
        with batch_exchange(self.exchange, self.root, root_id(self.root), writes) as end:
            yield replace(self, end=end)

    @property
    def opens(self) -> Callable[[Path], ChunkedObject] | None:
        """Opens what a task has left for others in the exchange; None without one."""
        return None if self.end is None else self.end.open

    def forget(self, folder: Path) -> None:
        """Remove what tasks have left for others in a folder below the root."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.end is not None:
            self.end.forget(folder)

    def run(
        self,
        step: str,
        wire: Wire,
        clear: Callable[[], None] = _nothing,
        gives: Mapping[str, Sequence[Path]] | None = None,
    ) -> PipelineResult:
        """Run a job.

        Args:
            step: The end of its name.
            wire: Adds its steps.
            clear: Removes what a lost job may have left and the next one must not find.
            gives: The files that its tasks read, by the name of each list (`BatchEnd.job`).

        Raises:
            WrongEngine: It ran on another engine.
            EngineLost: The engine has lost it again and again.
            JobRefused, ServiceUnreachable: Dataflow does not take it.
            ExchangeError: The storage of the exchange is away, or refuses.
            TidemillError: A step raised this error.
            RuntimeError: A step failed for another reason; the message holds its error.
        """
        if not self.choice.has_workers:
            return self._run_here(step, wire)
        lost = 0
        while True:
            try:
                end_abandoned(self.attempts)
                # Its workers are killed: what they write is whole or not there, and wanted no
                # more, or done.
                ending = partial(end_job, patience_s=0.0)
                with attempted(self.attempts, ending) as (attempt, opened):
                    meets = None
                    if self.end is not None:
                        meets = opened.enter_context(self._met(attempt, gives or {}))
                    result = self._run_attempt(attempt, step, wire, meets)
                    if meets is not None:
                        meets.take()
                    return result
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
        wire(pipeline, None)
        return run(pipeline, self.choice)

    def _met(
        self, attempt: Attempt, gives: Mapping[str, Sequence[Path]]
    ) -> AbstractContextManager[JobEnd]:
        assert self.end is not None
        code = None
        if self.choice.dataflow is not None:
            code = ProgramCode.here(self.reference, self.definitions)
        return self.end.job(attempt.name, gives, code)

    def _run_attempt(
        self, attempt: Attempt, step: str, wire: Wire, meets: JobEnd | None
    ) -> PipelineResult:
        name = f"{step}-{attempt.name}"
        if self.choice.flink is not None:
            return self._run_on_flink(self.choice.flink, attempt, name, wire, meets)
        assert self.choice.dataflow is not None
        assert meets is not None  # `missing_exchange` has checked it
        return self._run_on_dataflow(self.choice.dataflow, attempt, name, wire, meets)

    def _run_on_flink(
        self, place: FlinkPlace, attempt: Attempt, name: str, wire: Wire, meets: JobEnd | None
    ) -> PipelineResult:
        import apache_beam as beam

        program = None if meets is None else meets.program
        where = None if program is None else program.place
        code = WorkerCode.here(self.reference, self.definitions, attempt, where, ends=True)
        pipeline = beam.Pipeline(
            runner=flink_runner(),
            options=pipeline_options(self.project, self.choice, name, flink_options(place, code)),
        )
        wire(pipeline, None if meets is None else meets.place)
        job = FlinkRun(place, code, job_name(self.project, name), program)
        with named_errors():
            result = job.submit(pipeline)
            check_engine(result, self.choice)
            job.wait_for_end(result, _nothing if meets is None else meets.check_workers)
        return result

    def _run_on_dataflow(
        self, place: DataflowPlace, attempt: Attempt, step: str, wire: Wire, meets: JobEnd
    ) -> PipelineResult:
        name = f"{place.job_name}-{step}" if place.job_name else job_name(self.project, step)
        options = dataflow_options(
            place,
            name,
            streaming=False,
            operators=place.workers,
            has_accelerator=False,
            is_submitted=True,
        )
        pipeline = submitted_pipeline(options)
        wire(pipeline, meets.place)

        def check() -> None:
            if problem := meets.program.problem():
                raise RuntimeError(problem)
            meets.check()

        service = Service.of(place)
        job = DataflowRun(service, attempt, name, lambda: meets.program.has_heard)
        with named_errors():
            result = job.submit(pipeline)
            check_engine(result, self.choice)
            job.wait_for_end(check)
        return result
