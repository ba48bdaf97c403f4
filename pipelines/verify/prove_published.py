"""The proof of the rows of the online store that a backfill has published."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tidemill.features.contract import TIME_MIN
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.later_states import Later, later_operators
from tidemill.pipelines.recovery.log_parts import instant_reaching, stream_log
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.verify.compare_store import StoreCounts, check_store, received_before
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.compare_rows import RowCheck, RowCounts
from tidemill.pipelines.verify.raw_history import with_live_rows
from tidemill.pipelines.verify.store_origins import Origin
from tidemill.pipelines.verify.witness import Witnesses
from tidemill.serving.generations.current import Current
from tidemill.serving.online.backends import open_database


def prove_published(
    config: Configuration,
    progress: Progress,
    witnesses: Witnesses,
    origins: Mapping[str, Origin],
) -> tuple[dict[str, int], Findings]:
    """Prove the rows of the online store that a backfill has published.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        witnesses: Reads what the logs were made from.
        origins: View to what its rows were made from.

    Returns:
        Figures, and the mismatches.
    """
    findings, total, rows = Findings(), StoreCounts(), RowCounts()
    by_folders: dict[Current, list[str]] = {}
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
        elif not origin.is_of_stream:
            by_folders.setdefault(origin.current, []).append(view)
    for current, views in by_folders.items():
        of_it = replace(config, pinned=current)
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
