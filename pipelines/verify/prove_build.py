"""The proof of what a backfill has made: states, records, training table, offline logs."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.later_states import published_until
from tidemill.pipelines.recovery.log_parts import parts_before, source_partitions
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.pipelines.verify.compare_build import compare_build
from tidemill.pipelines.verify.compare_offline import compare_offline
from tidemill.pipelines.verify.compare_training import compare_training_table
from tidemill.pipelines.verify.definitions_of import configuration_of_build
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.witness import Witnesses
from tidemill.serving.generations.current import CURRENT, Current
from tidemill.serving.offline.log import OfflineLog

_FIGURES = (
    "states", "build_mismatches", "training_rows", "training_values", "training_mismatches",
    "offline_rows", "offline_mismatches",
)  # fmt: skip


def prove_build(
    config: Configuration, streams: Sequence[Current], progress: Progress, witnesses: Witnesses
) -> tuple[dict[str, int], Findings]:
    """Prove the artefacts of the current build.

    Args:
        config: The configuration.
        streams: The streams that are proven too, with the offline logs that they add to.
        progress: Where progress is shown.
        witnesses: Reads what the log was made from.

    Returns:
        Figures, and the mismatches.
    """
    build, training, offline = Findings(), Findings(), Findings()
    of_it = configuration_of_build(config)
    if isinstance(of_it, str):
        progress.say(
            f"{config.current.build_folder} is not proven: it is {of_it}; run `tidemill backfill`"
        )
        return dict.fromkeys(_FIGURES, 0), build
    config = of_it
    states = compare_build(config, progress, build)
    history = witnesses.of(config, build).history
    rows = compare_training_table(history, config.current.build_folder, progress, training)
    change_points = _compare_offline(config, streams, progress, offline)
    figures = {
        "states": states,
        "build_mismatches": build.count,
        "training_rows": rows,
        "training_values": rows * len(config.project.columns),
        "training_mismatches": training.count,
        "offline_rows": change_points,
        "offline_mismatches": offline.count,
    }
    for findings in (training, offline):
        build.merge(findings)
    return figures, build


def _compare_offline(
    config: Configuration, streams: Sequence[Current], progress: Progress, findings: Findings
) -> int:
    """Prove the offline logs that joins read, where no stream adds to them.

    Returns:
        The number of change points compared.
    """
    current, project = config.current, config.project
    if not current.offline_root.exists() and (there := sorted(current.folder.glob("offline-*"))):
        findings.add(
            Mismatch(
                "record", CURRENT, feature="offline", seen=current.offline_root.name,
                expected=there[-1].name, cause="joins read a folder that is not there",
            )
        )  # fmt: skip
    for stream in streams:
        run = StreamRun.read(stream.stream_folder)
        if stream.generation == current.generation and run and run.offline == current.offline:
            return 0  # proven with the stream
    log, rows = Log(current.build_folder), 0
    logs = {view: OfflineLog.of(current.offline_root, view) for view in project.views}
    with (
        scratch_folder(config.root, "verify-offline") as right,
        progress.stage("compare the offline logs", None, "days") as stage,
    ):
        for view, found in logs.items():
            if not found.directory.exists():
                continue
            reached = found.reached()
            if reached is None or reached.last_us < reached.first_us:
                cause = "not every shard of the log has been written"
                findings.add(Mismatch("offline", "the span of each shard", view.name, cause=cause))
                continue
            until_us = published_until(config, view, reached.last_us)
            _, positions = parts_before(log, project, source_partitions(log, project), until_us)
            log_history(
                [view],
                log,
                right,
                shards=config.shards,
                until_us={view.name: reached.last_us},
                positions=positions,
            )
            rows += compare_offline(view, found, OfflineLog.of(right, view), findings, stage)
    return rows
