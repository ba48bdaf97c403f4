"""What a build has made of its log, once rows of the log are blank: states, table and records.

States are made again from the log, as `verify` makes them, and only those of shards that had rows
of the subject are replaced; so a state that was wrong before is not made right in passing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import ARROW_TYPES, Project
from tidemill.features.definitions.recorded import recorded_project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.blank_rows import null_where
from tidemill.pipelines.forget.rewrite_logs import Blanked, check_digests
from tidemill.pipelines.history.build_manifest import BuildManifest, table_digests
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, log_schema, one_batch
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import Handoff, check_handoff, cut_digests, read_record
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.state_files import file_hashes, handed_over, state_path, write_state
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import read_table


@dataclass(frozen=True)
class Rebuilt:
    """What became of a build.

    Attributes:
        states: How many states were made again.
        rows: How many rows of the training table were blanked.
        renewed: Ids of records of states, and digests of rows below a cut: before to after.
    """

    states: int
    rows: int
    renewed: Mapping[str, str]


def renewed(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of a record that are others now, before to after."""
    return {old: after[name] for name, old in before.items() if old != after[name]}


def is_of(project: Project, shards: int, record: BuildManifest | Handoff) -> bool:
    """Tell whether states or tables were made by the present definitions."""
    views = {view.name: view.hash for view in project.views}
    return dict(record.views) == views and record.shards == shards


def check_build(build: Path) -> None:
    """Check that nothing of a build was changed before rows of its log are blanked.

    Raises:
        StateMismatch: The log or the states are not those that were written.
    """
    manifest = BuildManifest.read(build)
    check_digests(
        build, {name: (one["cut"], one["digest"]) for name, one in manifest.sources.items()}
    )


def rebuild_build(config: Configuration, blanked: Blanked) -> Rebuilt:
    """Make the artefacts of a build again; its log is blanked already.

    Args:
        config: The configuration, with the folder of the build, which is a copy.
        blanked: What was blanked.

    Raises:
        StateMismatch: The states are not those that were written.
    """
    project, build = config.project, config.current.build_folder
    manifest, folder = BuildManifest.read(build), build / paths.STATES
    stored, states = read_record(folder), 0
    if is_of(project, config.shards, stored):
        check_handoff(folder, stored, project, config.shards)
        for operator in find_beginning(config, build, manifest.as_of_us).operators:
            key = operator.key
            if key.shard in blanked.shards.get(key.view, ()):
                write_state(state_path(folder, key), handed_over(operator))
                states += 1
    else:
        # Nobody can make them again, and no stream can begin with them.
        for path in folder.glob("*.state"):
            path.unlink()
            states += 1
    log = Log(build)
    handoff = dataclasses.replace(
        stored, files=file_hashes(folder), digests=cut_digests(log, stored.positions)
    )
    handoff.write(folder)
    rows = _blank_table(_made_by(manifest, project), build, blanked)
    sources = {
        name: {**record, "digest": log.prefix_digest(name, record["cut"])}
        for name, record in manifest.sources.items()
    }
    began = manifest.handoff
    dataclasses.replace(
        manifest, sources=sources, training_table=table_digests(build), handoff=handoff.id
    ).write(build)
    ids = {began: handoff.id, **renewed(stored.digests, handoff.digests)}
    return Rebuilt(states, rows, ids)


def _made_by(manifest: BuildManifest, project: Project) -> Project:
    """Return the project by which a build was made; the one of now where it is not recorded."""
    if manifest.definitions is None or manifest.project == project.hash:
        return project
    return recorded_project(manifest.definitions, project) or project


def _blank_table(project: Project, build: Path, blanked: Blanked) -> int:
    """Blank rows of the training table; return how many.

    A blank row has the values of a request without entities, no input and no label.
    """
    forgotten = blanked.of_requests(project.request.name)
    count = 0
    for path in sorted((build / paths.TRAINING_TABLE).glob("*.parquet")):
        partition = int(path.stem.partition("-")[0])
        if (positions := forgotten.get(partition)) is None:
            continue
        table = read_table(path, "run `tidemill backfill` again")
        at = np.isin(table.column(POSITION).to_numpy(), positions)
        if not at.any():
            continue
        count += int(at.sum())
        _replace_rows(path, table, at, _blank_values(project, table))
    return count


def _blank_values(project: Project, table: pa.Table) -> dict[str, pa.Array]:
    """Return each column as it is where a row is blank, but for place and time, ``(rows,)``."""
    request, rows = project.request, len(table)
    values = {field.name: pa.nulls(rows, field.type) for field in table.schema}
    # Inputs may read the time of the request, which stays.
    blank = {field.name: pa.nulls(rows, field.type) for field in log_schema(request)}
    blank[request.request_time] = one_batch(table.select(["request_time"])).column(0)
    asked = pa.RecordBatch.from_pydict(blank)
    for name, expression in request.inputs.items():
        if name in values:
            values[name] = expression.evaluate(asked).cast(values[name].type)
    for column in project.columns:
        if column.name in values and column.empty is not None:
            empty = pa.scalar(column.empty).cast(ARROW_TYPES[column.dtype])
            values[column.name] = pa.repeat(empty, rows)
    for name in ("request_time", PARTITION, POSITION):
        values.pop(name, None)
    return values


def _replace_rows(
    path: Path,
    table: pa.Table,
    at: BoolArray,
    values: dict[str, pa.Array],
) -> None:
    for place, name in enumerate(table.schema.names):
        if name in values:
            column = null_where(one_batch(table.select([name])).column(0), at)
            if values[name].null_count < len(table):
                column = pc.if_else(pa.array(at), values[name], column)
            table = table.set_column(place, table.schema.field(place), column)
    with atomic_write(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd", compression_level=1)
