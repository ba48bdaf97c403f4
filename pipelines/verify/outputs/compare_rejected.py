"""Comparing the rejected records of a stream: each is one that its polls give.

A request is rejected instead of answered only where no release has its answer, and instead of
scored only where its bundle refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.rows import rejected
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.recovery.repeat import Repeated
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.answer_parts import group_of
from tidemill.pipelines.stream.rejected_by_stream import (
    are_of_log,
    bundle_of,
    read_rejected,
    rejected_requests,
)
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.outputs.reach import Beyond

_PLACE: Final = ("stage", "stream", "partition", "position")
_Place = tuple[str, str, int, int]


class RejectedCheck:
    """Compares the rejected records of a stream.

    Args:
        stream: The stream's folder.
        project: The project.
        findings: Takes the mismatches.

    Attributes:
        requests: The places (`pipelines.stream.answer_parts.group_of`) of the requests that its
            polls reject.
        rows: How many records were compared.
    """

    def __init__(self, stream: Path, project: Project, findings: Findings) -> None:
        self._project, self._findings = project, findings
        self._found = read_rejected(stream / paths.REJECTED_BY_STREAM).combine_chunks()
        self._rows: dict[_Place, list[int]] = {}
        self._place()
        self._given: set[_Place] = set()
        self.requests: list[int] = []
        self.rows = 0

    def _place(self) -> None:
        self._rows.clear()
        for row, place in enumerate(_places(self._found)):
            self._rows.setdefault(place, []).append(row)
        details = self._found.column("detail")
        self._refused_by = {
            group_of(partition, position): bundle_of(details[rows[0]].as_py())
            for (stage, source, partition, position), rows in self._rows.items()
            if stage == rejected.Stage.SCORE and source == self._project.request.name
        }
        self._refused = np.array([*self._refused_by], np.int64)

    def leave_out(self, beyond: Beyond) -> None:
        """Do not compare the records that are beyond the live log."""
        self._found = self._found.filter(pa.array(~beyond.rejected(self._found))).combine_chunks()
        self._place()

    def take(self, repeated: Repeated, *, is_complete: bool) -> None:
        """Compare the records that some polls give.

        Args:
            repeated: What the polls give.
            is_complete: Whether their outputs must be there.
        """
        request = self._project.request.name
        given = [rejected_requests(request, lost) for lost in repeated.unanswered]
        self.take_records([*repeated.rejected, *given], is_complete=is_complete)

    def refused_by(self, answered: pa.RecordBatch) -> str | None:
        """Return the bundle that has refused one of some answered requests; None if none has."""
        if not self._refused_by:
            return None
        places = np.intersect1d(places_of(answered, PARTITION, POSITION), self._refused)
        return self._refused_by[int(places[0])] if len(places) else None

    def take_records(self, records: Iterable[pa.RecordBatch], *, is_complete: bool) -> None:
        """Compare records that polls give.

        Args:
            records: They.
            is_complete: Whether they must be there.
        """
        request = self._project.request.name
        for batch in records:
            expected = pa.Table.from_batches([batch]).combine_chunks()
            of_log = are_of_log(expected)
            for row, place in enumerate(_places(expected)):
                if place[1] == request and of_log[row]:
                    self.requests.append(group_of(place[2], place[3]))
                self._given.add(place)
                found = self._take(place, expected.column("origin")[row].as_py())
                if found is not None:
                    self.rows += 1
                    self._compare(place, found, expected.slice(row, 1))
                elif is_complete:
                    self._note(place, "", "no record", "a rejected record", "it is gone")

    def _take(self, place: _Place, origin: str) -> int | None:
        """Take the record of a place, of several the one with an origin."""
        rows = self._rows.get(place)
        if not rows:
            return None
        # The rows of one message of a topic have one place.
        origins = [self._found.column("origin")[row].as_py() for row in rows]
        return rows.pop(origins.index(origin) if origin in origins else 0)

    def _compare(self, place: _Place, row: int, expected: pa.Table) -> None:
        for name in rejected.SCHEMA.names:
            seen, right = (
                table.column(name).combine_chunks()
                for table in (self._found.slice(row, 1), expected)
            )
            if name == "detail" and place[0] == rejected.Stage.SCORE:
                # Versions of TensorFlow say the same in other words.
                seen, right = (
                    pa.array([bundle_of(one) for one in column.to_pylist()])
                    for column in (seen, right)
                )
            if differing(seen, right).any():
                cause = "the stream's polls reject the row otherwise"
                self._note(place, name, shown(name, seen, 0), shown(name, right, 0), cause)

    def finish(self) -> None:
        """Note the records that no poll gives."""
        for place, rows in sorted(self._rows.items()):
            if place in self._given:
                for _ in rows:
                    self._note(place, "", "more than one record", "one", "it was added")
                continue
            cause = "no poll of the stream rejects this row"
            if place[0] == rejected.Stage.ANSWER:
                cause = "the releases answer this request: it was not rejected"
            if place[0] == rejected.Stage.SCORE:
                cause = "the model takes this request: it was not rejected"
            for _ in rows:
                self._note(place, "", "a rejected record", "none", cause)

    def _note(self, place: _Place, field: str, seen: str, expected: str, cause: str) -> None:
        stage, source, partition, position = place
        id = f"{source}/{partition}:{position} ({stage})"
        self._findings.add(
            Mismatch("rejected", id, "", field, seen=seen, expected=expected, cause=cause)
        )


def _places(records: pa.Table) -> list[_Place]:
    return list(zip(*(records.column(name).to_pylist() for name in _PLACE), strict=True))
