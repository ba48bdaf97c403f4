"""The direct reader: values, status and frontier of entities, without Feast and without pandas.

It reads an online database (`serving.online.database`) and gives each row a status:

* ``PRESENT``: the value as of the frontier of the row's shard;
* ``NOT_FOUND``: the entity was never seen (or its key is null): the view's empty value, as of the
  frontier that all shards of the view have reached;
* ``OUTSIDE_MAX_AGE``: the values as of the frontier that is returned beside them, which is too old:
  it lags behind the declared clock by more than the view's ``max_staleness``, or was never written,
  or the row should have been replaced before it. A never-seen entity of a view whose least frontier
  is stale has this status too, because its empty value is as uncertain.

Anchored features are finished here (`finish_anchored`) with the frontier as the ``as_of``. A null
inside a present row is the feature's value.

`OnlineReader.read` returns Arrow for many entities, `OnlineReader.read_one` plain values for one,
as a prediction needs them. Both read all their views in one round trip, as of one instant of the
store. A store without frontiers (`serving.online.feast_database`) refuses such reads.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MAX, TIME_MIN, ReadStatus, moment_of
from tidemill.features.definitions import (
    ARROW_TYPES,
    FLOAT64,
    INT64,
    TIMESTAMP,
    FeatureColumn,
    FeatureView,
    Project,
)
from tidemill.features.errors import InputError, StoreError
from tidemill.serving.online.cells import arrow_columns, decode_cells, decode_matrix, decode_row
from tidemill.serving.online.damage import DAMAGE, damaged
from tidemill.serving.online.database import OnlineDatabase, Snapshot
from tidemill.serving.online.rows import KeySpace, Row, clock_us, online_key, online_keys
from tidemill.serving.stores.online_places import Clock

STATUS: Final = "tidemill_status"
"""Column of the `ReadStatus`, by name (string)."""
FRONTIER: Final = "tidemill_frontier"
"""Column of the instant as of which the values hold (int64, microseconds UTC)."""


PlainValue = int | float | bool | datetime.datetime | None


class OnlineReading(NamedTuple):
    """The values of one entity in one view.

    Attributes:
        values: Feature column name to value, anchored ones finished: int, float, bool, a datetime
            of UTC, or None.
        status: Whether they are present and recent.
        frontier_us: The instant that they are as of, microseconds UTC.
    """

    values: dict[str, PlainValue]
    status: ReadStatus
    frontier_us: int


@dataclass(frozen=True)
class OnlineReader:
    """Reads a project's features from the online database.

    Attributes:
        database: The online database.
        project: The definitions.
        clock: The clock that age is judged by.
    """

    database: OnlineDatabase
    project: Project
    clock: Clock

    def read(self, keys: Mapping[str, pa.Array]) -> dict[str, pa.RecordBatch]:
        """Read views for entities; all views as of one instant of the store.

        Args:
            keys: View name to entity keys, string or int64 as the view's entity is, ``(rows,)``;
                a null key is an unknown entity.

        Returns:
            View name to a batch, ``(rows,)``: every feature column by `FeatureColumn.name`
            (anchored ones finished), `STATUS` and `FRONTIER`.

        Raises:
            UnknownColumn: The project has no such view.
            InputError: The keys are of another type than the view's entity.
            StoreError: The store or a view's key space does not exist, or cannot be read.
        """
        plans = [_plan(self.project, name) for name in keys]
        wanted = []
        for plan, column in zip(plans, keys.values(), strict=True):
            if column.type != plan.key_type:
                raise _wrong_key(plan, str(column.type))
            known = column.drop_null() if column.null_count else column
            wanted.append((plan.space, online_keys(plan.join_key, known)))
        snapshots = self.database.read(wanted)
        try:
            return {
                name: self._batch(plan, column, snapshot)
                for (name, column), plan, snapshot in zip(
                    keys.items(), plans, snapshots, strict=True
                )
            }
        except DAMAGE as error:
            raise self._damaged(keys, error) from error

    def read_one(self, keys: Mapping[str, str | int | None]) -> dict[str, OnlineReading]:
        """Read views for one entity each; all views as of one instant of the store.

        Args:
            keys: View name to the entity's key, a text or a whole number as the view's entity is;
                None is an unknown entity.

        Returns:
            View name to values, status and frontier.

        Raises:
            UnknownColumn: The project has no such view.
            InputError: A key is of another type than the view's entity.
            StoreError: The store or a view's key space does not exist, or cannot be read.
        """
        plans = [_plan(self.project, name) for name in keys]
        wanted = [
            (plan.space, [] if key is None else [_one_key(plan, key)])
            for plan, key in zip(plans, keys.values(), strict=True)
        ]
        snapshots = self.database.read(wanted)
        try:
            return {
                name: self._one(plan, snapshot)
                for name, plan, snapshot in zip(keys, plans, snapshots, strict=True)
            }
        except DAMAGE as error:
            raise self._damaged(keys, error) from error

    def _damaged(self, views: Iterable[str], error: Exception) -> StoreError:
        """Return the error of rows that are not as a writer writes them."""
        return damaged(self.database.name, f"a row of view {', '.join(views)}", error)

    def _one(self, plan: _Plan, snapshot: Snapshot) -> OnlineReading:
        row = snapshot.rows[0] if snapshot.rows else None
        ((status,), (frontier,)) = self._judged(plan, snapshot, [row])
        stored = plan.empty if row is None else decode_row(plan.dtypes, row.cells)
        values = dict(zip(plan.names, stored, strict=True))
        for name in (plan.names[i] for i in plan.anchored):
            anchor = values[name]
            known = anchor is not None and frontier > TIME_MIN
            values[name] = frontier - anchor if known else None  # type: ignore[operator]
        for name in plan.timestamps:
            values[name] = _moment(name, values[name])  # type: ignore[assignment,arg-type]
        return OnlineReading(values, status, frontier)  # type: ignore[arg-type]

    def _batch(self, plan: _Plan, keys: pa.Array, snapshot: Snapshot) -> pa.RecordBatch:
        rows: list[Row | None] = snapshot.rows
        if keys.null_count:
            found = iter(rows)
            rows = [next(found) if valid else None for valid in pc.is_valid(keys).to_pylist()]
        statuses, as_of = self._judged(plan, snapshot, rows)
        present = [row.cells for row in rows if row is not None]
        if len(present) == len(rows):
            arrays = decode_cells(plan.dtypes, present)
        else:
            arrays = arrow_columns(plan.dtypes, *_with_empty_values(plan, rows, present))
        for i in plan.anchored:
            arrays[i] = finish_anchored(plan.view_columns[i], arrays[i], np.array(as_of, np.int64))
        return pa.RecordBatch.from_arrays(
            [*arrays, _names(statuses), pa.array(as_of, pa.int64())], schema=plan.schema
        )

    def _judged(
        self, plan: _Plan, snapshot: Snapshot, rows: list[Row | None]
    ) -> tuple[list[ReadStatus], list[int]]:
        """Return the status of each row, and the instant as of which its values hold."""
        frontiers, max_staleness_us = snapshot.frontiers, plan.space.max_staleness_us
        now_us = clock_us(self.clock, frontiers)
        statuses, as_of = [], []
        for row in rows:
            instant = frontiers.of_row(row)
            until = TIME_MAX if row is None else row.valid_until
            status = frontiers.status(instant, until, now_us, max_staleness_us)
            unseen = row is None and status is ReadStatus.PRESENT
            statuses.append(ReadStatus.NOT_FOUND if unseen else status)
            as_of.append(instant)
        return statuses, as_of


def finish_anchored(
    column: FeatureColumn, values: pa.Array, as_of_us: npt.NDArray[np.int64] | int
) -> pa.Array:
    """Finish a stored column: subtract anchors from the instants; return other columns unchanged.

    Args:
        column: The feature column.
        values: Stored values, ``(rows,)``.
        as_of_us: The instants the values are for, int64 microseconds, ``(rows,)`` or one for all.

    Returns:
        The values as a request would see them, ``(rows,)``. An anchor without an instant
        (`TIME_MIN`: no frontier was ever written) is null.
    """
    if not column.anchored:
        return values
    instants = np.broadcast_to(np.asarray(as_of_us, np.int64), len(values))
    known = pa.array(instants, mask=instants <= TIME_MIN)
    return pc.subtract(known, values)


@dataclass(frozen=True)
class _Plan:
    """The parts of a definition that reading a view needs."""

    view: FeatureView
    view_columns: tuple[FeatureColumn, ...]
    space: KeySpace
    join_key: str
    key_type: pa.DataType
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    empty: tuple[int | float | None, ...]
    anchored: tuple[int, ...]
    timestamps: tuple[str, ...]
    schema: pa.Schema


@functools.lru_cache(maxsize=256)
def _plan(project: Project, name: str) -> _Plan:
    # Cached, because it takes longer than reading a row. Definitions are frozen and compared by
    # identity.
    view = project.view(name)
    columns = tuple(view.columns)
    dtypes = tuple(column.dtype for column in columns)
    types = [ARROW_TYPES[dtype] for dtype in dtypes]
    names = tuple(column.name for column in columns)
    return _Plan(
        view=view,
        view_columns=columns,
        space=KeySpace.of(project.name, view),
        join_key=view.entity.join_key,
        key_type=ARROW_TYPES[view.entity.dtype],
        names=names,
        dtypes=dtypes,
        empty=tuple(
            float(column.empty)
            if column.dtype == FLOAT64 and column.empty is not None
            else column.empty
            for column in columns
        ),
        anchored=tuple(i for i, column in enumerate(columns) if column.anchored),
        timestamps=tuple(column.name for column in columns if column.dtype == TIMESTAMP),
        schema=pa.schema(
            [*zip(names, types, strict=True), (STATUS, pa.string()), (FRONTIER, pa.int64())]
        ),
    )


@functools.cache
def _name(status: ReadStatus) -> pa.Array:
    return pa.array([status.name], pa.string())


def _names(statuses: list[ReadStatus]) -> pa.Array:
    if len(statuses) == 1:
        return _name(statuses[0])
    return pa.array([status.name for status in statuses], pa.string())


def _one_key(plan: _Plan, key: str | int) -> bytes:
    number = plan.view.entity.dtype == INT64
    if type(key) is not (int if number else str):
        raise _wrong_key(plan, repr(key))
    try:
        return online_key(plan.join_key, key)
    except (OverflowError, UnicodeEncodeError) as error:
        raise _wrong_key(plan, repr(key)) from error


def _moment(name: str, time_us: int | None) -> datetime.datetime | None:
    try:
        return None if time_us is None else moment_of(time_us)
    except OverflowError:
        raise StoreError(
            f"feature {name!r}: the stored time, {time_us} microseconds, is not of the years 1 to "
            "9999; find its writer: `tidemill verify` says which row it is"
        ) from None


def _wrong_key(plan: _Plan, found: str) -> InputError:
    return InputError(
        f"view {plan.view.name!r}: keys of entity {plan.view.entity.name!r} are "
        f"{plan.view.entity.dtype}, found {found}"
    )


def _with_empty_values(
    plan: _Plan, rows: list[Row | None], cells: list[bytes]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Decode rows (`decode_matrix`), with the empty value for absent ones."""
    columns = len(plan.names)
    words, nulls = decode_matrix(columns, cells)
    present = np.array([row is not None for row in rows], np.bool_)
    spread = np.zeros((columns, len(rows)), np.int64)
    absent = np.zeros((columns, len(rows)), np.bool_)
    spread[:, present] = words
    if nulls is not None:
        absent[:, present] = nulls
    for i, (empty, dtype) in enumerate(zip(plan.empty, plan.dtypes, strict=True)):
        if empty is None:
            absent[i, ~present] = True
        else:
            column = np.array([empty], np.float64 if dtype == FLOAT64 else np.int64)
            spread[i, ~present] = column.view(np.int64)
    return spread, absent
