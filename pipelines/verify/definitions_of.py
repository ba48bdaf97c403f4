"""By which definitions streams and builds were made: those of now, or others that they record.

What an earlier version of the project has made is proven by the definitions of then, which are made
again from their record (`features.definitions.recorded`). Where they cannot be, the proof says so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.definitions import ARROW_TYPES, Project
from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.definitions.recorded import recorded_project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import closed_by, forgotten_rows
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun, read_record
from tidemill.pipelines.recovery.log_parts import begin_frontier, stream_log
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.marks import first_mark
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.serving.generations.current import Current, find_current

_OTHER_INPUTS: Final = "of other inputs of the request"


def configuration_of(config: Configuration, stream: Current) -> Configuration | str:
    """Return the configuration, with the definitions and the shards that a stream was made by.

    Args:
        config: The configuration.
        stream: The folders of the stream; they are pinned.

    Returns:
        What the stream was made with that nobody has any more, if it cannot be made again.
    """
    run, config = StreamRun.read(stream.stream_folder), replace(config, pinned=stream)
    if run is None:
        return config  # the proof says that its record is gone
    folder = stream.stream_folder
    if (number := closed_by(config.root, stream.generation, folder.name)) is not None:
        return f"in eager mode, and rows of it were forgotten (record {number:05d})"
    if run.views is None or run.shards is None:
        made_by = BuildManifest.read(stream.build_folder).project
        return config if made_by == config.project.hash else f"of definitions {made_by}"
    if _is_of(config, run):
        return config
    now = {view.name: view.hash for view in config.project.views}
    others = sorted(view for view in {*run.views, *now} if run.views.get(view) != now.get(view))
    is_same = not others and run.shards == config.shards
    if is_same and run.definitions is None:
        return _OTHER_INPUTS if _served_other_inputs(config, stream) else config
    if is_same and _stamps(stream) <= {config.project.hash}:
        return config  # its record was changed: the proof says so
    if not is_same and _begins_with_these(config, stream, run, others or list(now)):
        return config  # likewise
    why = f"of another definition of {', '.join(others)}" if others else f"of {run.shards} shards"
    if not is_same and forgotten_rows(config.root, stream.generation):
        return f"{why}, and rows of its log were forgotten"  # by keys of views of now
    if run.definitions is not None:
        made = recorded_project(run.definitions, config.project)
        if made is not None and {view.name: view.hash for view in made.views} == run.views:
            return replace(config, project=made, shards=run.shards)
    return _OTHER_INPUTS if is_same else why


def _is_of(config: Configuration, run: StreamRun) -> bool:
    """Tell whether all that a stream has recorded is of a configuration."""
    return (
        run.views == {view.name: view.hash for view in config.project.views}
        and run.shards == config.shards
        and run.definitions is not None
        and spec_hash(run.definitions) == config.project.hash
    )


def _stamps(stream: Current) -> set[str | None]:
    """Return the hashes of definitions that the predictions of a stream name."""
    found: set[str | None] = set()
    for _, table in predictions_of(stream.stream_folder).tables(["spec_hash"]):
        found.update(pc.unique(table.column(0)).to_pylist())
    return found


def _served_other_inputs(config: Configuration, stream: Current) -> bool:
    """Tell whether a stream, which another has followed, gave a model other inputs of requests."""
    newest = find_current(config.root)
    if newest is None or newest.stream_folder == stream.stream_folder:
        return False  # what differs there was changed: the proof says so
    for _, table in predictions_of(stream.stream_folder).tables():
        if _lacks_inputs(config.project, table.schema):
            return True
        break
    stamps = _stamps(stream)
    return len(stamps) == 1 and stamps != {config.project.hash}


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


def configuration_of_build(config: Configuration) -> Configuration | str:
    """Return the configuration, with the definitions and the shards of the current build.

    Returns:
        What the build was made with that nobody has any more, if it cannot be made again.
    """
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
    is_same = not others and shards == config.shards
    if not is_same and _has_marks(config, handoff, others):
        return config  # both records were changed: the proof says so
    spec, is_of_now = manifest.definitions, manifest.project == config.project.hash
    if spec is not None and spec_hash(spec) == manifest.project and not (is_same and is_of_now):
        made = recorded_project(spec, config.project)
        if made is not None and {view.name: view.hash for view in made.views} == handoff.views:
            return replace(config, project=made, shards=shards)
        if is_same and made is None:
            return _OTHER_INPUTS
    if is_same:
        tables = sorted((build / paths.TRAINING_TABLE).glob("*.parquet"))
        lacks = (_lacks_inputs(config.project, pq.read_schema(path)) for path in tables[:1])
        return _OTHER_INPUTS if not is_of_now and any(lacks) else config
    return f"of another definition of {', '.join(others)}" if others else f"of {shards} shards"


def _has_marks(config: Configuration, handoff: Handoff, views: Collection[str]) -> bool:
    """Tell whether states of a build have the mark of a definition of now."""
    for view in config.project.views:
        if views and view.name not in views:
            continue
        marks, frontiers = handoff.marks.get(view.name), handoff.frontiers.get(view.name)
        places = handoff.positions.get(view.stream.name)
        asked = handoff.positions.get(config.project.request.name)
        if marks and frontiers and places is not None and asked is not None:
            key = OperatorKey(view.name, view.hash, 0, config.shards)
            if first_mark(key, [*places, *asked], frontiers[0]).hex() == marks[0]:
                return True
    return False
