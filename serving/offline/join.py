"""The point-in-time join over change-point logs, on duckdb: Arrow in, Arrow out.

Values are piecewise constant, so the value of an entity at ``t`` is its newest publication at or
before ``t``: an as-of join. It also promises:

* Of publications at one instant the highest revision is the value.
* An entity without a publication has the view's declared empty values; so has a null key.
* An anchored feature is finished for the row's own instant, as a request at that instant sees it.
* Each given row is returned once, in the given order.
* No value is used past its publication's `VALID_UNTIL`, or outside the span in which the log is
  complete: a join at such an instant raises a `StoreError` that names it.

Cost: it reads the days up to the latest instant, from the earliest instant less the view's reach
on, because older rows can only be empty (`features.feast_objects.REACH_TAG`). If one of the two
technical fields is wanted, it reads the log from its beginning: older rows have these fields. It
sorts only publications of the wanted entities, and duckdb spills to disk what exceeds its memory
limit; the given rows and their values are in memory.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import (
    EARLIEST_EVENT,
    LATEST_EVENT,
    TIME_MIN,
    Int64Array,
    moment_of,
    write_instant,
)
from tidemill.features.errors import InputError, StoreError
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL
from tidemill.serving.offline.log import OfflineLog, Span

_TECHNICAL: Final = (VALID_UNTIL, REVISION)
# Combines an instant and a revision into one number that sorts like the pair.
_SHIFT: Final = "18446744073709551616::HUGEINT"


@dataclass(frozen=True)
class JoinEngine:
    """Settings of duckdb.

    Attributes:
        memory_limit: In duckdb's words, such as ``2GB``; None is four fifths of the machine's.
        threads: Number of threads; None is one per core.
        spill: Directory for data beyond the limit; None is the machine's temporary directory.
    """

    memory_limit: str | None = None
    threads: int | None = None
    spill: Path | None = None

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a database in memory, for one query or a few."""
        with tempfile.TemporaryDirectory(prefix="tidemill-join-", dir=self.spill) as folder:
            config: dict[str, str | bool | int | float | list[str]] = {"temp_directory": folder}
            if self.memory_limit is not None:
                config["memory_limit"] = self.memory_limit
            if self.threads is not None:
                config["threads"] = self.threads
            with duckdb.connect(config=config) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                yield connection


@dataclass(frozen=True)
class LoggedFeature:
    """A feature as the registry describes it.

    Attributes:
        name: Its column in the log.
        dtype: Its type in the log: int64, float64, bool or a timestamp.
        empty: The value of an entity without publications.
        anchored: Whether the log holds its anchor.
    """

    name: str
    dtype: pa.DataType
    empty: int | float | None
    anchored: bool

    def finish(self, stored: pa.Array, absent: pa.Array, times_us: pa.Array) -> pa.Array:
        """Return the values that requests at these instants see, ``(rows,)``, in Feast's type.

        A timestamp is int64 microseconds UTC (`features.feast_objects.DTYPE_TAG`), as it is online.
        """
        if pa.types.is_timestamp(self.dtype):
            return stored.cast(pa.int64())
        values = pc.subtract(times_us, stored) if self.anchored else stored
        if self.empty is None:
            return values
        return pc.if_else(absent, pa.scalar(self.empty, self.dtype), values)


@dataclass(frozen=True)
class LoggedView:
    """A view's log, and the features to read from it.

    Attributes:
        name: The view's name, for errors.
        log: Its log.
        join_key: The log's column of the entity's key.
        features: The wanted features.
        reach_us: See `features.feast_objects.REACH_TAG`.
    """

    name: str
    log: OfflineLog
    join_key: str
    features: tuple[LoggedFeature, ...]
    reach_us: int


def join(
    engine: JoinEngine, view: LoggedView, keys: pa.Array, times_us: Int64Array
) -> list[pa.Array]:
    """Look up the values of entities at instants.

    Args:
        engine: Settings of duckdb.
        view: The view and the wanted features.
        keys: string or int64, as in the log, ``(rows,)``; null for no entity.
        times_us: int64, ``(rows,)``: the instants.

    Returns:
        A column for each feature, ``(rows,)``.

    Raises:
        StoreError: There is no log, it is not complete at an instant, or the publication that was
            due after another one is missing.
        InputError: The log's files are not of the view, or have keys of another type.
    """
    if len(times_us) == 0:
        nothing = pa.array([], pa.int64())
        return [
            feature.finish(pa.array([], feature.dtype), nothing.is_null(), nothing)
            for feature in view.features
        ]
    if not view.log.directory.is_dir():
        raise StoreError(
            f"view {view.name!r}: there is no offline log at {view.log.directory}; write the "
            "history with `tidemill backfill --publish`; if the feature_store.yaml is a copy in "
            "another folder, name there where the root is: offline_store: {root: PATH}"
        )
    _check_span(view, times_us)
    _check_keys(view, keys)
    found = _newest_before(engine, view, keys, times_us)
    absent = pc.is_null(found.column(VALID_UNTIL)).combine_chunks()
    _check_validity(view, keys, times_us, found.column(VALID_UNTIL))
    times = pa.array(times_us, pa.int64())
    return [
        feature.finish(found.column(feature.name).combine_chunks(), absent, times)
        for feature in view.features
    ]


def between(
    engine: JoinEngine,
    log: OfflineLog,
    columns: Sequence[str],
    span: Span,
    *,
    newest_of: Sequence[str] = (),
) -> pa.Table:
    """Return the publications with an event_timestamp in a span.

    Args:
        engine: Settings of duckdb.
        log: The log.
        columns: The wanted columns.
        span: The span.
        newest_of: The columns of the entity's key, to return only the newest publication of each
            entity; by default every publication is returned.
    """
    schema = log.schema()
    wanted = dict.fromkeys([*columns, EVENT_TIMESTAMP, REVISION])
    if lacking := [name for name in wanted if name not in schema.names]:
        raise StoreError(
            f"offline log {log.directory}: its files have no column {', '.join(lacking)} (found "
            f"{', '.join(schema.names)}); they are not a change-point log of this view"
        )
    query = f"SELECT {', '.join(map(_quoted, columns))} FROM ({_scan(columns)})"
    if newest_of:
        query += (
            f" QUALIFY row_number() OVER (PARTITION BY {', '.join(map(_quoted, newest_of))} "
            f"ORDER BY {EVENT_TIMESTAMP} DESC, {REVISION} DESC) = 1"
        )
    found = _run(engine, query, log, span)
    empty = pa.schema([schema.field(name) for name in columns]).empty_table()
    return empty if found is None else found


def _newest_before(
    engine: JoinEngine, view: LoggedView, keys: pa.Array, times_us: Int64Array
) -> pa.Table:
    names = [feature.name for feature in view.features]
    columns = list(dict.fromkeys([*names, VALID_UNTIL]))
    # In rows older than the reach all features are empty, but the technical fields are not.
    oldest = TIME_MIN if set(names) & set(_TECHNICAL) else int(times_us.min()) - view.reach_us
    span = Span(oldest, int(times_us.max()))
    rows = pa.table({"row": pa.array(np.arange(len(keys))), "key": keys, "time": times_us})
    query = f"""
        SELECT r."row", {", ".join(f"l.{_quoted(name)}" for name in columns)}
        FROM (
            SELECT "row", key, time::HUGEINT * {_SHIFT} + 9223372036854775807 AS place FROM rows
        ) r ASOF LEFT JOIN (
            SELECT *, epoch_us({EVENT_TIMESTAMP})::HUGEINT * {_SHIFT} + {REVISION} AS place
            FROM ({_scan([view.join_key, *columns])})
            WHERE {_quoted(view.join_key)} IN (SELECT key FROM rows)
        ) l ON r.key = l.{_quoted(view.join_key)} AND r.place >= l.place
    """
    found = _run(engine, query, view.log, span, rows)
    if found is None:
        kinds = {feature.name: feature.dtype for feature in view.features}
        nothing = {name: pa.nulls(len(keys), kinds.get(name, pa.int64())) for name in columns}
        return pa.table(nothing)
    _check_columns(view, found)
    order = np.empty(len(keys), np.int64)
    order[found.column("row").to_numpy()] = np.arange(len(keys))
    return found.take(pa.array(order))


def _scan(columns: Sequence[str]) -> str:
    wanted = dict.fromkeys([*columns, EVENT_TIMESTAMP, REVISION])
    return (
        f"SELECT {', '.join(map(_quoted, wanted))} "
        "FROM read_parquet($files, hive_partitioning = false) "
        f"WHERE {EVENT_TIMESTAMP} BETWEEN $first AND $last"
    )


def _run(
    engine: JoinEngine, query: str, log: OfflineLog, span: Span, rows: pa.Table | None = None
) -> pa.Table | None:
    """Run a query over the files of a span; return None if there are none."""
    while True:
        files = log.files(span.first_us, span.last_us)
        if not files:
            return None
        first, last = _datetime(span.first_us), _datetime(span.last_us)
        parameters = {"files": [str(file) for file in files], "first": first, "last": last}
        with engine.connection() as connection:
            if rows is not None:
                connection.register("rows", rows)
            try:
                return connection.sql(query, params=parameters).to_arrow_table()
            except duckdb.IOException:
                # A merge has replaced some of these files: list them again.
                if all(file.exists() for file in files):
                    raise


def _check_span(view: LoggedView, times_us: Int64Array) -> None:
    reached = view.log.reached()
    if reached is None:
        return
    first, last = int(times_us.min()), int(times_us.max())
    if first < reached.first_us or last > reached.last_us:
        raise StoreError(
            f"view {view.name!r}: rows ask for instants from {_show(first)} to {_show(last)}, and "
            f"the offline log {view.log.directory} is complete from {_show(reached.first_us)} to "
            f"{_show(reached.last_us)}; leave the other rows out, or write the history with "
            "`tidemill backfill --publish`"
        )


def _check_validity(
    view: LoggedView, keys: pa.Array, times_us: Int64Array, until: pa.ChunkedArray
) -> None:
    overrun = pc.fill_null(pc.less_equal(until, pa.array(times_us)), False).to_numpy()
    if overrun.any():
        row = int(np.flatnonzero(overrun)[0])
        raise StoreError(
            f"view {view.name!r}: the newest publication of entity {keys[row].as_py()!r} at "
            f"{_show(int(times_us[row]))} holds until {_show(until[row].as_py())} only, and the "
            f"publication that was due then is missing in the offline log {view.log.directory} "
            f"({int(overrun.sum())} rows); write the history with `tidemill backfill --publish`"
        )


def _check_keys(view: LoggedView, keys: pa.Array) -> None:
    """Refuse keys of another type: duckdb would compare them rounded, and find other entities."""
    try:
        schema = view.log.schema()
    except StoreError:
        return  # there is no file yet, so every key has the empty value
    if view.join_key in schema.names and keys.type != (kind := schema.field(view.join_key).type):
        raise InputError(
            f"view {view.name!r}: the keys to look up are {keys.type}, and those in the offline "
            f"log {view.log.directory} are {kind}; cast them exactly first"
        )


def _check_columns(view: LoggedView, found: pa.Table) -> None:
    for feature in view.features:
        kind = found.schema.field(feature.name).type
        if kind != feature.dtype:
            raise InputError(
                f"view {view.name!r}: column {feature.name!r} of the offline log "
                f"{view.log.directory} is {kind}, expected {feature.dtype}; the files there are "
                "not of this view"
            )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _datetime(time_us: int) -> datetime.datetime:
    # There are no publications outside the calendar.
    bounded = min(max(time_us, EARLIEST_EVENT), LATEST_EVENT)
    return moment_of(bounded)


def _show(time_us: int) -> str:
    if not EARLIEST_EVENT <= time_us <= LATEST_EVENT:
        return "the beginning" if time_us < 0 else "the end of time"
    return write_instant(time_us)
