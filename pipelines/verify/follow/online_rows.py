"""The rows of the online store, read beside a stream that writes them.

A row is read together with the mark of its part, which names a release. The row is compared once
the outputs of this release are durable, with the value as of its frontier of the events that it had
applied; an event that came late, and waits until the frontier moves, is not one of them. So every
row that is read is compared, however fast the stream goes on; nothing waits for a moment at which
nobody writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import SECOND, BoolArray, Int64Array, ReadStatus
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.store_fills import cuts_of
from tidemill.pipelines.verify.compare_predictions import patterns
from tidemill.pipelines.verify.compare_store import compare_readings, expected_statuses
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.follow.log_rows import limits_of
from tidemill.pipelines.verify.follow.release_chain import Reached
from tidemill.serving.generations.current import Current
from tidemill.serving.online.cells import arrow_columns, cells_width, decode_matrix
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import Fill, slice_of
from tidemill.serving.online.reader import finish_anchored
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, online_keys

_AT_ONCE: Final = 256
"""So many rows are read at once, and again if their part was written meanwhile."""
_TRIES: Final = 5
_PATIENCE: Final = 8
"""After so many rounds that went on, the mark of a part must be known."""


@dataclass
class _Reading:
    """Rows of one part, as of one mark.

    Attributes:
        view: The view.
        shard: The shard.
        mark: The mark of their part.
        frontiers: What the store said of the key space.
        keys: The entities.
        rows: Their rows; None where there is none.
        rounds: How many rounds have not known the mark.
    """

    view: FeatureView
    shard: int
    mark: bytes
    frontiers: Frontiers
    keys: pa.Array
    rows: list[Row | None]
    rounds: int = 0


class Expired(NamedTuple):
    """A row that readers see as too old.

    Attributes:
        view: The view.
        entity: The key of the entity.
        shard: The shard of the row.
        frontier_us: The frontier that the row is as of.
        highest_us: The highest frontier of the view's shards.
    """

    view: FeatureView
    entity: str
    shard: int
    frontier_us: int
    highest_us: int

    @property
    def why(self) -> str:
        """Why readers see it so."""
        behind_s = (self.highest_us - self.frontier_us) / SECOND
        allowed_s = self.view.max_staleness_us / SECOND
        return (
            f"shard {self.shard}, which has the row, is {behind_s:,.1f} s behind the furthest "
            f"shard of {self.view.name}, and max_staleness is {allowed_s:g} s"
        )


@dataclass
class OnlineRows:
    """Reads rows, and compares them when their release is proven.

    Attributes:
        project: The project.
        current: The folders of the stream.
        run: The record of the stream.
        database: The online store.
        compared: How many rows were compared.
        pending: Readings whose release is not proven yet.
    """

    project: Project
    current: Current
    run: StreamRun
    database: OnlineDatabase
    compared: int = 0
    pending: list[_Reading] = field(default_factory=list)
    _expired: dict[tuple[str, str], Expired] = field(default_factory=dict)
    _told: dict[tuple[str, str], int] = field(default_factory=dict)

    def take_expired(self) -> list[Expired]:
        """Return the rows that readers see as too old, each once as of one frontier."""
        found = [one for at, one in self._expired.items() if self._told.get(at) != one.frontier_us]
        self._told = {at: one.frontier_us for at, one in self._expired.items()}
        return found

    def fill_of(self, view: FeatureView) -> Fill | None:
        """Return the fill that readers see of a view, if this stream writes it."""
        space = KeySpace.of(self.project.name, view)
        for fill in self.database.fills([space]):
            if fill.is_current and fill.generation == self.current.generation:
                return fill if fill.cuts == cuts_of(view, self.run) else None
        return None

    def is_gone(self, view: FeatureView) -> bool:
        """Tell whether the store has nothing of a view, which a stream fills before it begins."""
        return not self.database.fills([KeySpace.of(self.project.name, view)])

    def read(self, view: FeatureView, keys: pa.Array) -> int:
        """Read the rows of entities; return how many could be read as of one mark.

        Raises:
            StoreError: The store cannot be read.
        """
        fill = self.fill_of(view)
        if fill is None or not len(keys):
            return 0
        raw = online_keys(view.entity.join_key, keys)
        shards = hashing.shard_of(hashing.key_bytes(keys), fill.shards)
        slices = np.array([slice_of(key, fill.slices) for key in raw], np.int64)
        parts = shards * fill.slices + slices
        taken = 0
        for part in np.unique(parts).tolist():
            places = np.flatnonzero(parts == part)
            for start in range(0, len(places), _AT_ONCE):
                taken += self._read_part(view, fill, part, keys, raw, places[start:][:_AT_ONCE])
        return taken

    def _read_part(
        self,
        view: FeatureView,
        fill: Fill,
        part: int,
        keys: pa.Array,
        raw: list[bytes],
        places: Int64Array,
    ) -> int:
        space = KeySpace.of(self.project.name, view)
        for _ in range(_TRIES):
            mark = self.database.part_states([fill])[0][part].mark
            wanted = [raw[place] for place in places.tolist()]
            (found,) = self.database.read([(space, wanted)])
            if mark is None:
                return 0
            if self.database.part_states([fill])[0][part].mark == mark:
                some = keys.take(pa.array(places, pa.int64()))
                shard = part // fill.slices
                self.pending.append(_Reading(view, shard, mark, found.frontiers, some, found.rows))
                return len(some)
        return 0

    def compare(
        self,
        known: Mapping[bytes, Reached],
        events: Callable[[FeatureView, pa.Array], pa.Table],
        share: Callable[[pa.Array], BoolArray],
        findings: Findings,
        *,
        is_behind: bool = False,
    ) -> int:
        """Compare the rows whose release is proven now.

        Args:
            known: Mark to its release, of those that are proven.
            events: Returns the events of entities.
            share: Tells which entities are chosen now.
            findings: Takes the mismatches.
            is_behind: Whether segments are there that were not read yet: the release may be one of
                theirs.

        Returns:
            The number of values that were compared.
        """
        values, waiting = 0, []
        for reading in self.pending:
            reached = known.get(reading.mark)
            if reached is not None:
                values += self._compare(reading, reached, events, share, findings)
                continue
            reading.rounds += not is_behind
            if reading.rounds < _PATIENCE:
                waiting.append(reading)
                continue
            cause = "no release of the stream has this mark: other rows were written"
            findings.add(
                Mismatch(
                    "store", f"shard {reading.shard}", reading.view.name, "mark",
                    seen=reading.mark.hex(), expected="the mark of a release", cause=cause,
                )
            )  # fmt: skip
        self.pending = waiting
        return values

    def _compare(
        self,
        reading: _Reading,
        reached: Reached,
        events: Callable[[FeatureView, pa.Array], pa.Table],
        share: Callable[[pa.Array], BoolArray],
        findings: Findings,
    ) -> int:
        view, keys = reading.view, reading.keys
        rows = events(view, keys)
        rows = rows.filter(pa.array(limits_of(rows, reached.applied)))
        there = pc.is_in(keys, value_set=one_batch(rows.select([view.key])).column(0))
        kept = there.to_numpy(zero_copy_only=False) & share(keys)
        places = np.flatnonzero(kept)
        keys, found = keys.filter(pa.array(kept)), [reading.rows[place] for place in places]
        instants = np.full(len(keys), reached.frontier_us)
        if not len(keys):
            return 0
        expected = expected_statuses(view, reading.frontiers, rows, keys, instants)
        # Its older events may be forgotten.
        due = [status != ReadStatus.NOT_FOUND.name for status in expected]
        keys = keys.filter(pa.array(due))
        found = [row for row, is_due in zip(found, due, strict=True) if is_due]
        expected = [status for status, is_due in zip(expected, due, strict=True) if is_due]
        instants = instants[: len(keys)]
        if not len(keys):
            return 0
        statuses = [self._status(view, reading.frontiers, row, reached) for row in found]
        right = values_at(view, rows, keys, instants)
        dtypes = [column.dtype for column in view.columns]
        nothing = bytes(cells_width(len(dtypes)))
        cells = [nothing if row is None else row.cells for row in found]
        for row, cell in enumerate(cells):
            if len(cell) != len(nothing):
                statuses[row], cells[row] = "damaged cells", nothing
        stored = arrow_columns(dtypes, *decode_matrix(len(dtypes), cells))
        finished = [
            finish_anchored(column, array, instants)
            for column, array in zip(view.columns, stored, strict=True)
        ]
        compare_readings(
            view, keys, instants, expected, statuses, patterns(finished), right, findings
        )
        self.compared += len(keys)
        for key, status in zip(keys.to_pylist(), expected, strict=True):
            self._expired.pop((view.name, str(key)), None)
            if status == ReadStatus.OUTSIDE_MAX_AGE.name:
                self._expired[view.name, str(key)] = Expired(
                    view, str(key), reading.shard, reached.frontier_us, reading.frontiers.highest
                )
        return expected.count(ReadStatus.PRESENT.name) * len(view.columns)

    @staticmethod
    def _status(view: FeatureView, frontiers: Frontiers, row: Row | None, reached: Reached) -> str:
        if row is None:
            return ReadStatus.NOT_FOUND.name
        return frontiers.status(
            reached.frontier_us, row.valid_until, frontiers.highest, view.max_staleness_us
        ).name
