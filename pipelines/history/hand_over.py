"""The states from which a stream starts, and the record that describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.pipelines.history.stages import Stages
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import Handoff, cut_digests
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.marks import first_mark
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.state_files import file_hashes


def hand_over(stages: Stages, generation: str) -> tuple[Handoff, dict[str, Any]]:
    """Write the state of every operator over all rows received before the stream begins.

    Args:
        stages: The stages of the build.
        generation: The generation of the build.

    Returns:
        The record of the states, and figures.
    """
    project, plan = stages.project, stages.plan
    folder = Path(plan.build, paths.STATES)
    shards = [(view, shard) for view in range(len(project.views)) for shard in range(plan.shards)]
    stages.answer()
    stages.run("state", "hand over state", shards, total=len(shards), unit="shards")
    frontiers: dict[str, list[int]] = {}
    marks: dict[str, list[str]] = {}
    for view in project.views:
        positions = [*plan.stops[view.stream.name], *plan.stops[plan.request]]
        frontier = plan.frontier_us(project, view)
        frontiers[view.name] = [frontier] * plan.shards
        marks[view.name] = [
            first_mark(
                OperatorKey(view.name, view.hash, shard, plan.shards), positions, frontier
            ).hex()
            for shard in range(plan.shards)
        ]
    positions_of = {name: list(stops) for name, stops in plan.stops.items()}
    handoff = Handoff(
        kind="backfill",
        as_of_us=plan.as_of_us,
        positions=positions_of,
        views={view.name: view.hash for view in project.views},
        shards=plan.shards,
        segment=0,
        frontiers=frontiers,
        marks=marks,
        polls=0,
        began=None,
        mode=None,
        files=file_hashes(folder),
        generation=generation,
        digests=cut_digests(Log(Path(plan.build)), positions_of),
    )
    handoff.write(folder)
    figures = {
        "as_of_us": plan.as_of_us,
        "shards": len(shards),
        "events": sum(sum(plan.stops[view.stream.name]) for view in project.views),
    }
    return handoff, figures
