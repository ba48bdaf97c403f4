"""Making the states from which a stream starts, in batch, from the accepted log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import Handoff, cut_digests
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
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
    folder = build / paths.STATES
    begin = find_beginning(config, build, as_of)
    frontiers: dict[str, list[int]] = {view.name: [] for view in project.views}
    marks: dict[str, list[str]] = {view.name: [] for view in project.views}
    total = len(project.views) * config.shards
    with progress.stage("hand over state", total=total, unit="shards") as stage:
        for operator in begin.operators:
            write_handoff(folder, operator)
            frontiers[operator.key.view].append(operator.state.frontier_us)
            marks[operator.key.view].append(operator.mark.hex())
            stage.advance(1)
    handoff = Handoff(
        kind="backfill",
        as_of_us=as_of,
        positions=begin.positions,
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
        digests=cut_digests(Log(build), begin.positions),
    )
    handoff.write(folder)
    events = sum(sum(begin.positions[view.stream.name]) for view in project.views)
    return handoff, {"as_of_us": as_of, "shards": total, "events": events}
