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
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.errors import InputError, StoreError
from tidemill.serving.files.segment_names import segment_of, segment_prefix
from tidemill.serving.offline.log import MERGED, OfflineLog, newest_rows, write_part


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
