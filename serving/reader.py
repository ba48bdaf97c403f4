"""The direct reader: values, status and frontier of entities, without Feast and without pandas.

It reads what `serving.online_database` keeps and says of every row how far it can be trusted:

* ``PRESENT``: the value as of the frontier of the row's shard;
* ``NOT_FOUND``: the entity was never seen (or its key is null): the view's empty value, as of the
  frontier that all shards of the view have reached;
* ``OUTSIDE_MAX_AGE``: the numbers are there, as of the frontier that stands beside them, but the
  frontier lags behind the declared clock by more than the view's ``max_staleness``, or was never
  written, or the row should have been replaced before it. A never-seen entity of a view whose
  least frontier is stale says so too: its empty value is no knowledge either.

Anchored features are finished here (`finish`) with the frontier as the ``as_of``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.contract import TIME_MAX, TIME_MIN, ReadStatus
from features.definitions import FeatureColumn, FeatureView, Project
from features.errors import InputError
from features.expressions import ARROW_TYPES
from serving.online_cells import decode_cells
from serving.online_database import OnlineDatabase, Snapshot
from serving.online_rows import Clock, KeySpace, clock_us, online_keys

STATUS: Final = "tidemill_status"
"""Column of a reading: the `ReadStatus` by name (string)."""
FRONTIER: Final = "tidemill_frontier"
"""Column of a reading: the instant that the values are as of (int64, microseconds UTC)."""


@dataclass(frozen=True)
class OnlineReader:
    """Reads a project's features from the online database.

    Attributes:
        database: The online database.
        project: The definitions.
        clock: What age is judged by.
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
        views = [self.project.view(name) for name in keys]
        wanted = []
        for view, column in zip(views, keys.values(), strict=True):
            if column.type != ARROW_TYPES[view.entity.dtype]:
                raise InputError(
                    f"view {view.name!r}: keys of entity {view.entity.name!r} are "
                    f"{view.entity.dtype}, found {column.type}"
                )
            serialized = online_keys(view.entity.join_key, column.drop_null())
            wanted.append((KeySpace.of(self.project.name, view), serialized))
        snapshots = self.database.read(wanted)
        return {
            view.name: self._reading(view, space, column, snapshot)
            for view, (space, _), column, snapshot in zip(
                views, wanted, keys.values(), snapshots, strict=True
            )
        }

    def _reading(
        self, view: FeatureView, space: KeySpace, keys: pa.Array, snapshot: Snapshot
    ) -> pa.RecordBatch:
        now_us = clock_us(self.clock, snapshot.frontiers)
        frontiers = snapshot.frontiers
        least = frontiers.least
        unseen = frontiers.status(least, TIME_MAX, now_us, space.max_staleness_us)
        unseen = ReadStatus.NOT_FOUND if unseen is ReadStatus.PRESENT else unseen

        found = iter(snapshot.rows)
        rows = [next(found) if valid else None for valid in pc.is_valid(keys).to_pylist()]
        as_of = [least if row is None else frontiers.of(row.shard) for row in rows]
        statuses = [
            unseen
            if row is None
            else frontiers.status(frontier, row.valid_until, now_us, space.max_staleness_us)
            for row, frontier in zip(rows, as_of, strict=True)
        ]
        stored = decode_cells(space.dtypes, [row.cells for row in rows if row is not None])
        present = np.array([row is not None for row in rows], np.bool_)
        frontier = np.array(as_of, np.int64)
        arrays = [
            finish(column, _spread(column, values, present), frontier)
            for column, values in zip(view.columns, stored, strict=True)
        ]
        return pa.RecordBatch.from_arrays(
            [*arrays, pa.array([status.name for status in statuses]), pa.array(frontier)],
            names=[*(column.name for column in view.columns), STATUS, FRONTIER],
        )


def finish(
    column: FeatureColumn, values: pa.Array, as_of_us: npt.NDArray[np.int64] | int
) -> pa.Array:
    """Finish a stored column: an anchor becomes the time since it, anything else stays.

    Args:
        column: Which feature column it is.
        values: Stored values, int64 or float64, ``(rows,)``.
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


def _spread(column: FeatureColumn, values: pa.Array, present: npt.NDArray[np.bool_]) -> pa.Array:
    """Put the empty value between the stored ones, where an entity has no row."""
    if present.all():
        return values
    places = pa.array(np.cumsum(present) - 1, mask=~present)
    spread = values.take(places)
    if column.empty is None:
        return spread
    empty = pa.scalar(column.empty).cast(values.type)
    return pc.if_else(pa.array(present), spread, empty)
