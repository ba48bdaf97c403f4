"""Comparing the offline logs: every change point, computed again.

A log is written again, in a folder of the root that is removed afterwards, and both are compared
day by day. So one day is in memory, and the disk needs room for the logs once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.definitions import FeatureView
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION
from tidemill.pipelines.run.progress import StageProgress
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text, instant_text
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.serving.files.read_files import read_table
from tidemill.serving.offline.log import OfflineLog, newest_rows

_MEND: Final = "run `tidemill backfill --publish` again"


def compare_offline(
    view: FeatureView,
    found: OfflineLog,
    right: OfflineLog,
    findings: Findings,
    stage: StageProgress,
    until_us: int | None = None,
    since_us: int = TIME_MIN,
) -> int:
    """Compare a log with one that was written again.

    Args:
        view: The view.
        found: The log.
        right: The log that was written again.
        findings: Takes the mismatches.
        stage: Where progress is shown, in days.
        until_us: Rows at or after this instant are not compared: a stream that has not ended may
            have written them or not. None to compare all.
        since_us: Rows before this instant are not compared: a stream of another version of the
            project has added them.

    Returns:
        The number of change points compared.
    """
    if until_us is None and found.ends() != right.ends():
        _note(
            findings, "the span of each shard", view.name, "",
            field_text("frontiers", found.ends()),
            field_text("frontiers", right.ends()), "it ends elsewhere than the releases do",
        )  # fmt: skip
    if undated := sorted(path.name for path in found.directory.glob("*.parquet")):
        cause = "these files are of no day: neither a build nor a stream wrote them"
        _note(findings, undated[0], view.name, "", f"{len(undated)} files", "none", cause)
    rows = 0
    for day in sorted({*found.days(), *right.days()}):
        stage.note(f"{view.name}, {day}")
        seen, expected = (_day(view, log, day, since_us, until_us) for log in (found, right))
        rows += _compare_day(view, day, seen, expected, findings)
        stage.advance(1)
    return rows


def _day(
    view: FeatureView, log: OfflineLog, day: str, since_us: int, until_us: int | None
) -> pa.Table | None:
    """Read the newest rows of a day; None if there are none."""
    with log.alone():  # a merge removes files
        tables = [read_table(path, _MEND) for path in sorted(log.day(day).glob("*.parquet"))]
    tables = [table for table in tables if len(table)]
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="permissive")
    if until_us is not None or since_us > TIME_MIN:
        times = table.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
        wanted = (times >= since_us) & (times < (TIME_MAX if until_us is None else until_us))
        table = table.filter(pa.array(wanted))
        if not len(table):
            return None
    return newest_rows(view.entity.join_key, table).combine_chunks()


def _compare_day(
    view: FeatureView,
    day: str,
    seen: pa.Table | None,
    expected: pa.Table | None,
    findings: Findings,
) -> int:
    if seen is None or expected is None:
        counts = [str(0 if table is None else len(table)) for table in (seen, expected)]
        if counts[0] != counts[1]:
            cause = "all rows of the day are gone" if seen is None else "no event gives rows then"
            _note(findings, day, view.name, "", f"{counts[0]} rows", f"{counts[1]} rows", cause)
        return 0
    if seen.schema.remove_metadata() != expected.schema.remove_metadata():
        _note(
            findings, day, view.name, "", ", ".join(seen.column_names),
            ", ".join(expected.column_names), "the log has other columns",
        )  # fmt: skip
        return 0
    names = (view.entity.join_key, EVENT_TIMESTAMP, REVISION)
    mine, right = _in_step(view, seen, expected, names, findings)
    features = {column.name.removeprefix(f"{view.name}__"): column.name for column in view.columns}
    instants = right.column(EVENT_TIMESTAMP).cast(pa.int64())
    for name in right.column_names:
        one, other = (_column(table, name) for table in (mine, right))
        for row in np.flatnonzero(differing(one, other)).tolist():
            key = tuple(right.column(column)[row].as_py() for column in names)
            _note(
                findings, _named(key), view.name, features.get(name, name), shown(name, one, row),
                shown(name, other, row),
                "the events give another value", instants[row].as_py(),
            )  # fmt: skip
    return len(mine)


def _in_step(
    view: FeatureView,
    seen: pa.Table,
    expected: pa.Table,
    names: Sequence[str],
    findings: Findings,
) -> tuple[pa.Table, pa.Table]:
    """Note the rows that only one of two tables has; return the others, row by row."""
    if len(seen) == len(expected) and not any(
        differing(_column(seen, name), _column(expected, name)).any() for name in names
    ):
        return seen, expected
    keys, wanted = (_keys(table, names) for table in (seen, expected))
    for key in sorted(keys.keys() - wanted.keys(), key=str):
        _note(findings, _named(key), view.name, "", "a row", "none", "no event gives this row")
    for key in sorted(wanted.keys() - keys.keys(), key=str):
        _note(findings, _named(key), view.name, "", "no row", "a row", "its row is gone")
    both = sorted(keys.keys() & wanted.keys(), key=wanted.__getitem__)
    return (
        seen.take(pa.array([keys[key] for key in both], pa.int64())).combine_chunks(),
        expected.take(pa.array([wanted[key] for key in both], pa.int64())).combine_chunks(),
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _keys(table: pa.Table, names: Sequence[str]) -> dict[tuple[object, ...], int]:
    columns = [table.column(name).to_pylist() for name in names]
    return {key: row for row, key in enumerate(zip(*columns, strict=True))}


def _named(key: tuple[object, ...]) -> str:
    entity, instant, revision = key
    return f"{entity} at {instant_text(instant)}, revision {revision}"


def _note(
    findings: Findings,
    id: str,
    view: str,
    field: str,
    seen: str,
    expected: str,
    cause: str,
    as_of_us: int | None = None,
) -> None:
    findings.add(Mismatch("offline", id, view, field, as_of_us, seen, expected, cause))
