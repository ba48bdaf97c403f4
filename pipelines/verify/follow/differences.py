"""Differences by cause: what is explained by what came later, and what is a fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.kernel.columns import UInt8Array
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.run.proof_record import Cause, Difference
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, differ
from tidemill.pipelines.verify.diagnosis import Kind, late_rows, places, written
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import instant_text
from tidemill.pipelines.verify.release_evidence import Evidence

AS_SEEN: Final = "as seen"
AS_COMPLETE: Final = "as complete"
EXAMPLES: Final = 10
"""So many differences of each cause, and of one kind of output, are kept of a round."""

_OF_ENGINE: Final = (Kind.LOST, Kind.STALE, Kind.DOUBLED)
_LOST: Final = ("lost", "doubled")


@dataclass
class Differences:
    """The differences that a round has found.

    Attributes:
        at: When, ISO 8601, UTC.
        causes: Cause to the number of differences.
        examples: The first of each cause.
        late_values: How many values of answers late events make differ.
    """

    at: str
    causes: Counter[str] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)
    late_values: int = 0
    _kept: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, difference: Difference, count: int = 1) -> None:
        """Count a difference as ``count`` values; keep it if it is among the first of its cause."""
        self.causes[difference.cause] += count
        self._keep(difference)

    def add_some(self, examples: Sequence[Difference], count: int) -> None:
        """Count differences of one cause, of which some are examples; keep the first of its cause.

        Args:
            examples: At least one.
            count: How many values differ.
        """
        self.causes[examples[0].cause] += count
        for one in examples:
            self._keep(one)

    def _keep(self, difference: Difference) -> None:
        of_it = difference.cause, difference.what
        if self._kept[of_it] < EXAMPLES:
            self._kept[of_it] += 1
            self.examples.append(difference)

    def take(self, findings: Findings) -> None:
        """Add mismatches: all are counted, those that are listed can be examples."""
        for (what, kind), count in findings.by_kind.items():
            self.causes[cause_of(what, kind)] += count
        for one in findings.listed:
            self._keep(self._difference(one))

    def _difference(self, one: Mismatch) -> Difference:
        return Difference(
            at=self.at,
            cause=cause_of(one.what, one.kind),
            verdict=AS_SEEN,
            what=one.what,
            id=one.id,
            entity=one.entity,
            view=one.view,
            feature=one.feature,
            as_of="" if one.as_of_us is None else instant_text(one.as_of_us),
            served=one.seen,
            recomputed=one.expected,
            why=one.cause,
            events=one.events,
        )

    def add_late(
        self,
        verdict: ViewVerdict,
        evidence: Evidence,
        ids: Sequence[str],
        known: BoolArray | None = None,
        what: str = "value",
    ) -> None:
        """Add the values that late events make differ from those as complete.

        Args:
            verdict: The comparison.
            evidence: The releases.
            ids: The id of each row.
            known: bool, ``(rows, columns)``: those that were added before.
            what: What the values are of.
        """
        late = verdict.late if known is None else verdict.late & ~known
        why = "it came after the answer, behind the frontier"
        for row in np.flatnonzero(late.any(axis=1)).tolist():
            columns = np.flatnonzero(late[row]).tolist()
            room = self._kept[Cause.LATE_EVENT, what] < EXAMPLES
            events = places(verdict, late_rows(verdict, evidence, row)) if room else []
            for example in self._of_row(
                verdict, row, columns[:1], ids[row], Cause.LATE_EVENT, verdict.complete
            ):
                self._keep(_with(example, what, why, events))
            self.causes[Cause.LATE_EVENT] += len(columns)
            self.late_values += len(columns) * (what == "value")

    def add_late_requests(
        self, verdict: ViewVerdict, asked_us: Int64Array, ids: Sequence[str]
    ) -> None:
        """Add the values that differ since their request came late, and was answered as of later.

        Args:
            verdict: The comparison.
            asked_us: int64, ``(rows,)``: the time of each request.
            ids: The id of each row.
        """
        rows = np.flatnonzero(verdict.as_of_us > asked_us)
        if not len(rows):
            return
        keys = verdict.keys.take(rows)
        then = values_at(verdict.view, verdict.events.rows, keys, asked_us[rows])
        seen = verdict.seen[0][rows], verdict.seen[1][rows]
        different = differ(seen, then) & ~verdict.wrong[rows]
        for place in np.flatnonzero(different.any(axis=1)).tolist():
            row, columns = int(rows[place]), np.flatnonzero(different[place]).tolist()
            window, times = verdict.window(row), verdict.events.times
            between = window[times[window] >= asked_us[row]]
            why = f"the request of {instant_text(int(asked_us[row]))} came behind the frontier"
            right = np.zeros_like(verdict.complete[0]), np.zeros_like(verdict.complete[1])
            right[0][row], right[1][row] = then[0][place], then[1][place]
            for example in self._of_row(
                verdict, row, columns[:1], ids[row], Cause.LATE_REQUEST, right
            ):
                self._keep(_with(example, "value", why, places(verdict, between)))
            self.causes[Cause.LATE_REQUEST] += len(columns)

    def _of_row(
        self,
        verdict: ViewVerdict,
        row: int,
        columns: Sequence[int],
        id: str,
        cause: Cause,
        right: tuple[Int64Array, UInt8Array],
    ) -> Iterator[Difference]:
        for column in columns:
            definition = verdict.view.columns[column]
            yield Difference(
                at=self.at,
                cause=cause,
                verdict=AS_COMPLETE,
                what="value",
                id=id,
                entity=str(verdict.keys[row].as_py()),
                view=verdict.view.name,
                feature=definition.name,
                as_of=instant_text(int(verdict.as_of_us[row])),
                served=written(verdict.seen, row, column, definition.dtype),
                recomputed=written(right, row, column, definition.dtype),
            )


def _with(one: Difference, what: str, why: str, events: Sequence[str]) -> Difference:
    return replace(one, what=what, why=why, events=tuple(events))


def request_place(id: str, source: str, partition: int, position: int) -> str:
    """Return a request as the proof names events: id, source, partition and position."""
    return f"{id} ({source}/{partition}:{position})"


def cause_of(what: str, kind: str) -> Cause:
    """Return the cause of a mismatch.

    Args:
        what: What differs (`Mismatch.what`).
        kind: What explains it (`pipelines.verify.diagnosis.Kind`), or empty.
    """
    return Cause.LOST if what in _LOST or kind in _OF_ENGINE else Cause.UNEXPLAINED
