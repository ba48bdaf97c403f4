"""Filling the online store from the states of a build."""

from __future__ import annotations

from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import check_handoff, read_record
from tidemill.pipelines.recovery.republish import publish_states
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.online.backends import missing_guarantees
from tidemill.serving.registry.registration import open_store


def bootstrap(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Publish every entity as of the states of a build; repeating it changes nothing.

    Returns:
        Counts.

    Raises:
        StateMismatch: There are no states, or they were made by other definitions.
        StoreError: The store refuses.
    """
    folder = config.current.build_folder / paths.STATES
    handoff = read_record(folder)
    check_handoff(folder, handoff, config.project, config.shards)
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    open_store(config.project, config.places, clock="replay")
    return publish_states(config, folder, progress, {})
