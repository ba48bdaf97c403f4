"""Whether streams and builds are of the present definitions, which alone can repeat them."""

from __future__ import annotations

from collections.abc import Collection

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import closed_by
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.log_parts import begin_frontier, stream_log
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.marks import first_mark
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.serving.generations.current import Current


def made_otherwise(config: Configuration, stream: Current) -> str:
    """Return what a stream was made with that the configuration has no more; empty if nothing.

    Args:
        config: The configuration.
        stream: The folders of the stream.
    """
    run = StreamRun.read(stream.stream_folder)
    if run is None:
        return ""  # the proof says that its record is gone
    folder = stream.stream_folder
    if (number := closed_by(config.root, stream.generation, folder.name)) is not None:
        return f"in eager mode, and rows of it were forgotten (record {number:05d})"
    if run.views is None or run.shards is None:
        made_by = BuildManifest.read(stream.build_folder).project
        return "" if made_by == config.project.hash else f"of definitions {made_by}"
    now = {view.name: view.hash for view in config.project.views}
    others = sorted(view for view in {*run.views, *now} if run.views.get(view) != now.get(view))
    if not others and run.shards == config.shards:
        return ""
    if _begins_with_these(config, stream, run, others or list(now)):
        return ""  # its record was changed: the proof says so
    if others:
        return f"of another definition of {', '.join(others)}"
    return f"of {run.shards} shards"


def _begins_with_these(
    config: Configuration, stream: Current, run: StreamRun, views: Collection[str]
) -> bool:
    """Tell whether the first release of one of the views builds on a state of its definition."""
    project = config.project
    asked = run.positions[project.request.name]
    for release in read_releases(stream.stream_folder):
        view = next((one for one in project.views if one.name == release["view"]), None)
        if release["number"] != 1 or view is None or view.name not in views:
            continue
        if view.stream.name not in run.positions or "mark_before" not in release:
            continue
        frontier = begin_frontier(stream_log(stream, project), project, view, run.as_of_us)
        key = OperatorKey(view.name, view.hash, release["shard"], config.shards)
        positions = [*run.positions[view.stream.name], *asked]
        if first_mark(key, positions, frontier).hex() == release["mark_before"]:
            return True
    return False


def built_otherwise(config: Configuration) -> str:
    """Return what the current build was made with that the configuration has no more."""
    build = config.current.build_folder
    manifest, handoff = BuildManifest.read(build), read_record(build / paths.STATES)
    now = {view.name: view.hash for view in config.project.views}
    # One of the two records alone was changed: the proof says so.
    others = sorted(
        view
        for view in {*manifest.views, *now}
        if manifest.views.get(view) == handoff.views.get(view) != now.get(view)
    )
    shards = manifest.shards if manifest.shards == handoff.shards else config.shards
    if not others and shards == config.shards:
        return ""
    for view in config.project.views:
        if others and view.name not in others:
            continue
        marks, frontiers = handoff.marks.get(view.name), handoff.frontiers.get(view.name)
        places = handoff.positions.get(view.stream.name)
        asked = handoff.positions.get(config.project.request.name)
        if marks and frontiers and places is not None and asked is not None:
            key = OperatorKey(view.name, view.hash, 0, config.shards)
            if first_mark(key, [*places, *asked], frontiers[0]).hex() == marks[0]:
                return ""  # both records were changed: the proof says so
    return f"of another definition of {', '.join(others)}" if others else f"of {shards} shards"
