"""Filling the online store from the states of a build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import Handoff, check_handoff, read_record
from tidemill.pipelines.recovery.republish import entities_in, publish_states, shown_frontiers
from tidemill.pipelines.recovery.store_fills import bootstrap_fills, check_holders
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import this_holder
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.online.backends import missing_guarantees, open_database
from tidemill.serving.registry.registration import open_store


def bootstrap(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Publish every entity as of the states of a build; repeating it changes nothing.

    A view whose rows in the store are of another history gets a new fill, and readers are switched
    to it in one step with the others. Where readers see a later instant than that of the states,
    the rows after the states are applied too.

    Returns:
        Counts.

    Raises:
        StateMismatch: There are no states, or they were made by other definitions.
        BehindReaders: Readers see a later instant than that of the states; they are not switched.
        HeldByAnotherRoot: Another root writes what readers see.
        StoreFull: There is no room for the new fills.
        StoreError: The store refuses.
    """
    folder = config.current.build_folder / paths.STATES
    handoff = read_record(folder)
    check_handoff(folder, handoff, config.project, config.shards)
    if (warning := missing_guarantees(config.online_store)) is not None:
        progress.say(warning)
    open_store(config.project, config.places, clock="replay")
    return _fill_store(config, handoff, progress)


def _fill_store(config: Configuration, handoff: Handoff, progress: Progress) -> dict[str, Any]:
    """Write fills that nobody reads from the states, and switch readers to them."""
    database = open_database(config.online_store)
    try:
        check_holders(config, database)
        run, made = bootstrap_fills(config, database, handoff, entities_in(config))
        if not made:
            return {"entities": 0, "written": 0, "shards": 0}
        writer = database.take_token(made, this_holder(config.root))
        run = replace(run, fills={fill.space.view: fill for fill in made}).written_by(writer)
        views = list(run.fills)
        folder = config.current.build_folder / paths.STATES
        shown = shown_frontiers(config)
        counts = publish_states(config, database, folder, progress, {}, run, views, shown)
        database.switch(list(run.fills.values()), writer)
        return counts
    finally:
        database.close()
