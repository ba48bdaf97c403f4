"""Merging the change-point log: a stream leaves a file for each release, shard and day.

It promises:

* A join gives the same before, during and after. The merged file is on the disk before its parts
  are removed; if the process is killed in between, rows exist twice, but a join returns them once,
  and the next merge removes the second copy.
* The rows that a segment of a stream has added can still be removed (`OfflineLog.cut_back`): they
  become a file of their own, with the segment in its name.
* A stream may add to the log meanwhile, also to the same day: a part that is added during a merge
  waits for the next merge. Processes that remove files (merges, `cut_back`, `take_over`) wait for
  each other; writers and readers do not wait. A reader that finds a file missing lists the files
  again (`serving.offline.join`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.errors import InputError, StoreError
from tidemill.serving.files import segment_names
from tidemill.serving.files.segment_names import (
    runs_of,
    segment_of,
    segment_prefix,
    segments_of,
    since_prefix,
)
from tidemill.serving.offline.log import MERGED, OfflineLog, newest_rows, write_part

_LARGE_BYTES: Final = 256 << 20
"""Files of so many bytes are not joined with others."""


class Merge(NamedTuple):
    """The result of merging a day.

    Attributes:
        before: Number of files before.
        after: Number of files after.
    """

    before: int
    after: int


def planned_merge(log: OfflineLog, date: str) -> Merge:
    """Return the result that `merge_day` would have; nothing is changed."""
    return _outcome(_parts_by_merged(log.day(date)))


def merge_day(log: OfflineLog, join_key: str, date: str) -> Merge:
    """Merge the parts of a day, ``YYYY-MM-DD``: a file per segment of a stream, one of the rest.

    A day that gets no more rows (`OfflineLog.ended_before`) is merged once; another day is written
    again completely each time. The rows of one file are in memory together.

    Raises:
        StoreError: A file is not a complete Parquet file.
        InputError: A file has other columns than the others.
    """
    if not log.directory.exists():
        return Merge(0, 0)
    with log.alone():
        folder = log.day(date)
        # Left by a merge that was killed: no other process writes files of these names.
        for dead in folder.glob(f"*{Path(MERGED).stem}.*.unfinished"):
            dead.unlink()
        by_merged = _parts_by_merged(folder)
        for merged, parts in by_merged.items():
            if len(parts) > 1:
                # Durable, because the parts are removed next.
                write_part(merged, newest_rows(join_key, _read_alike(parts)), durable=True)
                for part in parts:
                    if part != merged:
                        part.unlink()
        return _outcome(by_merged)


class SegmentJoiner:
    """Joins what a stream has added to a log, segment after segment, while it goes on.

    The files of a segment that counts become one, and `segment_names.TOGETHER` files of equally
    many segments become one. The promises are those of a merge (see the module).

    Args:
        log: The log.
        join_key: The join key of its view's entity.
    """

    def __init__(self, log: OfflineLog, join_key: str) -> None:
        self._log, self._join_key = log, join_key
        self._seen: dict[Path, int] = {}
        """Days in which nothing is left to join, and when they were last changed."""

    def join(self, until: int) -> None:
        """Join the files of the segments up to one, of the days that have changed.

        Args:
            until: The last segment that counts: nothing is added to it any more.

        Raises:
            StoreError: A file is not a complete Parquet file.
            InputError: A file has other columns than the others.
        """
        if not self._log.directory.exists():
            return
        for date in self._log.days():
            folder = self._log.day(date)
            changed = folder.stat().st_mtime_ns
            if self._seen.get(folder) == changed:
                continue
            with self._log.alone():
                is_done = self._join_day(folder, until)
            if is_done:
                self._seen[folder] = folder.stat().st_mtime_ns

    def _join_day(self, folder: Path, until: int) -> bool:
        """Join the files of a day; tell whether it has none of later segments."""
        later = False
        parts: dict[int, list[Path]] = {}
        for part in sorted(folder.glob("*.parquet")):
            if (found := segments_of(part.name)) is not None and found[0] == found[1]:
                later |= found[1] > until
                parts.setdefault(found[1], []).append(part)
        for segment, of_it in sorted(parts.items()):
            if segment <= until:
                self._write(folder / f"{segment_prefix(segment)}{MERGED}", of_it)
        size = 1
        while True:
            files = sorted(
                (found, part)
                for part in folder.glob(f"*{MERGED}")
                if (found := segments_of(part.name)) is not None and found[1] <= until
            )
            if all(_count(file) < size for file in files):
                return not later
            for run in runs_of(files, _count, lambda file, _: _is_small(file[1]), size):
                (first, _), (_, last) = run[0][0], run[-1][0]
                joined = folder / f"{since_prefix(first, last)}-{MERGED}"
                self._write(joined, [part for _, part in run])
            size *= segment_names.TOGETHER

    def _write(self, joined: Path, parts: Sequence[Path]) -> None:
        if list(parts) == [joined]:
            return
        # Durable, because the parts are removed next.
        write_part(joined, newest_rows(self._join_key, _read_alike(parts)), durable=True)
        for part in parts:
            if part != joined:
                part.unlink()


def _count(file: tuple[tuple[int, int], Path]) -> int:
    (first, last), _ = file
    return last - first + 1


def _is_small(part: Path) -> bool:
    return part.stat().st_size < _LARGE_BYTES


def _parts_by_merged(folder: Path) -> dict[Path, list[Path]]:
    """Return a day's files by the file that they are merged into."""
    found: dict[Path, list[Path]] = {}
    for part in sorted(folder.glob("*.parquet")):
        segment = segment_of(part.name)
        prefix = "" if segment is None else segment_prefix(segment)
        found.setdefault(folder / f"{prefix}{MERGED}", []).append(part)
    return found


def _outcome(by_merged: dict[Path, list[Path]]) -> Merge:
    return Merge(sum(map(len, by_merged.values())), len(by_merged))


def _read_alike(parts: Sequence[Path]) -> pa.Table:
    tables = []
    for part in parts:
        try:
            tables.append(pq.ParquetFile(part).read())
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the operating system; Arrow's own have no number
            why = " ".join(str(error).replace(str(part), part.name).split())[:120]
            raise StoreError(
                f"{part} is not a complete Parquet file ({why}), so its day is not merged; "
                "write the log again with `tidemill backfill --publish`"
            ) from error
        first, found = tables[0].schema, tables[-1].schema
        if {(f.name, f.type) for f in found} != {(f.name, f.type) for f in first}:
            raise InputError(
                f"offline log: {part} has the columns {', '.join(found.names)}, and {parts[0]} has "
                f"{', '.join(first.names)}, or they are of other types: the files are not of one "
                "view; take the wrong ones out"
            )
    names = tables[0].column_names
    # Feast's own write path (`written-...`) may order the columns otherwise.
    return pa.concat_tables([table.select(names) for table in tables])
