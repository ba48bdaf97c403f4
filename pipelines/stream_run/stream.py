"""Stream: replay the log from the handed-over state; compute features, publish, predict.

The stream uses the same definitions, kernel and transform graph as the batch stages. At the end it
counts requests and predictions from the files, so it detects an engine that loses or doubles
elements.

A project without a model has no bundle: its answers are written with their features, and without a
score.

A stream may stop at a savepoint and continue from there, in another run
(`pipelines.recovery.resume`); a live one keeps its state while it goes on
(`pipelines.stream_run.keeper`). Predictions and rejected records may go to topics, too
(`pipelines.delivery`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions import Project
from tidemill.features.errors import EngineLost, InputError, SequenceError
from tidemill.features.kernel.compilation import compile_kernel
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.engines.choosing import EngineChoice
from tidemill.pipelines.engines.dataflow import refuse_local_places
from tidemill.pipelines.engines.left_jobs import end_left_jobs
from tidemill.pipelines.engines.options import stream_engine
from tidemill.pipelines.engines.stream_job import stream_job
from tidemill.pipelines.forget.blank_requests import BlankRequests
from tidemill.pipelines.forget.record import check_goes_on
from tidemill.pipelines.history.live_retention import remove_old_rows
from tidemill.pipelines.io.event_counts import EventCounts
from tidemill.pipelines.publish.publish import PublishToStore
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.log_parts import source_partitions, stream_log
from tidemill.pipelines.recovery.republish import mend_store
from tidemill.pipelines.recovery.resume import (
    RecordedBundles,
    Start,
    bundles_of,
    check_positions,
    check_savepoint,
    event_counts,
    first_start,
    joiners_at,
    next_start,
    offline_caught_up,
    prepare,
    received,
    scored_by,
    with_scores,
)
from tidemill.pipelines.recovery.resume import by_source as ends_of
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.run.draining import draining
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.featurize import forget_run
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.output_folders import join_outputs
from tidemill.pipelines.stream.state_files import savepoint_folder
from tidemill.pipelines.stream_run.exchanged import (
    check_exchange,
    local_places,
    meeting_at,
    meeting_of,
)
from tidemill.pipelines.stream_run.keeper import Keeper
from tidemill.pipelines.stream_run.kept_memory import kept_memory
from tidemill.pipelines.stream_run.live_input import LiveInput
from tidemill.pipelines.stream_run.outcome import count_outcome
from tidemill.pipelines.stream_run.promoting import Promotions
from tidemill.pipelines.stream_run.rare_collections import rare_collections
from tidemill.pipelines.stream_run.reloading import LiveSettings, live_settings
from tidemill.pipelines.stream_run.replay_input import ReplayInput
from tidemill.pipelines.stream_run.restarts import Restarts, Stop
from tidemill.pipelines.stream_run.segment_tail import check_end
from tidemill.pipelines.stream_run.short_turns import short_turns
from tidemill.pipelines.stream_run.whole import kept_beside, whole
from tidemill.pipelines.stream_run.wiring import wire
from tidemill.pipelines.telemetry.metrics import EARLY, REPEATS
from tidemill.pipelines.telemetry.running import (
    counted_so_far,
    figures_place,
    predictions_so_far,
    seen_from_outside,
    segment_begins,
)
from tidemill.pipelines.telemetry.stage_figures import counted_by_beam
from tidemill.pipelines.telemetry.tracing import span
from tidemill.serving.bundles.current import current_bundle
from tidemill.serving.files.locks import lock
from tidemill.serving.online.backends import missing_guarantees

_WATCH_SECONDS: Final = 0.25
_RECENT: Final = 64
"""Of a live stream that ends, so many of the last segments are read for the summary."""


def stream(
    config: Configuration,
    progress: Progress,
    speed: float | None = None,
    engine: str | None = None,
    mode: str | None = None,
    until_us: int | None = None,
    resume: bool = False,
    take_over: bool = False,
    wait: bool = False,
    accept_lost: Sequence[str] = (),
    beam_flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay the rows received between the evaluation's end and the stream's, or a part of them.

    Args:
        config: The configuration; its root holds log and handed-over state, and the bundle of a
            project with a model.
        progress: Shows progress.
        speed: How many times faster than real time; None for the configured speed.
        engine: ``fnapi``, ``prism``, ``flink`` or ``dataflow``; None for the configured one.
        mode: ``exact`` or ``eager``; None for the configured one or, with ``resume``, the stream's.
        until_us: Stop at a savepoint before the rows received at or after this instant; None to run
            to the stream's end.
        resume: Continue from the last savepoint instead of starting over.
        take_over: Take key spaces of the online store that another root writes.
        wait: Wait for another stream of the generation; else it is an error.
        accept_lost: What topics have lost, and the stream goes on without
            (`pipelines.ingest.lost_messages`).
        beam_flags: Flags of Beam, for an engine that takes some.

    Returns:
        Counts since the stream began, figures, and the engine with the reason for it.

    Raises:
        StateMismatch: The states are of other definitions, or there is no savepoint; or the project
            has a model, and the stream that is resumed was begun without one, or the reverse.
        BundleError: The project has a model, and none was trained yet.
        HeldByAnotherRoot: Another root writes a key space of the online store.
        InputError: ``until_us`` is not between the start and the stream's end, ``accept_lost``
            names what is not lost, or a stream from topics is given a speed.
        SequenceError: The numbers of requests and predictions do not match.
        Locked: Another process runs a stream of the generation.
        BrokerError: A topic cannot be read, or not be written to.
        WrongBeamFlag: The engine does not take a flag.
        ConfigurationError: The engine has workers that share no disk with this program, and the
            online store is a file.
        ClusterUnreachable: The engine is Flink, and its cluster does not answer.
        JobRefused, ServiceUnreachable: The engine is Dataflow, and its service takes no job.
        EngineLost: The engine has lost the job again and again, before another savepoint.
        RootNotShared: The engine is Dataflow, and its workers would not find what they need.
    """
    if speed is not None and config.is_live:
        raise InputError("a stream from topics has no speed: it reads what comes; omit --speed")
    choice = stream_engine(config.stream.engine, engine, beam_flags)
    if choice.dataflow is not None:
        refuse_local_places(config.root, local_places(config, is_here=choice.dataflow.is_here))
    check_exchange(config, choice, progress.say)
    restarts = Restarts(progress.say)
    with (
        _alone(config, wait=wait) as pinned,
        seen_from_outside(pinned, pinned.current, choice.name),
        draining(progress.say) if config.is_live else nullcontext() as asked,
        live_settings(pinned, progress.say) as settings,
    ):
        # A program that was killed may have left a job behind, which still writes.
        end_left_jobs(pinned.current.engine_jobs)
        while True:
            try:
                return _stream(
                    pinned, progress, speed, choice, mode, until_us, accept_lost, asked, restarts,
                    settings, resume=resume, take_over=take_over,
                )  # fmt: skip
            except EngineLost as lost:
                restarts.note(lost)
                # The states of the savepoint, as after a kill. What was lost is accepted by now.
                pinned, resume, accept_lost = pinned.pin(), True, ()


@contextmanager
def _alone(config: Configuration, *, wait: bool) -> Iterator[Configuration]:
    """Hold the lock of the generation's stream; yield the configuration with its folders."""
    while True:
        pinned = config.pin()
        with lock(pinned.current.stream_lock, "run this generation's stream", wait=wait):
            # A backfill may have begun another generation in between.
            if config.pin().current.generation == pinned.current.generation:
                yield config.pin()
                return


def _stream(
    config: Configuration,
    progress: Progress,
    speed: float | None,
    choice: EngineChoice,
    mode: str | None,
    until_us: int | None,
    accept_lost: Sequence[str],
    draining_asked: threading.Event | None,
    restarts: Restarts,
    settings: LiveSettings,
    *,
    resume: bool,
    take_over: bool,
) -> dict[str, Any]:
    if accept_lost and not config.is_live:
        raise InputError("nothing can be lost: no source has a topic; leave out --accept-lost")
    project, root = config.project, config.root
    restarts.check_engine(choice)
    remove_old_rows(config, config.current, progress)
    if resume:
        check_goes_on(config.current, project)
    start = (next_start if resume else first_start)(config, mode)
    restarts.begin(start.segment)
    if until_us is not None:
        check_savepoint(start, until_us, config.splits.stream_until_us)
    in_its_mode = replace(config.stream, mode=start.run.mode)
    config = replace(config, pinned=start.current, stream=in_its_mode)
    bundle, stream_folder = live_bundle(project, root), start.current.stream_folder
    start = with_scores(start, is_scored=bundle is not None)
    if bundle is None:
        progress.say(
            f"project {project.name!r} has no model: its features are streamed, and its answers "
            "have no score"
        )
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    compile_kernel(progress)
    began, run = time.perf_counter(), run_id(root, start.segment)
    stop = None if draining_asked is None else Stop(draining_asked)
    # It is refused while the stream of the generation before runs, which may then run on.
    entrance = _entrance(config, start, speed, until_us, stop, progress.say, accept_lost, settings)
    # Before anything is asked of a topic: what a process before this one had open is aborted, and
    # it writes no more.
    delivery = Delivery.fence(config.sinks, start.current, start.segment, run)
    if isinstance(entrance, LiveInput):
        entrance.find_lost()  # before a new stream has begun; `reading` looks again
        delivery.check_not_read(entrance.topic_ids)
    check_positions(start, entrance.begins)
    resumed, start = start.run, scored_by(start, bundle, entrance.scored_from)
    if start.resumes and start.run is not resumed:
        start.run.write(stream_folder, durable=True)
    start, fills = prepare(config, start, progress, take_over=take_over)
    again = _run(config, progress, start, fills, run, entrance, bundle, choice, delivery)
    replayed = entrance.taken()
    seconds = time.perf_counter() - began
    by_source = received(start.run, replayed)
    asked = project.request.name
    span_of = start.run.positions[asked], ends_of(replayed, replayed.stop)[asked]
    blank = BlankRequests.read(root, start.current, project)
    requests = by_source.pop(asked) - blank.between(*span_of)
    if start.run.upgraded_from is not None:
        requests += carried_joiners(config, start.run).requests_pending
    folder = savepoint_folder(stream_folder, entrance.last_segment)
    shards = len(project.views) * config.shards
    recent = max(entrance.last_segment - _RECENT, 0) if config.is_live else 0
    summary = {
        "engine": choice.name,
        "why": choice.why,
        "mode": start.run.mode,
        "speed": entrance.speed,
        "bundle": None if bundle is None else bundle.name,
        "segment": entrance.last_segment,
        "restarts": restarts.count,
        "requests": requests,
        "waiting": 0 if entrance.ends else joiners_at(config, folder).requests_pending,
        "events": sum(by_source.values()),
        "seconds": seconds,
        "rows_per_s": replayed.rows / seconds,
        # What its workers have seen; the release log does not depend on it.
        **again,
        **_counted(event_counts(config, start.run, replayed)),
        **entrance.figures(),
        **delivery.figures,
        **count_outcome(stream_folder, project.request, shards, recent),
    }
    answered = summary["predictions"] + summary["unanswered"] + summary["waiting"]
    if summary["doubled"] or answered != requests:
        raise SequenceError(
            f"{requests} requests went in, {summary['predictions']} predictions "
            f"({summary['doubled']} of them doubled) and {summary['unanswered']} rejected requests "
            f"came out, and {summary['waiting']} wait: the engine {choice.name!r} lost or doubled "
            "batches"
        )
    return {**summary, "store_mended_at_end": mend_store(config, progress)}


def _run(
    config: Configuration,
    progress: Progress,
    start: Start,
    fills: RunFills,
    run: str,
    entrance: ReplayInput | LiveInput,
    bundle: Path | None,
    choice: EngineChoice,
    delivery: Delivery,
) -> dict[str, int]:
    """Run the stream to its end or to a savepoint, which counts then.

    Returns:
        How many batches the engine delivered again, and early, counted by all of its workers.
    """
    project, stream_folder = config.project, start.current.stream_folder
    bundles, meeting = bundles_of(start, bundle), meeting_of(config, start.current, choice)
    recorded: RecordedBundles | None = None
    if bundle is not None and isinstance(entrance, LiveInput):
        is_shared = meeting is None
        entrance.promotions = Promotions(project, start, is_possible=is_shared)
        recorded = RecordedBundles(stream_folder, bundle.parent) if is_shared else None
    featurize = FeaturizeOptions(
        run=run,
        shards=config.shards,
        partitions=source_partitions(stream_log(start.current, config.project), project),
        mode=Mode(start.run.mode),
        gap_batches=config.stream.gap_batches,
        answer_within_us=config.stream.answer_within_us,
        handoff=start.folder,
        stream=None if entrance.ends else stream_folder,
        segment=start.segment,
        changes=start.run.offline is not None,
        figures=figures_place(),
        joiners=config.stream.joiners,
        apart=start.run.apart,
        store=PublishToStore(
            project, config.online_store, fills, config.give_up_after_us, figures_place()
        ),
    )
    forget_run(run)
    keeper = Keeper(config, start, fills, entrance, delivery, choice.name)
    segment_begins(start.current.stream, start.segment, start.run.mode)
    with (
        progress.stage("stream", total=entrance.requests, unit="requests") as stage,
        span("segment", number=start.segment),
        _watched(stage),
        delivery.open(),
        short_turns(),
        kept_memory(),
        rare_collections(),
        kept_beside(keeper, entrance, choice),
        _promotions(entrance, progress.say),
        entrance.reading(keeper),
    ):
        stage.note(choice.why)
        shown = config.project_name, project.hash
        jobs = start.current.engine_jobs
        with stream_job(choice, project.name, *shown, jobs, meeting) as job, delivery.taking():
            pipeline, exchange = job.pipeline(), job.exchange
            if exchange is not None:
                featurize = meeting_at(exchange, featurize, start, bundles)
            wire(
                pipeline, project, entrance, featurize, bundles, start, delivery, job.attempt,
                hints=None if choice.dataflow is None else config.stream.inference.hints,
                exchange=exchange, by_impulses=job.by_impulses,
                recorded=recorded,
            )  # fmt: skip
            result = job.run(
                pipeline, whole(keeper, entrance, len(project.views) * featurize.shards)
            )
            delivery.take_left()
        delivery.flush()
        if entrance.ends:
            came = entrance.taken().rows_of(project.request.name)
            check_end(stream_folder, project.request, start.segment, keeper.waiting + came)
            join_outputs(stream_folder, start.segment)
        else:
            keeper.finish(entrance.last_segment)
        delivery.finish(entrance.last_segment)
    if entrance.ends:
        replace(start.run, ended=True, until_us=entrance.stop_us).write(stream_folder)
    offline_caught_up(config, start)
    counted = {"repeats": REPEATS, "early": EARLY}
    if choice.has_workers:  # the metrics of a job that was cancelled are not to be had
        return {name: counted_so_far(metric) for name, metric in counted.items()}
    return {name: counted_by_beam(result, metric) for name, metric in counted.items()}


def _promotions(
    entrance: ReplayInput | LiveInput, say: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Take up other bundles while the block runs, where the source can decide for them."""
    promotions = entrance.promotions if isinstance(entrance, LiveInput) else None
    return nullcontext() if promotions is None else promotions.taken_up(say)


def _counted(counts: Mapping[str, EventCounts]) -> dict[str, Any]:
    """Return the counts of events for the summary: by stream; those without a key by view."""
    without = [found.without_key for found in counts.values()]
    return {
        "duplicates": {stream: found.duplicates for stream, found in counts.items()},
        "conflicts": {stream: found.conflicts for stream, found in counts.items()},
        "without_key": {view: n for some in without for view, n in some.items() if n},
    }


def live_bundle(project: Project, root: Path) -> Path | None:
    """Return the folder of the bundle that scores answers; None for a project without a model.

    Raises:
        BundleError: The project has a model, and none was trained yet.
    """
    return None if project.model is None else current_bundle(root)


def run_id(root: Path, segment: int) -> str:
    """Return the name of a run: it is the same whenever a segment of a root is repeated.

    The caches of a process are keyed by it; `forget_run` empties them before a run begins.
    """
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return f"{digest}-{segment:05d}"


def _entrance(
    config: Configuration,
    start: Start,
    speed: float | None,
    until_us: int | None,
    stop: Stop | None,
    say: Callable[[str], None],
    accept_lost: Sequence[str],
    settings: LiveSettings,
) -> ReplayInput | LiveInput:
    """Return where the rows of a segment come from."""
    if stop is not None:
        return LiveInput(config, start, stop, say, until_us, accept_lost, settings=settings)
    return ReplayInput.of(config, start, speed, until_us)


@contextmanager
def _watched(stage: Any) -> Iterator[None]:
    """Show the number of predictions while the block runs."""
    done, begun = threading.Event(), predictions_so_far()

    def watch() -> None:
        shown = begun
        is_over = False
        while not is_over:
            is_over = done.wait(_WATCH_SECONDS)
            seen = predictions_so_far()
            stage.advance(seen - shown)
            shown = seen

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
