"""Builds that `tidemill backfill` makes, without the parts that a test does not need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.streaming_project import Arrived, write_log
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import sharded
from tidemill.pipelines.history.bootstrap import bootstrap
from tidemill.pipelines.history.build_manifest import (
    BuildManifest,
    source_records,
    table_digests,
)
from tidemill.pipelines.history.builds import building
from tidemill.pipelines.history.hand_over import hand_over
from tidemill.pipelines.history.offline_views import views_to_log
from tidemill.pipelines.ingest.ingest import ingest, replace_rejected
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.serving.generations.current import Current


def make_build(
    config: Configuration, arrived: Iterable[Arrived], *, publish: bool = False
) -> Current:
    """Make a build and switch to it: log, states and manifest, and no training table.

    Args:
        config: The configuration; its sources are not read.
        arrived: The rows of every partition of every source.
        publish: Whether to write the offline log and to fill the online store, too.
    """
    with building(config.root) as build:
        log = Log(build.folder)
        write_log(build.folder, config.project, arrived)
        build.settle()
        with sharded(config, QuietProgress(), build.folder, build.work) as stages:
            handoff, _ = hand_over(stages, build.generation)
        until_us = {view: min(frontiers) for view, frontiers in handoff.frontiers.items()}
        log_history(
            views_to_log(config.project, build, until_us, publish=publish),
            log,
            build.offline_root,
            shards=config.shards,
            until_us=until_us,
            positions=handoff.positions,
        )
        BuildManifest(
            generation=build.generation,
            parent=build.parent,
            because=build.reasons,
            sources=source_records(log, {}),
            project=config.project.hash,
            views={view.name: view.hash for view in config.project.views},
            shards=config.shards,
            as_of_us=handoff.as_of_us,
            training_table=table_digests(build.folder),
            handoff=handoff.id,
        ).write(build.folder)
        current = build.finish()
    if publish:
        bootstrap(config.pin(), QuietProgress())
    return current


def ingest_build(config: Configuration) -> dict[str, Any]:
    """Make a build that has only the log, from the files of the sources, and switch to it.

    Returns:
        The counts of each source.
    """
    with building(config.root) as build:
        counts = ingest(config, QuietProgress(), work=build.work, build=build.folder)
        build.settle()
        build.finish()
        replace_rejected(build.work, config.root)
    for row in counts.values():
        del row["files"]
    return counts
