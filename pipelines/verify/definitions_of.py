"""Whether streams and builds are of the present definitions, which alone can repeat them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.definitions import ARROW_TYPES, Project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import closed_by
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.log_parts import begin_frontier, stream_log
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.marks import first_mark
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.serving.generations.current import Current, find_current

_OTHER_INPUTS: Final = "of other inputs of the request"


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
        return _OTHER_INPUTS if _served_other_inputs(config, stream) else ""
    if _begins_with_these(config, stream, run, others or list(now)):
        return ""  # its record was changed: the proof says so
    if others:
        return f"of another definition of {', '.join(others)}"
    return f"of {run.shards} shards"


def _served_other_inputs(config: Configuration, stream: Current) -> bool:
    """Tell whether a stream, which another has followed, gave a model other inputs of requests."""
    newest = find_current(config.root)
    if newest is None or newest.stream_folder == stream.stream_folder:
        return False  # what differs there was changed: the proof says so
    for _, table in predictions_of(stream.stream_folder).tables():
        return _lacks_inputs(config.project, table.schema)
    return False


def _lacks_inputs(project: Project, schema: pa.Schema) -> bool:
    """Tell whether columns lack an input of requests, or have it with another type."""
    return any(
        name not in schema.names
        or schema.field(name).type != ARROW_TYPES[expression.dtype(project.request.schema)]
        for name, expression in project.request.inputs.items()
    )


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
        tables = sorted((build / paths.TRAINING_TABLE).glob("*.parquet"))
        of_others = manifest.project != config.project.hash and any(
            _lacks_inputs(config.project, pq.read_schema(path)) for path in tables[:1]
        )
        return _OTHER_INPUTS if of_others else ""
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
