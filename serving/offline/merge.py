"""Merging the change-point log: a stream leaves a file for each release, shard and day.

What is promised:

* What a join gives is the same before, between and after. What is merged is on the disk before the
  parts go; killed in between, rows stand twice, which no join sees, and the next merge mends it.
* What a segment of a stream has added can still be taken back (`OfflineLog.cut_back`): it becomes a
  file of its own, with the segment in its name, and never one with what others have added.
* A stream may add to the log meanwhile, also to the same day: a part that comes while a day is
  merged stays as it is, until the next merge. Those who remove files (merges, `cut_back`,
  `take_over`) wait for each other; those who add or read do not wait. Whoever reads and finds a
  file gone lists them again (`serving.offline.join`).
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
    """What merging a day comes to.

    Attributes:
        before: How many files the day had.
        after: How many it has then.
    """

    before: int
    after: int


def planned_merge(log: OfflineLog, date: str) -> Merge:
    """Tell what `merge_day` would come to; nothing is changed."""
    return _outcome(_parts_by_merged(log.day(date)))


def merge_day(log: OfflineLog, join_key: str, date: str) -> Merge:
    """Make one file of the parts that a segment of a stream has added to a day; one of all else.

    A day that gets no more rows (`OfflineLog.ended_before`) needs it once; another is written
    whole each time.

    Args:
        log: The log.
        join_key: The column of the entity's key.
        date: The day, ``YYYY-MM-DD``; its rows of one segment are in memory together.

    Returns:
        What became of its files.

    Raises:
        StoreError: A file is not a whole one.
        InputError: A file has other columns than the others.
    """
    if not log.directory.exists():
        return Merge(0, 0)
    with log.alone():
        folder = log.day(date)
        # Nobody else writes these: whoever did was killed.
        for dead in folder.glob(f"*{Path(MERGED).stem}.*.unfinished"):
            dead.unlink()
        by_merged = _parts_by_merged(folder)
        for merged, parts in by_merged.items():
            if len(parts) > 1:
                # Once the parts are gone, nothing else says what they said.
                write_part(merged, newest_rows(join_key, _read_alike(parts)), durable=True)
                for part in parts:
                    if part != merged:
                        part.unlink()
        return _outcome(by_merged)


def _parts_by_merged(folder: Path) -> dict[Path, list[Path]]:
    """Return a day's files by the one that is made of them."""
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
                raise  # the system refuses; Arrow's own have no number
            why = " ".join(str(error).replace(str(part), part.name).split())[:120]
            raise StoreError(
                f"offline log: {part} is not a whole Parquet file ({why}), so its day is "
                "not merged; write the log again with `tidemill backfill --publish`"
            ) from error
        first, found = tables[0].schema, tables[-1].schema
        if {(f.name, f.type) for f in found} != {(f.name, f.type) for f in first}:
            raise InputError(
                f"offline log: {part} has the columns {', '.join(found.names)}, and {parts[0]} has "
                f"{', '.join(first.names)}, or they are of other types: the files are not of one "
                "view; take the wrong ones out"
            )
    names = tables[0].column_names
    # Feast's own write path (`written-...`) may order columns its way.
    return pa.concat_tables([table.select(names) for table in tables])
