"""Backfill: point-in-time features for every past request, and the state for the stream.

Three stages on Beam (`pipelines.history.stages`), whose elements are tasks and not rows. The log is
*split* by view, shard and part of a shard into files below the root; each *part* goes through the
kernel once, which gives the answers to its requests and the state of its keys; and the answers of
all views are *joined* by the position of their request. So the memory of a backfill does not grow
with the log.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidemill.features.errors import InputError
from tidemill.features.kernel.compilation import compile_kernel, load_kernel
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.history.bootstrap import bootstrap
from tidemill.pipelines.history.build_manifest import (
    BuildManifest,
    source_records,
    table_digests,
)
from tidemill.pipelines.history.builds import Build, building
from tidemill.pipelines.history.hand_over import hand_over
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.inherited_rows import inherit_live_rows
from tidemill.pipelines.history.label_parts import check_part_leaks
from tidemill.pipelines.history.live_retention import remove_beside_streams
from tidemill.pipelines.history.offline_views import views_to_log
from tidemill.pipelines.history.spill import SPILL, check_space
from tidemill.pipelines.history.split import spill_bytes
from tidemill.pipelines.history.stages import Stages, handler
from tidemill.pipelines.ingest.build_topics import write_topics
from tidemill.pipelines.ingest.ingest import ingest, replace_rejected
from tidemill.pipelines.ingest.live_rows import LiveRows, check_live_rows, find_live_rows
from tidemill.pipelines.ingest.rejected_shares import too_many
from tidemill.pipelines.ingest.topics import ask_topics
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.recovery.handoff import Handoff
from tidemill.pipelines.recovery.served_rows import ServedRows
from tidemill.pipelines.run.processes import sharing
from tidemill.pipelines.run.progress import Progress


def backfill(
    config: Configuration,
    progress: Progress,
    publish: bool = False,
    wait: bool = False,
    engine: str | None = None,
    beam_flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a build: ingest, training table, and the states as of the end of the evaluation.

    Nothing that others read changes before the build is complete; then it becomes the current one
    in one step (`pipelines.history.builds`).

    Args:
        config: The configuration.
        progress: Where progress is shown.
        publish: Whether to fill the online store and the offline log, too.
        wait: Whether to wait for another build of the root; else it is an error.
        engine: ``fnapi``, ``prism``, ``flink`` or ``dataflow``; None for the default.
        beam_flags: Flags of Beam, for an engine that takes some.

    Returns:
        Counts and figures by step.

    Raises:
        TooManyRejected: More of a source's rows are rejected than it allows.
        InputError: A source cannot be read, events of a label precede their request, or topics are
            not read up to the end of the evaluation.
        StateMismatch: What was read of a topic cannot be taken in: it is another topic, or the
            source has other columns.
        Locked: Another process makes a build of the root.
        UnknownEngine: The engine runs streams only.
        WrongBeamFlag: The engine does not take a flag.
        ClusterUnreachable: The engine is Flink, and its cluster takes no job.
        EngineLost: The engine has lost a job again and again.
    """
    jobs = BatchJobs.of(config, engine, beam_flags, progress.say)
    compile_kernel(progress)
    load_kernel()
    shared = nullcontext() if jobs.choice.has_workers else sharing(handler(config.project))
    with (
        shared,
        building(config.root, wait=wait) as build,
        jobs.meeting([build.folder, build.work]) as jobs,
    ):
        summary: dict[str, Any] = {}
        live, topics = None, {}
        if config.is_live:
            live = find_live_rows(build.before, config.project)
            known = {} if live is None else {n: len(o) for n, o in live.sealed.offsets.items()}
            topics = ask_topics(config, known)
            if live is not None:
                check_live_rows(config, live, topics)
            write_topics(build.folder, topics)
        sources = ingest(
            config, progress, work=build.work, build=build.folder, live=live, jobs=jobs
        )
        files = {name: row.pop("files") for name, row in sources.items()}
        summary["sources"] = sources
        if (error := too_many(config, sources)) is not None:
            # The records are what the user needs now; the current build stays as it is.
            replace_rejected(build.work, config.root)
            raise error
        build.settle()
        build.share()  # the log, before more is written
        for divergence in build.because:
            progress.say(f"history was corrected, so a new generation begins: {divergence}")
        if live is not None and build.before is not None and build.is_new_generation:
            inherit_live_rows(
                live, build.before, build.live, Log(build.folder), config.project, topics
            )
            live = replace(live, log=Log(live.log.root, build.live, live.log.declared))
        folder = None if live is None else live.log.live
        with sharded(config, progress, build.folder, build.work, folder, jobs) as stages:
            summary["training"] = point_in_time(stages)
            handoff, summary["handoff"] = hand_over(stages, build.generation)
        change_points = _log_history(config, progress, build, handoff, publish=publish)
        build.share()
        _manifest(config, build, handoff, files, live).write(build.folder)
        served = ServedRows.of(config)
        if not served.is_known:
            progress.say(
                "the online store does not answer, so nothing of earlier builds is removed"
            )
        build.finish(served)
        replace_rejected(build.work, config.root)
    summary["generation"] = build.generation
    remove_beside_streams(config, progress)
    if publish:
        published = bootstrap(config.pin(), progress)
        summary["published"] = {**published, "change_points": change_points}
    return summary


def _log_history(
    config: Configuration, progress: Progress, build: Build, handoff: Handoff, *, publish: bool
) -> int:
    """Write the offline logs that the build needs; return the number of change points."""
    until_us = {view: min(frontiers) for view, frontiers in handoff.frontiers.items()}
    views = views_to_log(config.project, build, until_us, publish=publish)
    if not views:
        return 0
    total = len(views) * config.shards
    with progress.stage("write the offline log", total=total, unit="shards") as stage:

        def done(view: str, _: int) -> None:
            stage.note(view)
            stage.advance(1)

        rows = log_history(
            views,
            Log(build.folder),
            build.offline_root,
            shards=config.shards,
            until_us=until_us,
            positions=handoff.positions,
            done=done,
            work=build.work,
        )
    return sum(rows.values())


def _manifest(
    config: Configuration,
    build: Build,
    handoff: Handoff,
    files: Mapping[str, Sequence[Mapping[str, Any]]],
    live: LiveRows | None,
) -> BuildManifest:
    return BuildManifest(
        generation=build.generation,
        parent=build.parent,
        because=build.reasons,
        sources=source_records(Log(build.folder), files, live),
        project=config.project.hash,
        views={view.name: view.hash for view in config.project.views},
        shards=config.shards,
        as_of_us=handoff.as_of_us,
        training_table=table_digests(build.folder),
        handoff=handoff.id,
        definitions=config.project.spec(),
    )


@contextmanager
def sharded(
    config: Configuration,
    progress: Progress,
    build: Path,
    work: Path,
    live: Path | None = None,
    jobs: BatchJobs | None = None,
) -> Iterator[Stages]:
    """Split the log of a build by view, shard and part, for the block.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        build: The folder of the build, with its log.
        work: A folder for files that are needed only in the block.
        live: The folder of the live log whose rows are in the build; None if there is none.
        jobs: Runs the jobs; None for the default engine.

    Yields:
        What `point_in_time` and `hand_over` go on from.

    Raises:
        NoSpace: The disk has no room for these files.
    """
    spill = work / SPILL
    spill.mkdir(parents=True)
    try:
        plan = HistoryPlan.of(
            config.project,
            build,
            spill,
            shards=config.shards,
            as_of_us=config.splits.evaluate_until_us,
            live=live,
        )
        jobs = BatchJobs.on(None, config.project.name) if jobs is None else jobs
        if (opens := jobs.opens) is None:
            check_space(spill, spill_bytes(config.project, plan), "this backfill")
        else:
            plan = replace(plan, opens=opens)
        stages = Stages(config.project, plan, progress, jobs)
        spans = [span for source in plan.lengths for span in plan.spans(source)]
        rows = sum(map(sum, plan.lengths.values()))
        stages.run("split", "split the log", spans, total=rows, unit="rows", reads=spans)
        yield stages
    finally:
        shutil.rmtree(spill)


def point_in_time(stages: Stages) -> dict[str, Any]:
    """Write the training table of a build.

    Returns:
        The numbers of requests and of rows of the table and, of a project with a label, how many of
        them are labelled.

    Raises:
        InputError: Events of the label do not come after their request.
    """
    project, plan = stages.project, stages.plan
    if project.label is not None:
        pieces = [(piece,) for piece in range(plan.label_parts)]
        found = stages.run("label", "labels", pieces, total=plan.requests, unit="requests")
        check_part_leaks(project, project.label, plan, [(count[1], count[2]) for count in found])
    stages.answer()
    files = plan.files()
    counts = stages.run(
        "join",
        "training table",
        [span[1:] for span in files],
        total=plan.requests,
        unit="requests",
        reads=files,
    )
    rows, labelled = (sum(count[place] for count in counts) for place in range(2))
    if rows != plan.requests:
        raise InputError(f"{plan.requests} requests went in and {rows} training rows came out")
    figures = {"requests": plan.requests, "rows": rows, "label_leaks": 0}
    if project.label is None:
        return figures
    if rows and not labelled:
        stages.progress.say(
            f"no request has a label: no event of {project.label.stream.name!r} has the "
            f"{' and '.join(project.label.on.values())} of a request within the "
            f"{project.label.horizon} after it, so there is nothing to train on"
        )
    return figures | {"labelled": labelled}
