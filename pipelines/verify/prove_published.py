"""The proof of the rows of the online store that no release of a stream has published.

A backfill has, or an upgrade whose stream has not gone on since.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tidemill.features.contract import TIME_MIN, BoolArray
from tidemill.features.definitions import FeatureView
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.later_states import Later, later_operators
from tidemill.pipelines.recovery.log_parts import instant_reaching, stream_log
from tidemill.pipelines.recovery.served_rows import upgraded_marks
from tidemill.pipelines.recovery.stream_beginning import stream_beginning
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.verify.compare_store import StoreCounts, check_store, received_before
from tidemill.pipelines.verify.definitions_of import configuration_of
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.compare_rows import RowCheck, RowCounts
from tidemill.pipelines.verify.raw_history import with_live_rows
from tidemill.pipelines.verify.released import has_released
from tidemill.pipelines.verify.source_history import SourceHistory
from tidemill.pipelines.verify.store_origins import Origin
from tidemill.pipelines.verify.witness import Witnesses
from tidemill.serving.generations.current import Current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import Frontiers


def prove_published(
    config: Configuration,
    progress: Progress,
    witnesses: Witnesses,
    origins: Mapping[str, Origin],
) -> tuple[dict[str, int], Findings]:
    """Prove the rows of the online store that a backfill has published, or an upgrade.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        witnesses: Reads what the logs were made from.
        origins: View to what its rows were made from.

    Returns:
        Figures, and the mismatches.
    """
    findings, total, rows = Findings(), StoreCounts(), RowCounts()
    by_folders: dict[tuple[Current, bool], list[str]] = {}
    for view, origin in origins.items():
        if origin.current is None:
            findings.add(
                Mismatch(
                    "store", view, view, seen=f"rows of generation {origin.generation}",
                    expected=f"generation {config.current.generation}",
                    cause="the log, or the states, that they were made from are no longer there; "
                    "run `tidemill backfill --publish`",
                )
            )  # fmt: skip
        elif not origin.is_of_stream or not has_released(origin.current.stream_folder):
            by_folders.setdefault((origin.current, origin.is_of_stream), []).append(view)
    for (current, is_of_stream), views in by_folders.items():
        of_it = replace(config, pinned=current)
        if is_of_stream:
            found, compared = _prove_upgraded(of_it, views, progress, witnesses, findings)
            total = StoreCounts(*map(operator.add, total, found))
            rows = RowCounts(*map(operator.add, rows, compared))
            continue
        history = with_live_rows(of_it, witnesses.of(of_it, findings).history)
        applied = functools.partial(received_before, of_it)
        found = check_store(of_it, history, applied, views, progress, findings)
        total = StoreCounts(*map(operator.add, total, found))
        compared = _compare_rows(of_it, views, findings)
        rows = RowCounts(*map(operator.add, rows, compared))
    return {
        **total.as_figures(),
        "store_rows": rows.rows,
        "store_parts_moving": rows.moving,
        "store_mismatches": findings.count,
    }, findings


def _prove_upgraded(
    config: Configuration,
    views: Sequence[str],
    progress: Progress,
    witnesses: Witnesses,
    findings: Findings,
) -> tuple[StoreCounts, RowCounts]:
    """Prove the rows that an upgrade has made, whose stream has not released anything.

    The states are made again from the log and from how the versions before have begun
    (`pipelines.recovery.stream_beginning`).
    """
    stream = config.current.stream_folder
    run, made_by = StreamRun.read(stream), configuration_of(config, config.current)
    marks = upgraded_marks(stream)
    database = open_database(config.online_store)
    try:
        if run is None or isinstance(made_by, str):
            why = "its record is gone" if isinstance(made_by, Configuration) else f"it is {made_by}"
            progress.say(f"{stream}: its rows in the online store are not proven: {why}")
            return StoreCounts(), RowCounts()
        rows = RowCheck(made_by.project, database, views, findings)
        beyond = {view for view, _, mark in rows.sought if mark.hex() not in marks.get(view, ())}
        if beyond:
            progress.say(
                f"the rows of {', '.join(sorted(beyond))} in the online store are proven once the "
                f"stream in {stream} has gone on: it was killed before it recorded a release"
            )
            views = [view for view in views if view not in beyond]
            rows = RowCheck(made_by.project, database, views, findings)
        rows.take(stream_beginning(made_by, run).operators.values())
        rows.check_records(run, run.mode)
        history = with_live_rows(made_by, witnesses.of(made_by, findings).history)

        def applied(view: FeatureView, source: SourceHistory, _: Frontiers) -> BoolArray:
            found = rows.applied(view, source)
            return np.zeros(len(source.rows), np.bool_) if found is None else found

        counts = check_store(made_by, history, applied, views, progress, findings, rows.is_still)
        return counts, rows.finish()
    finally:
        database.close()


def _compare_rows(config: Configuration, views: Sequence[str], findings: Findings) -> RowCounts:
    database = open_database(config.online_store)
    try:
        check = RowCheck(config.project, database, views, findings)
        check.take(published_operators(config, check))
        return check.finish()
    finally:
        database.close()


def published_operators(config: Configuration, check: RowCheck) -> Iterator[ShardOperator]:
    """Make the operators that a backfill can have published: its states, and later ones.

    Args:
        config: The configuration.
        check: The fills that readers see.
    """
    build, project = config.current.build_folder, config.project
    yield from find_beginning(config, build, config.splits.evaluate_until_us).operators
    for view, (_, states) in check.fills.items():
        known = [state.frontier_us for state in states if state.frontier_us is not None]
        if not known:
            continue
        # A frontier follows from the end of the rows that were applied (`find_later`).
        frontier, end_us = max(known), config.splits.stream_until_us
        log = stream_log(config.current, config.project)
        as_of_us = instant_reaching(log, project, {view: frontier}, end_us)
        later = Later(end_us, frontier) if as_of_us is None else Later(as_of_us, TIME_MIN)
        yield from later_operators(config, build / paths.STATES, later, [view])
