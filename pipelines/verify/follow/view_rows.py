"""The events of all views' chosen entities, read from the log as polls bring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import MINUTE, TIME_MAX, TIME_MIN, BoolArray
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.verify.follow.entity_rows import EntityRows
from tidemill.pipelines.verify.follow.log_rows import LogRows, rows_schema
from tidemill.pipelines.verify.follow.share import is_chosen

_LEAST_LATENESS_US: Final = 2 * MINUTE
"""A partition that was silent may bring events that are later than their stream allows."""


def lateness_us(project: Project) -> int:
    """Return for how long before the frontier answers are kept, since events may come late."""
    of_streams = [view.stream.tolerance_us for view in project.views]
    return max(_LEAST_LATENESS_US, project.request.tolerance_us, *of_streams)


class ViewRows:
    """The events of the chosen entities of each view.

    Args:
        project: The project.
        partitions: Source to the number of its partitions.
        share: The share of the entities.
    """

    def __init__(self, project: Project, partitions: Mapping[str, int], share: float) -> None:
        self._project, self._partitions, self._share = project, partitions, share
        self._streams = {view.stream.name: view.stream for view in project.views}
        self._logs = {
            name: LogRows(stream, partitions[name]) for name, stream in self._streams.items()
        }
        self._views = {
            view.name: EntityRows(view.key, view.stream.event_time, rows_schema(view.stream))
            for view in project.views
        }
        self._log: Log | None = None

    def load(
        self, log: Log, positions: Mapping[str, Sequence[int]], frontiers: Mapping[str, int]
    ) -> None:
        """Read the rows below some positions that windows can still hold.

        Args:
            log: The log.
            positions: Source to the position of each partition.
            frontiers: View to its frontier.
        """
        self.forget_before(frontiers)
        self.read(log, positions, keeps=False)

    def read(
        self, log: Log, positions: Mapping[str, Sequence[int]], *, keeps: bool = True
    ) -> dict[str, pa.Table]:
        """Read the rows up to some positions; return those of the chosen entities, by view.

        Raises:
            DamagedFile: A block of the log is not what was written.
        """
        self._log = log
        found: dict[str, list[pa.Table]] = {view.name: [] for view in self._project.views}
        for name, rows in self._logs.items():
            for piece in rows.read(log, positions[name]):
                for view in self._project.views:
                    if view.stream.name == name and len(some := self._of_view(view, piece)):
                        self._views[view.name].add(some)
                        if keeps:
                            found[view.name].append(some)
        return {
            name: pa.concat_tables([self._views[name].schema.empty_table(), *tables])
            for name, tables in found.items()
        }

    def _of_view(self, view: FeatureView, rows: pa.Table) -> pa.Table:
        batch = one_batch(rows.select([view.key, view.stream.event_time]))
        kept = hashing.validity(batch.column(0)) & is_chosen(batch.column(0), self._share)
        kept &= hashing.bits(batch.column(1)) >= self._views[view.name].floor_us
        return rows.filter(pa.array(kept))

    def of(self, view: FeatureView, keys: pa.Array, from_us: int = TIME_MAX) -> pa.Table:
        """Return the events of entities.

        Args:
            view: The view.
            keys: The entities.
            from_us: The first instant that is needed; if it is before what is kept, the log is read
                once more.
        """
        rows = self._views[view.name]
        if from_us >= rows.floor_us or self._log is None:
            return rows.of(keys)
        name = view.stream.name
        again = LogRows(view.stream, self._partitions[name])
        wanted = pc.unique(keys)
        parts = [rows.schema.empty_table()]
        for piece in again.read(self._log, self._logs[name].positions):
            parts.append(piece.filter(pc.is_in(piece.column(view.key), value_set=wanted)))
        found = pa.concat_tables(parts)
        return found.filter(pc.is_valid(found.column(view.key)))

    def some_keys(self, view: FeatureView, after: int, count: int) -> tuple[pa.Array, int]:
        """Return some entities, to visit all in turn (`EntityRows.some_keys`)."""
        return self._views[view.name].some_keys(after, count)

    def is_chosen(self, keys: pa.Array) -> BoolArray:
        """Tell which entities are chosen: bool, ``(rows,)``."""
        return is_chosen(keys, self._share)

    def partitions(self, view: FeatureView) -> int:
        """Return the number of partitions of a view's stream."""
        return self._partitions[view.stream.name]

    def check_again(self, log: Log) -> None:
        """Read some blocks of the log again (`LogRows.check_again`)."""
        for rows in self._logs.values():
            rows.check_again(log)

    def narrow(self, share: float) -> None:
        """Keep the rows of a smaller share."""
        self._share = share
        for rows in self._views.values():
            rows.narrow(share)

    def forget_before(self, frontiers: Mapping[str, int]) -> None:
        """Forget the rows that no window of an answer holds any more that can still be compared.

        Args:
            frontiers: View to its frontier.
        """
        wait_us = lateness_us(self._project)
        for view in self._project.views:
            frontier_us = frontiers[view.name]
            if TIME_MIN < frontier_us < TIME_MAX:
                reach_us = view.longest_window_us + view.hop_us + wait_us
                self._views[view.name].forget_before(frontier_us - reach_us)

    def __len__(self) -> int:
        return int(np.sum([len(rows) for rows in self._views.values()]))
