"""Comparing the log of publications: every row of every release is what the polls give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import logged_publications
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.pipelines.verify.outputs.logged_publications import LoggedPublications, Place
from tidemill.pipelines.verify.outputs.reach import Beyond
from tidemill.serving.publications import ENTITY_KEY


class PublicationCheck:
    """Compares the publications of a stream.

    Args:
        stream: The stream's folder.
        project: The project.
        findings: Takes the mismatches.

    Attributes:
        rows: How many publications were compared.
    """

    def __init__(self, stream: Path, project: Project, findings: Findings) -> None:
        self._project, self._findings = project, findings
        self._logs = LoggedPublications(stream)
        self.rows = 0

    @property
    def numbers(self) -> list[int]:
        """The numbers of the releases that the log names."""
        return [place.number for place in self._logs.places]

    def leave_out(self, beyond: Beyond) -> None:
        """Do not compare the publications of releases that are beyond the live log."""
        places = self._logs.places
        later = beyond.numbers(place.number for place in places)
        for place, is_beyond in zip(places, later, strict=True):
            if is_beyond:
                self._logs.take(place)

    def take(self, releases: Iterable[tuple[ShardOperator, Release]], complete: int) -> None:
        """Compare the publications of releases.

        Args:
            releases: What the polls give.
            complete: Publications of releases up to this number must be there.
        """
        for operator, release in releases:
            if not release.publications.num_rows:
                continue
            view = operator.key.view
            place = Place(view, operator.key.shard, release.number)
            where = f"release {release.number} of shard {operator.key.shard}"
            found = self._logs.take(place)
            if not found:
                if release.number <= complete:
                    self._note(where, view, "", "no publications", "its publications", "gone")
                continue
            expected = logged_publications(self._project.view(view), release.publications)
            self.rows += expected.num_rows
            for _, rows in found:
                self._compare(where, view, rows, expected)
            for name, _ in found[1:]:
                cause = "two segments have written it"
                self._note(where, view, "", f"in {name} too", "once", cause)

    def _compare(self, where: str, view: str, found: pa.Table, expected: pa.Table) -> None:
        if found.schema.remove_metadata() != expected.schema or len(found) != len(expected):
            self._note(
                where, view, "", f"{len(found)} rows of {', '.join(found.column_names)}",
                f"{len(expected)} rows of {', '.join(expected.column_names)}",
                "the file was changed, or was written from other rows",
            )  # fmt: skip
            return
        keys = expected.column(ENTITY_KEY)
        for name in expected.column_names:
            seen, right = (table.column(name).combine_chunks() for table in (found, expected))
            for row in differing(seen, right).nonzero()[0].tolist():
                key = keys[row].as_py().decode()
                self._note(
                    f"{where}, entity {key}", view, name, shown(name, seen, row),
                    shown(name, right, row),
                    "the stream's polls give another publication",
                )  # fmt: skip

    def finish(self) -> None:
        """Note the publications that no release gives."""
        for place, name in self._logs.left():
            cause = "no release of the stream gives it: it was added"
            where = name
            if place.number >= 0:
                where = f"release {place.number} of shard {place.shard} ({name})"
            self._note(where, place.view, "", "publications", "none", cause)

    def _note(
        self, where: str, view: str, field: str, seen: str, expected: str, cause: str
    ) -> None:
        self._findings.add(
            Mismatch("publication", where, view, field, seen=seen, expected=expected, cause=cause)
        )
