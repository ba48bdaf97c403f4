"""How a stream began that goes on with one of another version, once rows of its log are blank.

The requests that the stream before had not answered are in a file; those that are blank now take
the rows of the log. Records name the digests of the log that are others now.
"""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa

from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.rebuild_build import renewed
from tidemill.pipelines.io.log import POSITION, Log, forgotten_rows
from tidemill.pipelines.recovery.handoff import StreamRun, cut_digests
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.answer_parts import partition_of
from tidemill.pipelines.stream.joiner_state import Pending


def rewrite_upgrade(config: Configuration, run: StreamRun, names: dict[str, str]) -> None:
    """Rewrite ``upgrade.json`` and the requests that were carried; nothing of another stream.

    Args:
        config: The configuration, with the folders of the stream, whose log is blanked.
        run: The record of the stream.
        names: Digests of rows, before to after; those of streams before are added.
    """
    folder = config.current.stream_folder
    upgrade = UpgradeRecord.of(run, folder)
    if upgrade is None:
        return
    _renewed(config, upgrade, names).write(folder)
    if not is_of_project(config, run):
        for path in (folder / paths.CARRIED).glob("*"):
            path.unlink()
        return
    joiners = carried_joiners(config, run)
    for joiner in joiners.all:
        for group, pending in joiner.pending.items():
            joiner.pending[group] = _blanked(config, group, pending)
    joiners.write(folder / paths.CARRIED)


def is_of_project(config: Configuration, run: StreamRun) -> bool:
    """Tell whether a stream has the definitions and the shards of a project."""
    views = {view.name: view.hash for view in config.project.views}
    return run.views == views and run.shards == config.shards


def renewed_cuts(run: StreamRun, log: Log, names: dict[str, str]) -> StreamRun:
    """Return the record of a stream whose `StreamRun.fill_cuts` name the digests of now.

    A view that was made beside a stream which ran on has a cut that no other record names.

    Args:
        run: The record.
        log: The log, of which rows are blank.
        names: Digests of rows, before to after; those of these cuts are added.
    """
    if run.fill_cuts is None:
        return run
    cuts, sources = {}, log.sources()
    for view, text in run.fill_cuts.items():
        cut = json.loads(text)
        digest = cut["digest"]
        ((source, positions),) = cut["positions"].items()
        found = log.prefix_digest(source, positions) if source in sources else None
        if found not in (None, digest):
            names.setdefault(digest, found)
        cuts[view] = json.dumps({**cut, "digest": names.get(digest, digest)}, sort_keys=True)
    return dataclasses.replace(run, fill_cuts=cuts)


def _renewed(config: Configuration, upgrade: UpgradeRecord, names: dict[str, str]) -> UpgradeRecord:
    log, run = stream_log(config.current, config.project), upgrade.run
    known = {name: run.positions[name] for name in run.positions if name in log.sources()}
    digests = cut_digests(log, known)
    names.update(renewed({name: run.digests[name] for name in known}, digests))
    before = upgrade.before
    return dataclasses.replace(
        upgrade,
        run=renewed_cuts(dataclasses.replace(run, digests={**run.digests, **digests}), log, names),
        before=None if before is None else _renewed(config, before, names),
    )


def _blanked(config: Configuration, group: int, pending: Pending) -> Pending:
    """Return requests as the log has them now."""
    request, log = config.project.request, stream_log(config.current, config.project)
    positions = hashing.bits(pending.rows.column(POSITION))
    first = int(positions.min())
    rows = log.read_span(request.name, partition_of(group), first, int(positions.max()) + 1)
    rows = rows.take(pa.array(positions - first))
    blank = forgotten_rows(request, rows)
    if not blank.any():
        return pending
    columns = [
        rows.column(name).cast(pending.rows.schema.field(name).type)
        if name in request.schema
        else pending.rows.column(name)
        for name in pending.rows.schema.names
    ]
    values, nulls = pending.values.copy(), pending.nulls.copy()
    values[blank], nulls[blank] = 0, 0
    whole = pa.RecordBatch.from_arrays(columns, schema=pending.rows.schema)
    return dataclasses.replace(pending, rows=whole, values=values, nulls=nulls)
