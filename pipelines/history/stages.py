"""The stages of a backfill on Beam; their elements say what to do, and hold no rows.

Rows go from stage to stage in files below the root (`pipelines.history.spill`). A task may be done
again, by any process that sees the root, and writes the same files. Where this process has forked
others (`pipelines.run.processes`), they share its tasks; an engine with workers uses those. Workers
that do not see the root read and leave the same files in an exchange.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import apache_beam as beam

from tidemill.features.definitions import Project
from tidemill.features.errors import InputError
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.history.history_plan import HistoryPlan, Span
from tidemill.pipelines.history.label_parts import label_part
from tidemill.pipelines.history.shard_answers import answer_part
from tidemill.pipelines.history.shard_states import write_state
from tidemill.pipelines.history.split import split_span
from tidemill.pipelines.history.training_table import write_file
from tidemill.pipelines.io.exchange.task_place import TaskPlace
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.steps import Elements, step
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.processes import Handler, running
from tidemill.pipelines.run.progress import Progress, StageProgress
from tidemill.serving.files.atomic_write import write_text

_LOOK_EVERY_S: Final = 0.25
_DONE: Final = "done"

Counts = Sequence[int]
"""What a task has counted; the first is shown as progress."""


def _split(project: Project, plan: HistoryPlan, *span: Any) -> Counts:
    return [split_span(project, plan, Span(*span))]


def _answer(project: Project, plan: HistoryPlan, view: str, piece: int) -> Counts:
    return [answer_part(project, plan, view, piece)]


def _label(project: Project, plan: HistoryPlan, piece: int) -> Counts:
    assert project.label is not None  # else there is no such task
    return label_part(project, project.label, plan, piece)


def _join(project: Project, plan: HistoryPlan, partition: int, start: int, stop: int) -> Counts:
    folder = Path(plan.build, paths.TRAINING_TABLE)
    return write_file(project, plan, partition, start, stop, folder)


def _state(project: Project, plan: HistoryPlan, view: int, shard: int) -> Counts:
    write_state(project, plan, view, shard, Path(plan.build, paths.STATES))
    return [1]


_STAGES: Final[Mapping[str, Callable[..., Counts]]] = {
    "split": _split,
    "answer": _answer,
    "label": _label,
    "join": _join,
    "state": _state,
}


def handler(project: Project) -> Handler:
    """Return what a process does with a task of the project's backfill."""

    def perform(text: str) -> str:
        task = json.loads(text)
        _perform(project, HistoryPlan.decode(task["plan"]), task)
        return ""

    return perform


def _perform(project: Project, plan: HistoryPlan, task: Mapping[str, Any]) -> Path:
    """Do a task; return the file that says what it has counted."""
    counts = _STAGES[task["stage"]](project, plan, *task["arguments"])
    done = Path(plan.spill, _DONE, task["stage"], f"{task['number']:06d}-{counts[0]}")
    write_text(done, json.dumps(list(counts)))
    return done


def _perform_elsewhere(project: Project, place: TaskPlace, text: str) -> None:
    """Do a task in a process that does not see the root."""
    said = json.loads(text)
    plan = HistoryPlan.decode(said["plan"])
    with place.task(f"{said['stage']}-{said['number']:06d}") as task:
        if said["reads"] is not None:
            task.take(said["reads"])
        build, spill = task.at(Path(plan.build)), task.at(Path(plan.spill))
        plan = replace(plan, build=str(build), spill=str(spill), opens=task.open)
        done = _perform(project, plan, said)
        task.leave([done], keep=lambda path: path.is_relative_to(spill))


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class _Perform(beam.DoFn):
    """Does tasks, or has them done by the processes that share the work of this one."""

    def __init__(self, project: Project, place: TaskPlace | None) -> None:
        self._project, self._place = project, place

    def start_bundle(self) -> None:
        self._shared: list[str] = []

    def process(self, element: str) -> None:
        if self._place is not None:
            _perform_elsewhere(self._project, self._place, element)
        elif running() is None:
            handler(self._project)(element)
        else:
            self._shared.append(element)

    def finish_bundle(self) -> None:
        processes = running()
        if processes is not None and self._shared:
            processes.map(self._shared)


def wire(
    project: Project, tasks: Sequence[str], pipeline: beam.Pipeline, place: TaskPlace | None
) -> None:
    """Wire the job of a stage.

    Args:
        project: The project.
        tasks: What there is to do, JSON.
        pipeline: An empty pipeline.
        place: Where tasks meet this program, if workers do not share its disk.
    """
    _ = (
        pipeline
        | "Tasks" >> Elements(tasks)
        | "Deal" >> beam.Reshuffle()
        | step("Perform", _Perform(project, place))
    )


@dataclass(frozen=True)
class Stages:
    """Runs the stages of a backfill.

    Attributes:
        project: The project.
        plan: How the work is cut.
        progress: Where progress is shown.
        jobs: Runs their jobs.
    """

    project: Project
    plan: HistoryPlan
    progress: Progress
    jobs: BatchJobs

    def answer(self) -> None:
        """Answer all requests, and make the states of all parts of the shards, once."""
        project, plan = self.project, self.plan
        if Path(plan.spill, _DONE, "answer").exists():
            return
        parts = [(view.name, n) for view in project.views for n in range(plan.pieces(view.name))]
        answers = plan.requests * len(project.views)
        self.run("answer", "point-in-time features", parts, total=answers, unit="answers")
        self.jobs.forget(Path(plan.spill, "split"))

    def run(
        self,
        stage: str,
        title: str,
        tasks: Sequence[Sequence[Any]],
        *,
        total: int,
        unit: str,
        reads: Sequence[Span] | None = None,
    ) -> list[Counts]:
        """Do the tasks of a stage.

        Args:
            stage: The name of the stage.
            title: Its name for the user.
            tasks: The arguments of each task, JSON values.
            total: What the first counts of all tasks add up to.
            unit: What they count.
            reads: The rows of the log that each task reads; None if it reads none.

        Returns:
            What each task has counted, in order.

        Raises:
            TidemillError: A task has raised this.
        """
        plan = self.plan.encode()
        needs = [None] * len(tasks) if reads is None else [_partition(span) for span in reads]
        elements = [
            json.dumps({"stage": stage, "number": n, "plan": plan, "arguments": [*a], "reads": of})
            for n, (a, of) in enumerate(zip(tasks, needs, strict=True))
        ]
        folder = Path(self.plan.spill, _DONE, stage)
        with self.progress.stage(title, total=total, unit=unit) as shown:
            if elements:
                shown.note(self.jobs.choice.why)
                with _watched(folder, shown):
                    self.jobs.run(
                        f"backfill-{stage}",
                        partial(wire, self.project, elements),
                        self._clear,
                        {_partition(span): self._files(span) for span in reads or ()},
                    )
        counts = [json.loads(path.read_text()) for path in sorted(folder.glob("*"))]
        if len(counts) != len(elements):
            raise InputError(
                f"{title}: the engine has done {len(counts)} of {len(elements)} tasks; run "
                "`tidemill backfill` again"
            )
        return counts

    def _files(self, span: Span) -> Sequence[Path]:
        return Log(Path(self.plan.build)).paths(span.source, span.partition)

    def _clear(self) -> None:
        """Remove the files that workers of a lost job were writing; those of done tasks stay."""
        for folder in (self.plan.build, self.plan.spill):
            for path in Path(folder).rglob("*.unfinished"):
                path.unlink()


def _partition(span: Span) -> str:
    return f"{span.source}-{span.partition:05d}"


@contextmanager
def _watched(folder: Path, shown: StageProgress) -> Iterator[None]:
    """Show the tasks that are done while the block runs."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        # An unfinished file has a dot in its name.
        found = {path.name for path in folder.glob("*") if "." not in path.name}
        for name in found - seen:
            shown.advance(int(name.split("-")[1]))
        seen.update(found)

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            look()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()
