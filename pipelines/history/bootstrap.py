"""Filling the online store and the offline log from history."""

from __future__ import annotations

from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.offline_history import log_history
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import check_handoff, read_record
from tidemill.pipelines.recovery.republish import publish_states
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.online.backends import missing_guarantees
from tidemill.serving.registry.registration import open_store


def bootstrap(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Publish all history up to the states of a backfill; repeating it changes nothing.

    The online store gets the newest publication of each entity, the offline log every change point.

    Returns:
        Counts.

    Raises:
        StateMismatch: There are no states, or they were made by other definitions.
        StoreError: The store refuses.
    """
    project, root = config.project, config.root
    folder = root / paths.STATES
    handoff = read_record(folder)
    check_handoff(folder, handoff, project, config.shards)
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    open_store(config.project, config.places, clock="replay")
    counts = publish_states(config, folder, progress, {})
    total = len(project.views) * config.shards
    with progress.stage("write the offline log", total=total, unit="shards") as stage:

        def done(view: str, _: int) -> None:
            stage.note(view)
            stage.advance(1)

        rows = log_history(
            project,
            Log(root),
            root / paths.OFFLINE,
            shards=config.shards,
            until_us={view: min(frontiers) for view, frontiers in handoff.frontiers.items()},
            positions=handoff.positions,
            done=done,
        )
    return {**counts, "change_points": sum(rows.values())}
