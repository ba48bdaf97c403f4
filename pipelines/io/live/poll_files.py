"""The files of a live log that say what polls had: their cuts, and what they have beside rows.

A *kind* of them is a folder, whose files are named by the first poll that each may have. A file is
replaced in one step, and the disk is waited for. The last one grows until it is large; what it has
of polls that are not sealed is of a seal that was killed, and is replaced.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.pipelines.io.live.live_cuts import REMEDY
from tidemill.pipelines.io.live.sealed_tables import read_sealed, write_sealed

CUTS: Final = "cuts"
"""The kind of cuts (`pipelines.io.live.live_cuts`)."""
REJECTED: Final = "rejected"
MENDED: Final = "mended"
LOST: Final = "lost"
"""Kinds of what polls have beside their rows."""
POLL_NUMBER: Final = "_poll"
"""The column of a poll's number, beside rows."""
_NUMBER: Final = "number"
_GROWS_TO_BYTES: Final = 1 << 20
"""A file is gone on with until it has so many bytes."""


@dataclass(frozen=True)
class PollFiles:
    """The files of a kind.

    Attributes:
        log: The folder of the live log.
        kind: The kind.
    """

    log: Path
    kind: str

    @property
    def folder(self) -> Path:
        """Their folder."""
        return self.log / self.kind

    @property
    def number(self) -> str:
        """The column of the polls' numbers."""
        return _NUMBER if self.kind == CUTS else POLL_NUMBER

    def paths(self) -> list[Path]:
        """Return the files, in order."""
        return sorted(self.folder.glob("*.arrow"))

    def add(self, sealed: int, more: pa.Table | None) -> None:
        """Add rows; the last file grows until it is large.

        Args:
            sealed: The number of the last poll that is sealed: what the files have of later ones is
                of a seal that was killed, and is replaced.
            more: The rows to add; None for none.
        """
        paths = self.paths()
        while paths and int(paths[-1].stem) > sealed:
            paths.pop().unlink()
        last = paths[-1] if paths else None
        if last is not None:
            is_small = last.stat().st_size < _GROWS_TO_BYTES
            there = read_table(last)
            kept = there.filter(pc.less_equal(there.column(self.number), sealed))
            if more is not None and is_small:
                kept = pa.concat_tables([kept, more], promote_options="default")
                more = None
            if len(kept) != len(there):
                self.write(int(last.stem), kept)
        if more is not None:
            self.write(more.column(self.number)[0].as_py(), more)

    def write(self, number: int, table: pa.Table) -> None:
        """Replace a file.

        Args:
            number: The number in its name.
            table: Its rows.
        """
        write_sealed(self.folder / f"{number:012d}.arrow", table)

    def read(self, after: int, until: int) -> Iterator[pa.Table]:
        """Yield the files that may have polls ``(after, until]``.

        Raises:
            DamagedFile: A file is damaged.
        """
        paths = self.paths()
        firsts = [int(path.stem) for path in paths]
        begin = max(bisect.bisect_right(firsts, after + 1) - 1, 0)
        for path in paths[begin : bisect.bisect_right(firsts, until)]:
            yield read_table(path)

    def link(self, other: PollFiles) -> None:
        """Take over the files of another log, as links."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in other.paths():
            os.link(path, self.folder / path.name)

    def copy(self, other: PollFiles, change: Callable[[pa.Table], pa.Table]) -> None:
        """Take over the files of another log.

        Args:
            other: They.
            change: Changes the rows of each.
        """
        for path in other.paths():
            self.write(int(path.stem), change(read_table(path)))


def read_table(path: Path) -> pa.Table:
    """Read a file.

    Raises:
        DamagedFile: It is damaged.
    """
    return read_sealed(path, REMEDY)


def numbered(found: Iterable[tuple[int, pa.RecordBatch | None]]) -> pa.Table | None:
    """Return what polls have beside their rows, each row with the number of its poll.

    Args:
        found: The number of each poll, and what it has; None for nothing.
    """
    tables = [
        pa.Table.from_batches(
            [batch.append_column(POLL_NUMBER, pa.array([number] * batch.num_rows, pa.int64()))]
        )
        for number, batch in found
        if batch is not None
    ]
    return pa.concat_tables(tables, promote_options="default") if tables else None
