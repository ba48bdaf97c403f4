"""Comparing the log of publications: every row of every release is what the polls give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import logged_publications, publications_name
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.serving.files.read_files import read_table
from tidemill.serving.publications import ENTITY_KEY

_MEND: Final = "run `tidemill stream` again"


def publication_files(stream: Path, prefix: str = "") -> dict[tuple[str, str], list[Path]]:
    """Return the files of publications of a stream.

    Args:
        stream: The stream's folder.
        prefix: The start of the names of the files, to read those of one segment.

    Returns:
        View and name of a release's publications (`publications_name`) to its files.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted((stream / paths.PUBLICATIONS).glob(f"*/{prefix}*")):
        _, _, name = path.name.removesuffix(".parquet").partition("-")  # after the segment
        found.setdefault((path.parent.name, name), []).append(path)
    return found


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
        self._files = publication_files(stream)
        self.rows = 0

    @property
    def numbers(self) -> list[int]:
        """The numbers of the releases that files name."""
        return [int(number) for _, name in self._files if (number := name[-12:]).isdigit()]

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
            name = publications_name(operator.key.shard, release.number)
            files = self._files.pop((view, name), [])
            where = f"release {release.number} of shard {operator.key.shard}"
            if not files:
                if release.number <= complete:
                    self._note(where, view, "", "no publications", "a file of them", "it is gone")
                continue
            expected = logged_publications(self._project.view(view), release.publications)
            self.rows += expected.num_rows
            for path in files:
                self._compare(where, view, read_table(path, _MEND), expected)
            for path in files[1:]:
                cause = "two segments have written it"
                self._note(where, view, "", f"{path.name} too", "one file", cause)

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
        """Note the files that no release gives."""
        for (view, _), files in sorted(self._files.items()):
            for path in files:
                cause = "no release of the stream gives it: it was added"
                self._note(path.name, view, "", "a file", "none", cause)

    def _note(
        self, where: str, view: str, field: str, seen: str, expected: str, cause: str
    ) -> None:
        self._findings.add(
            Mismatch("publication", where, view, field, seen=seen, expected=expected, cause=cause)
        )
