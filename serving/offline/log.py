"""The change-point log on disk: partitioned Parquet, and how far each shard of it reaches.

    DIRECTORY/date=YYYY-MM-DD/PART.parquet   publications by the UTC day of their event_timestamp
    DIRECTORY/_reached/SHARD-of-SHARDS       the span of instants at which a shard is complete

What is promised:

* A part is written whole or not at all, and one of the same name replaces itself, so whoever
  repeats a write changes nothing. In a part there is one row per (entity, event_timestamp), the
  highest revision, sorted by both.
* Parts may be merged at any time, also while a stream adds to the log and others read it: what a
  join gives is the same before, between and after, and what a segment has added can still be taken
  back (`serving.offline.merge`).
* A shard's log reaches as far as its writer said *after* the rows stood. A writer whose rows do
  not join on is refused (`LostPublications`), as by the online store, so nothing that is missing
  is ever covered by what comes later.

The columns are those of `serving.offline.offline_table`, whatever wrote the rows.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.contract import TIME_MAX, TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import InputError, LostPublications, StoreError
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, offline_path
from tidemill.serving.files.atomic_write import atomic_write, write_text
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.segment_names import segment_of, segment_prefix
from tidemill.serving.offline.offline_table import offline_table

MERGED: Final = "merged.parquet"
"""How the name ends of a file that others were made one of (`serving.offline.merge`)."""

_DATE: Final = "date="
_REACHED: Final = "_reached"
_DAY_US: Final = 86_400_000_000
_LOCK: Final = ".lock"
_ROW_GROUP_ROWS: Final = 131_072


class Reached(NamedTuple):
    """A span of instants at which a log is complete.

    Attributes:
        first_us: The first of them.
        last_us: The last of them.
    """

    first_us: int
    last_us: int


@dataclass(frozen=True)
class OfflineLog:
    """The change-point log of one definition of a view.

    Attributes:
        directory: Where it stands (`features.feast_objects.offline_path`).
    """

    directory: Path

    @staticmethod
    def of(offline_root: Path | str, view: FeatureView) -> OfflineLog:
        """Return the log of a view below the offline root."""
        return OfflineLog(Path(offline_path(str(offline_root), view)))

    def write(
        self, view: FeatureView, publications: pa.RecordBatch | pa.Table, part: str
    ) -> list[Path]:
        """Write publications as one part: a file for each day that they are of.

        Args:
            view: The view.
            publications: Publications of it (`serving.publications.schema`), ``(rows,)``.
            part: The part's name; the same part is replaced.

        Returns:
            The files.

        Raises:
            InputError: The batch is not of the view's schema, or the part's name is one of a
                segment of a stream (`append` gives those), which may be taken back.
        """
        if segment_of(part) is not None:
            raise InputError(
                f"{part!r} is the name of a part that segment {segment_of(part)} of a stream has "
                "written; begin it with something else than digits"
            )
        return self.write_table(view.entity.join_key, offline_table(view, publications), part)

    def write_table(self, join_key: str, table: pa.Table, part: str) -> list[Path]:
        """Do what `write` does, for rows that have the log's own columns already.

        Args:
            join_key: The column of the entity's key.
            table: As `serving.offline.offline_table` makes it, ``(rows,)``.
            part: The part's name.

        Raises:
            InputError: The part's name is not one of a file.
        """
        if not part or os.sep in part or part.startswith((".", "_")):
            raise InputError(f"{part!r} cannot name a part of the offline log {self.directory}")
        newest = newest_rows(join_key, table)
        times: Int64Array = newest.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
        days = times // _DAY_US
        files = []
        for day in np.unique(days).tolist():
            rows = newest if days[0] == days[-1] == day else newest.filter(pa.array(days == day))
            file = self.day(str(np.datetime64(day, "D"))) / f"{part}.parquet"
            write_part(file, rows)
            files.append(file)
        return files

    def files(self, first_us: int, last_us: int) -> list[Path]:
        """Return the files that may hold rows of ``[first_us, last_us]``, by day and part.

        Files directly in the directory belong to no day, and to every span. A merge may remove some
        at any time: then the same question has another answer, of the same rows.
        """
        found = self._list("*.parquet", first_us, last_us)
        # Whoever lists a folder while a merge makes one file of others may see neither: the new
        # one came too late, the others were gone already. A second look has the new one.
        while not set(self._list(f"*{MERGED}", first_us, last_us)) <= set(found):
            found = self._list("*.parquet", first_us, last_us)
        return found

    def _list(self, pattern: str, first_us: int, last_us: int) -> list[Path]:
        first, last = (_date(time) for time in (first_us, last_us))
        found = sorted(self.directory.glob(pattern))
        for folder in self._folders():
            if first <= folder.name.removeprefix(_DATE) <= last:
                found += sorted(folder.glob(pattern))
        return found

    def schema(self) -> pa.Schema:
        """Return the columns of the log's files.

        Raises:
            StoreError: There is none.
        """
        while (file := next(self._some_file(), None)) is not None:
            try:
                return pq.read_schema(file)
            except FileNotFoundError:  # merged with others since
                continue
        raise StoreError(
            f"offline log {self.directory}: there is no file in it; write history with "
            "`tidemill backfill --publish`"
        )

    def _some_file(self) -> Iterator[Path]:
        yield from self.directory.glob("*.parquet")
        yield from self.directory.glob(f"{_DATE}*/*.parquet")

    def reached(self) -> Reached | None:
        """Return the span of instants at which the whole log is complete.

        Returns:
            What all shards cover; a span without an instant while one has not reported; None where
            no writer ever said (rows that came by Feast's own write path).
        """
        spans = self._spans()
        if not spans:
            return None
        shards = int(next(iter(spans))[-5:])
        if len(spans) < shards:
            return Reached(TIME_MAX, TIME_MIN)
        return Reached(
            max(span.first_us for span in spans.values()),
            min(span.last_us for span in spans.values()),
        )

    def append(
        self,
        view: FeatureView,
        publications: pa.RecordBatch | pa.Table,
        *,
        shard: int,
        shards: int,
        since_us: int,
        until_us: int,
        segment: int = 0,
    ) -> None:
        """Write every change point that advances of a shard made, and then how far it reaches.

        A repeated call replaces its own files. An engine that does releases again may put others
        of them into one call, so a part is named by its content too.

        Args:
            view: The view.
            publications: Publications of it (`serving.publications.schema`), ``(rows,)``.
            shard: The shard.
            shards: How many shards the view has.
            since_us: As for `reach`.
            until_us: As for `reach`.
            segment: The segment of the stream that appends; see `cut_back`.

        Raises:
            InputError: The batch is not of the view's schema.
            LostPublications: The shard's log ends before ``since_us``; nothing is written.
            StoreError: The log has another number of shards; nothing is written.
        """
        self._check(shard, shards, since_us)
        if publications.num_rows:
            rows = newest_rows(view.entity.join_key, offline_table(view, publications))
            digest = hashlib.sha256()
            for batch in rows.combine_chunks().to_batches():
                digest.update(batch.serialize())
            name = f"{_shard_name(shard, shards)}-{until_us:020d}-{digest.hexdigest()[:16]}"
            part = f"{segment_prefix(segment)}{name}"
            self.write_table(view.entity.join_key, rows, part)
        self.reach(shard, shards, since_us=since_us, until_us=until_us)

    def reach(self, shard: int, shards: int, *, since_us: int, until_us: int) -> None:
        """Say that a shard's log is complete over a span of instants; its rows must stand already.

        Args:
            shard: The shard.
            shards: How many shards the view has.
            since_us: From this instant on; `TIME_MIN` for a log of all events there ever were.
            until_us: Up to this one. A span that ends before the shard's log does changes nothing.

        Raises:
            LostPublications: The shard's log ends before ``since_us``.
            StoreError: The log has another number of shards.
        """
        folder = self.directory / _REACHED
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stands = self._check(shard, shards, since_us)
            if stands is None or stands.last_us < until_us:
                first = since_us if stands is None else stands.first_us
                _write_span(folder / _shard_name(shard, shards), first, until_us)

    def cut_back(self, segment: int, reached_us: Sequence[int]) -> bool:
        """Take back what a stream has appended in a segment and in those after it.

        For a segment that is done again, or a stream that starts over. Killed in between, the log
        says that it reaches less far than its rows, and the next call goes on.

        Args:
            segment: The first segment to take back.
            reached_us: How far each shard's log reached before.

        Returns:
            Whether the log then ends just there in every shard, so that a stream can go on with
            it: not where there is none, or where it ends elsewhere.
        """
        if not self.directory.exists():
            return False
        with self.alone():
            return self._cut_back(segment, reached_us)

    def _cut_back(self, segment: int, reached_us: Sequence[int]) -> bool:
        spans, shards = self._spans(), len(reached_us)
        for shard, last_us in enumerate(reached_us):
            name = _shard_name(shard, shards)
            if name in spans and spans[name].last_us > last_us:
                _write_span(self.directory / _REACHED / name, spans[name].first_us, last_us)
        for part in self.directory.glob(f"{_DATE}*/*.parquet"):
            of = segment_of(part.name)
            if of is not None and of >= segment:
                part.unlink()
        ends = {_shard_name(n, shards): last_us for n, last_us in enumerate(reached_us)}
        return {name: span.last_us for name, span in self._spans().items()} == ends

    def day(self, date: str) -> Path:
        """Return the folder of a day, ``YYYY-MM-DD``."""
        return self.directory / f"{_DATE}{date}"

    def days(self) -> list[str]:
        """Return the days that there are rows of, ``YYYY-MM-DD``, in order."""
        return sorted(folder.name.removeprefix(_DATE) for folder in self._folders())

    def ended_before(self) -> str | None:
        """Return the day that the slowest shard has reached: those before it get no more rows.

        Returns:
            ``YYYY-MM-DD``; None where no writer ever said.
        """
        reached = self.reached()
        return None if reached is None else _date(reached.last_us)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else removes files of the log, and keep them waiting.

        Whoever adds to the log or reads it needs not wait; its directory's parent must be there.
        """
        # Beside the directory, since `take_over` replaces that as a whole.
        with self.directory.with_name(f"{self.directory.name}{_LOCK}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def take_over(self, other: OfflineLog) -> None:
        """Put another log, beside this one and written to its end, in the place of this one.

        Whoever reads meanwhile reads the old log, or none for a moment, never a part of one.
        """
        with self.alone():
            shutil.rmtree(self.directory, ignore_errors=True)
            other.directory.replace(self.directory)

    def _folders(self) -> list[Path]:
        return sorted(self.directory.glob(f"{_DATE}*"))

    def _spans(self) -> dict[str, Reached]:
        spans = {}
        for file in (self.directory / _REACHED).glob("?????-of-?????"):
            with reading(file, "write the log again with `tidemill backfill --publish`"):
                spans[file.name] = Reached(*map(int, file.read_text().split()))
        return spans

    def _check(self, shard: int, shards: int, since_us: int) -> Reached | None:
        spans = self._spans()
        for name in spans:
            if name[-5:] != f"{shards:05d}":
                raise StoreError(
                    f"offline log {self.directory}: it has {int(name[-5:])} shards, and a writer "
                    f"has {shards}; write it again with `tidemill backfill --publish`"
                )
        stands = spans.get(_shard_name(shard, shards))
        if stands is not None and stands.last_us < since_us:
            raise LostPublications(
                f"offline log {self.directory}, shard {shard}: it ends at {stands.last_us}, and "
                f"publications go on from {since_us}; what is between is missing. Write the log "
                "again with `tidemill backfill --publish`"
            )
        return stands


def newest_rows(join_key: str, table: pa.Table) -> pa.Table:
    """Sort rows by entity and event_timestamp; of equal ones keep the highest revision."""
    names = (join_key, EVENT_TIMESTAMP, REVISION)
    table = table.take(pc.sort_indices(table, [(name, "ascending") for name in names]))
    if len(table) < 2:
        return table
    last = np.zeros(len(table), np.bool_)
    last[-1] = True
    for name in names[:2]:
        column = table.column(name)
        differs = pc.not_equal(column.slice(1), column.slice(0, len(table) - 1))
        last[:-1] |= differs.to_numpy(zero_copy_only=False)
    return table if last.all() else table.filter(pa.array(last))


def write_part(file: Path, rows: pa.Table, *, durable: bool = False) -> None:
    """Write a file of a log whole or not at all (`serving.files.atomic_write`)."""
    with atomic_write(file, durable=durable) as unfinished:
        pq.write_table(rows, unfinished, row_group_size=_ROW_GROUP_ROWS, compression="zstd")


def _write_span(file: Path, first_us: int, last_us: int) -> None:
    write_text(file, f"{first_us} {last_us}")


def _shard_name(shard: int, shards: int) -> str:
    return f"{shard:05d}-of-{shards:05d}"


def _date(time_us: int) -> str:
    # Beyond the calendar there are no rows, and its first and last day bound the rest.
    day = min(max(time_us // _DAY_US, _FIRST_DAY), _LAST_DAY)
    return str(np.datetime64(day, "D"))


_EPOCH: Final = datetime.date(1970, 1, 1)
_FIRST_DAY: Final = (datetime.date.min - _EPOCH).days
_LAST_DAY: Final = (datetime.date.max - _EPOCH).days
