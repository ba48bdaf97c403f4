"""A stream's log of publications, taken release by release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.kernel import hashing
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import publications_of
from tidemill.pipelines.stream.publications import OF_RELEASE

_UNNAMED: Final = -1


class Place(NamedTuple):
    """A release.

    Attributes:
        view: Its view.
        shard: Its shard; negative of a file that names none.
        number: Its number; negative likewise.
    """

    view: str
    shard: int
    number: int


class LoggedPublications:
    """The publications of each release.

    Args:
        stream: The folder of the stream.
        since: The first segment.
        until: The last one; None for all.

    Raises:
        DamagedFile: A file does not hold what the stream wrote.
        OutputConflict: The publications of a release were repeated otherwise.
    """

    def __init__(self, stream: Path, since: int = 0, until: int | None = None) -> None:
        self._rows: dict[Place, list[tuple[str, pa.Table]]] = {}
        for folder in sorted((stream / paths.PUBLICATIONS).glob("*")):
            logged = publications_of(stream, folder.name).tables(since=since, until=until)
            for file, table in logged:
                for place, rows in _releases(folder.name, file.path, table):
                    self._rows.setdefault(place, []).append((file.path.name, rows))

    @property
    def places(self) -> list[Place]:
        """The releases that were not taken yet."""
        return list(self._rows)

    def take(self, place: Place) -> list[tuple[str, pa.Table]]:
        """Remove and return the publications of a release: each file's name, and the rows."""
        return self._rows.pop(place, [])

    def left(self) -> Iterator[tuple[Place, str]]:
        """Yield the releases that were not taken, and the names of their files."""
        for place, found in sorted(self._rows.items(), key=lambda one: one[0]):
            for name, _ in found:
                yield place, name


def _releases(view: str, path: Path, table: pa.Table) -> Iterator[tuple[Place, pa.Table]]:
    """Yield the rows of each release in a file."""
    if not set(OF_RELEASE) <= set(table.column_names):
        # Versions without parts wrote a file for each release, and named it by it.
        _, _, name = path.stem.partition("-")  # after the segment
        shard, _, number = name.partition("-")
        if not (shard.isdigit() and number.isdigit()):
            yield Place(view, _UNNAMED, _UNNAMED), table
        else:
            yield Place(view, int(shard), int(number)), table
        return
    if not table.num_rows:
        return  # all of them were forgotten
    shards, numbers = (hashing.bits(table.column(name).combine_chunks()) for name in OF_RELEASE)
    rows = table.drop_columns(list(OF_RELEASE))
    changes = np.flatnonzero((np.diff(shards) != 0) | (np.diff(numbers) != 0)) + 1
    starts = [0, *changes.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        place = Place(view, int(shards[start]), int(numbers[start]))
        yield place, rows.slice(start, stop - start)
