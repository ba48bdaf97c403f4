"""Comparing the rows of the online store, column by column, with what its mark says.

The mark of a part of a fill names the release whose rows it has (`pipelines.stream.marks`). The
rows of that release are those of an operator that has taken the polls up to it. So every row is
compared, as are rows that should not be there; the values are compared once more, with the sources
and through Feast, by `pipelines.verify.compare_store`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun
from tidemill.pipelines.recovery.store_fills import cuts_of
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.verify.findings import EMPTIED, Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text, scalar_text
from tidemill.pipelines.verify.outputs.reach import Beyond
from tidemill.pipelines.verify.source_history import SourceHistory
from tidemill.serving.online.cells import cells_width, decode_cells
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import Fill, PartState, slice_of
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.rows import KeySpace, Row, decode_key, online_keys

_FIELDS: Final = ("event_timestamp", "revision", "valid_until", "shard")


class Reached(NamedTuple):
    """An operator at a release.

    Attributes:
        number: The number of the release.
        frontier_us: Its frontier.
        applied: The positions up to which it has applied the rows before its frontier, first of
            events and then of requests.
    """

    number: int
    frontier_us: int
    applied: tuple[int, ...]


class RowCounts(NamedTuple):
    """What was compared.

    Attributes:
        rows: Rows.
        moving: Parts that were written meanwhile, or by a release beyond the live log, so that
            their rows were not compared.
    """

    rows: int = 0
    moving: int = 0


class RowCheck:
    """Compares the rows of the fills that readers see of some views.

    Args:
        project: The project.
        database: The online store.
        views: The views.
        findings: Takes the mismatches.

    Attributes:
        fills: By view: its fill, with mark and frontier of each part.
    """

    def __init__(
        self,
        project: Project,
        database: OnlineDatabase,
        views: Collection[str],
        findings: Findings,
    ) -> None:
        self._project, self._database, self._findings = project, database, findings
        spaces = [KeySpace.of(project.name, v) for v in project.views if v.name in views]
        fills = [fill for fill in database.fills(spaces) if fill.is_current]
        self.fills: dict[str, tuple[Fill, list[PartState]]] = {
            fill.space.view: (fill, states)
            for fill, states in zip(fills, database.part_states(fills), strict=True)
        }
        self._rows: dict[tuple[str, int, bytes], dict[bytes, Row]] = {}
        self._reached: dict[tuple[str, int, bytes], Reached] = {}
        # By view and shard: frontier and positions of the last release that has applied rows.
        self._applied: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}
        self._is_ahead = False

    def leave_out(self, beyond: Beyond) -> None:
        """Do not compare parts that may be of a release beyond the live log."""
        self._is_ahead = beyond.written > beyond.sealed

    def is_still(self, view: str) -> bool:
        """Tell whether nothing was published to a view since its marks were read.

        Nor before, by a release that is beyond the live log.
        """
        fill, states = self.fills[view]
        is_same: bool = self._database.part_states([fill])[0] == states
        return is_same and not self._ahead(fill, states)

    def _ahead(self, fill: Fill, states: Sequence[PartState]) -> set[int]:
        """Return the parts whose marks may be of releases that are beyond the live log."""
        if not self._is_ahead:
            return set()
        return {
            part
            for part, state in enumerate(states)
            if state.mark is not None
            and (fill.space.view, part // fill.slices, state.mark) not in self._reached
        }

    def marks(self, view: str, shard: int) -> set[bytes]:
        """Return the marks that the parts of a shard have."""
        if view not in self.fills:
            return set()
        fill, states = self.fills[view]
        of_shard = states[shard * fill.slices : (shard + 1) * fill.slices]
        return {state.mark for state in of_shard if state.mark is not None}

    def releases(self, numbers: Mapping[bytes, int]) -> set[int]:
        """Return the numbers of the releases that the marks name; others are unknown."""
        shards = {(view, n) for view, (fill, _) in self.fills.items() for n in range(fill.shards)}
        return {
            numbers[mark]
            for view, shard in shards
            for mark in self.marks(view, shard)
            if mark in numbers
        }

    @property
    def sought(self) -> set[tuple[str, int, bytes]]:
        """The marks, with view and shard, whose release no operator has reached yet."""
        return {
            (view, shard, mark)
            for view, (fill, _) in self.fills.items()
            for shard in range(fill.shards)
            for mark in self.marks(view, shard)
        } - self._rows.keys()

    def take(
        self,
        operators: Iterable[ShardOperator],
        releases: Iterable[tuple[ShardOperator, Release]] = (),
    ) -> None:
        """Note the rows of operators whose last release some part has.

        Args:
            operators: Operators, as of a release; first as of where the stream begins.
            releases: Their releases since they were taken before, in order.
        """
        for operator, release in releases:
            place = operator.key.view, operator.key.shard
            # In exact mode rows wait until the frontier moves, also those that come late.
            if release.frontier_us > self._applied[place][0] or release.events:
                self._applied[place] = release.frontier_us, release.positions
        for operator in operators:
            name, shard, mark = operator.key.view, operator.key.shard, operator.mark
            frontier_us = operator.state.frontier_us
            known = self._applied.setdefault((name, shard), (frontier_us, tuple(operator.expected)))
            if mark not in self.marks(name, shard) or (name, shard, mark) in self._rows:
                continue
            view = self._project.view(name)
            batch = online_rows(view, named_publications(view, operator.everything()), shard)
            self._rows[name, shard, mark] = {row.key: row for row in batch.rows()}
            self._reached[name, shard, mark] = Reached(operator.number, frontier_us, known[1])

    def check_records(self, begun: Handoff | StreamRun, mode: str) -> None:
        """Compare the records of the fills with what began them.

        Args:
            begun: The record of the states that they were begun with.
            mode: The mode of the stream.
        """
        for name, (fill, _) in self.fills.items():
            view = self._project.view(name)
            expected = {"cuts": cuts_of(view, begun), "mode": mode}
            cause = "the record of the fill is not what it was begun with"
            if fill.cuts == "{}" and not fill.mode:  # so is one that is made in an empty store
                cause = f"{EMPTIED}; `tidemill republish` fills it"
            for field, right in expected.items():
                if (seen := getattr(fill, field)) != right:
                    self._note(f"fill {fill.id}", name, field, seen, right, cause)

    def applied(self, view: FeatureView, source: SourceHistory) -> BoolArray | None:
        """Tell which rows of a source are in what readers see of a view.

        Returns:
            bool, ``(rows,)``; None if there is no part, or the mark of one is not known.
        """
        fill, states = self.fills[view.name]
        if not states:
            return None
        limits = np.zeros((len(states), source.partitions), np.int64)
        for part, state in enumerate(states):
            place = view.name, part // fill.slices, state.mark or b""
            if place not in self._reached:
                return None
            limits[part] = self._reached[place].applied[: source.partitions]
        keys = source.rows.column(view.key).combine_chunks()
        shards = hashing.shard_of(hashing.key_bytes(keys), fill.shards)
        parts = shards * fill.slices
        if fill.slices > 1:
            raw = online_keys(view.entity.join_key, keys.drop_null())
            slices = np.array([slice_of(key, fill.slices) for key in raw], np.int64)
            parts[hashing.validity(keys)] += slices
        applied: BoolArray = source.words(POSITION) < limits[parts, source.words(PARTITION)]
        return applied

    def finish(self, complete: int = 0) -> RowCounts:
        """Read all rows, and compare.

        Args:
            complete: The number of the release that every part must have reached.
        """
        counts = RowCounts()
        for view, (fill, states) in self.fills.items():
            found = {row.key: row for rows in self._database.scan(fill) for row in rows}
            (now,) = self._database.part_states([fill])
            moving = {part for part, one in enumerate(states) if one != now[part]}
            moving |= self._ahead(fill, states)
            self._check_parts(view, fill, states, moving, complete)
            expected = self._expected(view, fill, states)
            compared = 0
            for key in sorted(found.keys() | expected.keys()):
                row, right = found.get(key), expected.get(key)
                part = None if right is None else self._part(fill, right)
                if part in moving:
                    continue
                if right is None and self._is_unknown(fill, states, row, moving):
                    continue
                self._compare(view, row, right)
                compared += 1
            counts = RowCounts(counts.rows + compared, counts.moving + len(moving))
        return counts

    def _check_parts(
        self,
        view: str,
        fill: Fill,
        states: list[PartState],
        moving: Collection[int],
        complete: int,
    ) -> None:
        for part, state in enumerate(states):
            if state.mark is None or part in moving:
                continue
            shard = part // fill.slices
            reached = self._reached.get((view, shard, state.mark))
            id = f"shard {shard}" + (f", slice {part % fill.slices}" if fill.slices > 1 else "")
            if reached is None:
                self._note(
                    id, view, "mark", state.mark.hex(), "the mark of a release",
                    "no release of the stream has this mark: other rows were written",
                )  # fmt: skip
                continue
            if reached.frontier_us != state.frontier_us:
                self._note(
                    id, view, "frontier", field_text("frontier", state.frontier_us),
                    field_text("frontier", reached.frontier_us),
                    "the release that the mark names has another frontier",
                )  # fmt: skip
            if reached.number < complete:
                self._note(
                    id, view, "mark", f"release {reached.number}", f"release {complete}",
                    "the last publications of the shard are not in the store; run "
                    "`tidemill republish`",
                )  # fmt: skip

    def _expected(self, view: str, fill: Fill, states: list[PartState]) -> dict[bytes, Row]:
        out: dict[bytes, Row] = {}
        for part, state in enumerate(states):
            shard, number = divmod(part, fill.slices)
            rows = {} if state.mark is None else self._rows.get((view, shard, state.mark), {})
            out |= {
                key: row
                for key, row in rows.items()
                if fill.slices == 1 or slice_of(key, fill.slices) == number
            }
        return out

    @staticmethod
    def _part(fill: Fill, row: Row) -> int | None:
        if row.shard is None:
            return None
        return row.shard * fill.slices + slice_of(row.key, fill.slices)

    def _is_unknown(
        self, fill: Fill, states: list[PartState], row: Row | None, moving: Collection[int]
    ) -> bool:
        """Tell whether the part of a row is one whose rows are not known."""
        assert row is not None
        part = self._part(fill, row)
        if part is None or not 0 <= part < len(states):
            return False
        mark = states[part].mark
        assert row.shard is not None
        return part in moving or (fill.space.view, row.shard, mark) not in self._rows

    def _compare(self, view: str, row: Row | None, right: Row | None) -> None:
        if row is None or right is None:
            one = row or right
            assert one is not None
            seen, expected, cause = "no row", "a row", "the entity has events: its row is gone"
            if right is None:
                seen, expected = "a row", "none"
                cause = "the entity has no event before the release: its row was added"
            self._note(_entity(one.key), view, "status", seen, expected, cause)
            return
        for name in _FIELDS:
            if name == "shard" and row.shard is None:
                continue  # a stock client wrote the same row
            if getattr(row, name) != getattr(right, name):
                self._note(
                    _entity(row.key), view, name,
                    field_text(name, getattr(row, name)),
                    field_text(name, getattr(right, name)),
                    "the release has another row of the entity",
                )  # fmt: skip
        if row.cells != right.cells:
            columns = self._project.view(view).columns
            seen_texts, right_texts = (
                [_shown(value) for value in _cells([c.dtype for c in columns], one.cells)]
                for one in (row, right)
            )
            # Values whose texts are equal differ in bits that no number has.
            pairs = list(zip(columns, seen_texts, right_texts, strict=True))
            unequal = [(column.name, *texts) for column, *texts in pairs if texts[0] != texts[1]]
            for name, seen, wanted in unequal or [("cells", row.cells.hex(), right.cells.hex())]:
                self._note(
                    _entity(row.key), view, name, seen, wanted,
                    "the release has another value",
                )  # fmt: skip

    def _note(self, id: str, view: str, field: str, seen: str, expected: str, cause: str) -> None:
        self._findings.add(
            Mismatch("store", id, view, field, seen=seen, expected=expected, cause=cause)
        )


def _entity(key: bytes) -> str:
    """Return the key of an entity as text, without the name of its join key."""
    found = decode_key(key)
    return key.hex() if found is None else str(found[1])


def _cells(dtypes: Sequence[str], cells: bytes) -> list[pa.Scalar | str]:
    """Decode the values of a row; bytes that cannot be values are shown as they are."""
    if len(cells) != cells_width(len(dtypes)):
        return [cells.hex()] * len(dtypes)
    return [array[0] for array in decode_cells(dtypes, [cells])]


def _shown(value: pa.Scalar | str) -> str:
    return value if isinstance(value, str) else scalar_text("", value)
