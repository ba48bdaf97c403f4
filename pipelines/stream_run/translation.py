"""The job of a stream for an engine on other machines, translated and not run.

Nothing of the root is changed, and nobody is asked: no store, no broker, no engine. Source, steps
and states are those of a stream that would begin now, or resume. What such a stream adds are two
things that no other stream may have, and that a translation leaves out: the writer's token of the
online store, which fences the writers before it, and the connections to topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import apache_beam as beam

from tidemill.features.errors import InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import EngineChoice
from tidemill.pipelines.engines.dataflow import Translation, dataflow_options, translate
from tidemill.pipelines.engines.job_steps import JobStep, job_steps
from tidemill.pipelines.engines.options import job_name
from tidemill.pipelines.engines.stream_job import STEP
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange.program_end import ProgramEnd
from tidemill.pipelines.io.live.follow import Follow, FollowOptions
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.poll_source import REJECTED
from tidemill.pipelines.io.write_outputs import WriteOutputs
from tidemill.pipelines.publish.publish import PublishToStore
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import request_hash
from tidemill.pipelines.recovery.log_parts import source_partitions, stream_log
from tidemill.pipelines.recovery.resume import (
    Start,
    bundles_of,
    first_start,
    next_start,
    scored_by,
    with_scores,
)
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream_run.live_input import STOP, first_epoch, live_polls
from tidemill.pipelines.stream_run.replay_input import ReplayInput
from tidemill.pipelines.stream_run.stream import live_bundle, run_id
from tidemill.pipelines.stream_run.wiring import Entrance, wire
from tidemill.serving.files.records import RecordFormat, read_record, write_record

STEPS: Final = "steps.json"
"""The steps of the job, and what the states of their operators depend on."""
_FORMAT: Final = RecordFormat(
    name="tidemill-job-steps",
    version=1,
    fields=frozenset({"project", "views", "request", "shards", "joiners", "mode", "steps"}),
    remedy="translate that version of the project again",
)


@dataclass(frozen=True)
class StreamJobSteps:
    """The steps of a stream's job, and what their states depend on.

    Attributes:
        project: The project's name.
        views: View to the hash of its definition.
        request: The hash of the request.
        shards: The number of shards of each view.
        joiners: The number of joiners.
        mode: ``exact`` or ``eager``.
        steps: The steps, by name.
    """

    project: str
    views: Mapping[str, str]
    request: str
    shards: int
    joiners: int
    mode: str
    steps: tuple[JobStep, ...]

    def write(self, folder: Path) -> None:
        """Write them to `STEPS`.

        Raises:
            FileError: The disk is full, ...
        """
        write_record(folder / STEPS, _FORMAT, asdict(self))

    @staticmethod
    def read(folder: Path) -> StreamJobSteps:
        """Read what `write` has written.

        Raises:
            InputError: There is none.
            StateError: It is damaged, or of another version.
        """
        path = folder / STEPS
        if not path.exists():
            raise InputError(
                f"{path} does not exist: expected a folder that `tidemill stream --engine dataflow "
                "--translate FOLDER` has written"
            )
        found = read_record(path, _FORMAT)
        steps = tuple(JobStep(**{**step, "takes": tuple(step["takes"])}) for step in found["steps"])
        return StreamJobSteps(**{**found, "steps": steps})


def translate_stream(
    config: Configuration,
    choice: EngineChoice,
    mode: str | None = None,
    *,
    resume: bool = False,
) -> tuple[Translation, StreamJobSteps]:
    """Translate the job of a stream.

    Args:
        config: The configuration; its root holds log and handed-over state, and the bundle of a
            project with a model.
        choice: The engine; it is Dataflow.
        mode: ``exact`` or ``eager``; None for the configured one or, with ``resume``, the stream's.
        resume: Translate the job that would resume the stream; else one that would begin.

    Raises:
        StateMismatch: The states are of other definitions, or there is no savepoint.
        BundleError: The project has a model, and none was trained yet.
    """
    assert choice.dataflow is not None  # the only engine on other machines
    config = config.pin()
    project, root = config.project, config.root
    start = (next_start if resume else first_start)(config, mode)
    bundle = live_bundle(project, root)
    start = _with_offline_logs(with_scores(start, is_scored=bundle is not None))
    config = replace(
        config, pinned=start.current, stream=replace(config.stream, mode=start.run.mode)
    )
    entrance: Entrance = (
        _FollowInput(_followed(config, start))
        if config.is_live
        else ReplayInput.of(config, start, None, None)
    )
    start = scored_by(start, bundle, start.handoff.positions[project.request.name])
    operators = len(project.views) * config.shards
    featurize = FeaturizeOptions(
        run=run_id(root, start.segment),
        shards=config.shards,
        partitions=source_partitions(stream_log(start.current, config.project), project),
        mode=Mode(start.run.mode),
        gap_batches=config.stream.gap_batches,
        answer_within_us=config.stream.answer_within_us,
        handoff=start.folder,
        stream=start.current.stream_folder if config.is_live else None,
        segment=start.segment,
        changes=start.run.offline is not None,
        joiners=config.stream.joiners,
        apart=start.run.apart,
        store=PublishToStore(project, config.online_store, RunFills({}), config.give_up_after_us),
    )
    hints = config.stream.inference.hints
    options = dataflow_options(
        choice.dataflow,
        job_name(project.name, STEP),
        streaming=True,
        operators=operators,
        has_accelerator="accelerator" in hints,
    )
    left = _LeftOutputs(frozenset(config.sinks), start.current.engine_jobs / choice.name)

    def add_steps(pipeline: beam.Pipeline) -> None:
        bundles = bundles_of(start, bundle)
        wire(pipeline, project, entrance, featurize, bundles, start, left, hints=hints)

    found = translate(options, add_steps)
    places = {str(root): "ROOT", featurize.run: "RUN", start.current.generation: "GENERATION"}
    if bundle is not None:
        places[bundle.name] = "BUNDLE"
    return found, StreamJobSteps(
        project.name,
        {view.name: view.hash for view in project.views},
        request_hash(project.request),
        config.shards,
        config.stream.joiners,
        start.run.mode,
        tuple(job_steps(found.graph, places)),
    )


def _with_offline_logs(start: Start) -> Start:
    """Return a start that goes on with the offline logs, if there are some."""
    if start.resumes or not start.current.offline_root.exists():
        return start
    return replace(start, run=replace(start.run, offline=start.current.offline))


@dataclass(frozen=True)
class _FollowInput:
    """The poll log of a live stream, which some reader would write."""

    options: FollowOptions

    def read(
        self,
        pipeline: beam.Pipeline,
        attempt: Attempt | None = None,
        exchange: ProgramEnd | None = None,
        *,
        by_impulses: bool = False,
    ) -> tuple[Any, tuple[Any, ...]]:
        out = pipeline | "Live" >> Follow(self.options, by_impulses)
        return out["polls"], (out[REJECTED],)


def _followed(config: Configuration, start: Start) -> FollowOptions:
    """Return what a stream that begins, or resumes, would follow; nothing is begun."""
    project, current, handoff = config.project, start.current, start.handoff
    live, log = LiveLog(current.folder / LIVE, project), stream_log(current, project)
    names = [*(stream.name for stream in project.streams), project.request.name]
    positions = tuple(at for name in names for at in handoff.positions[name])
    first, before, epoch = Cut(handoff.polls, positions), 0, 0
    if live.exists:
        polls = live_polls(project, log, live, handoff)
        first, before, epoch = polls.start, polls.before, first_epoch(live)
    return FollowOptions(
        project=project,
        build=current.build_folder,
        live=live.folder,
        as_of_us=handoff.as_of_us,
        start=first,
        logged=before,
        epoch=epoch,
        partitions=tuple((name, n) for name in names for n in range(log.partitions(name))),
        stop=current.stream_folder / STOP,
    )


@dataclass(frozen=True)
class _LeftOutputs:
    """Steps that leave outputs for topics to the program, as workers of other processes do."""

    sinks: frozenset[str]
    folder: Path

    def step(self, name: str, write: WriteOutputs, attempt: Attempt | None = None) -> WriteOutputs:
        return replace(write, folder=self.folder / name) if name in self.sinks else write
