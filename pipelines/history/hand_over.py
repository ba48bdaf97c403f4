"""Making the states from which a stream starts, in batch, from the accepted log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.handoff import Handoff, cut_digests
from tidemill.pipelines.recovery.log_parts import parts_before, source_partitions
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.sequence import decode_batches, without_requests
from tidemill.pipelines.stream.shard import shard_poll
from tidemill.pipelines.stream.state_files import file_hashes, write_handoff


def hand_over(
    config: Configuration, progress: Progress, build: Path, generation: str
) -> tuple[Handoff, dict[str, Any]]:
    """Write the state of every operator over all rows received before the stream begins.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        build: The folder of the build, with its log.
        generation: The generation of the build.

    Returns:
        The record of the states, and figures.
    """
    project = config.project
    as_of = config.splits.evaluate_until_us
    log = Log(build)
    partitions = source_partitions(log, project)
    options = FeaturizeOptions(
        run="handoff", shards=config.shards, partitions=partitions, publish=False
    )
    folder = build / paths.STATES
    parts, positions = parts_before(log, project, partitions, as_of)
    events = 0
    frontiers: dict[str, list[int]] = {view.name: [] for view in project.views}
    marks: dict[str, list[str]] = {view.name: [] for view in project.views}
    total = len(project.views) * config.shards
    with progress.stage("hand over state", total=total, unit="shards") as stage:
        plans = {view.name: make_plan(view) for view in project.views}
        for view, shard, data in shard_poll(
            project, plans, config.shards, Poll(1, 0, tuple(parts))
        ):
            key = operator_key(project, view, shard, config.shards)
            operator = make_operator(project, key, options)
            operator.receive(without_requests(decode_batches(data, operator.event_schema)))
            operator.begin()
            write_handoff(folder, operator)
            events += operator.counters.events
            frontiers[operator.key.view].append(operator.state.frontier_us)
            marks[operator.key.view].append(operator.mark.hex())
            stage.advance(1)
    handoff = Handoff(
        kind="backfill",
        as_of_us=as_of,
        positions=positions,
        views={view.name: view.hash for view in project.views},
        shards=config.shards,
        segment=0,
        frontiers=frontiers,
        marks=marks,
        polls=0,
        began=None,
        mode=None,
        files=file_hashes(folder),
        generation=generation,
        digests=cut_digests(log, positions),
    )
    handoff.write(folder)
    return handoff, {"as_of_us": as_of, "shards": total, "events": events}
