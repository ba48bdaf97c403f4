"""The change-point log on disk: partitioned Parquet, and how far each shard of it reaches.

    DIRECTORY/date=YYYY-MM-DD/PART.parquet   publications by the UTC day of their event_timestamp
    DIRECTORY/_reached/SHARD-of-SHARDS       the span of instants at which a shard is complete

It promises:

* A part is written atomically. A repeated `write` replaces its part; a repeated `append` must be
  equal, and changes nothing. A part has one row per (entity, event_timestamp), the highest
  revision, sorted by both.
* Parts may be merged at any time, also while a stream adds to the log and others read it: a join
  gives the same before, during and after, and the parts that a segment has added can still be
  removed (`serving.offline.merge`).
* A writer extends a shard's span only *after* it has written the rows. A writer whose rows do not
  continue from the end of the span is refused (`LostPublications`), as by the online store, so
  later rows never hide a gap.

The columns are always those of `serving.offline.offline_table`.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.contract import TIME_MAX, TIME_MIN, Int64Array, write_instant
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import InputError, LostPublications, StoreError
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, offline_path
from tidemill.serving.files.atomic_write import atomic_write, write_text
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.segment_names import segment_of, segment_prefix
from tidemill.serving.files.write_once import write_once
from tidemill.serving.offline.offline_table import offline_table

MERGED: Final = "merged.parquet"
"""The end of the name of a merged file (`serving.offline.merge`)."""

_DATE: Final = "date="
_REACHED: Final = "_reached"
_DAY_US: Final = 86_400_000_000
_LOCK: Final = ".lock"
_ROW_GROUP_ROWS: Final = 131_072


class Span(NamedTuple):
    """A span of instants, both ends included; int64 microseconds UTC."""

    first_us: int
    last_us: int


@dataclass(frozen=True)
class OfflineLog:
    """The change-point log of one definition of a view.

    Attributes:
        directory: Its directory (`features.feast_objects.offline_path`).
    """

    directory: Path

    @staticmethod
    def of(offline_root: Path | str, view: FeatureView) -> OfflineLog:
        """Return the log of a view below the offline root."""
        return OfflineLog(Path(offline_path(str(offline_root), view)))

    def write(
        self, view: FeatureView, publications: pa.RecordBatch | pa.Table, part: str
    ) -> list[Path]:
        """Write publications as one part, which the same part replaces; return a file for each day.

        Raises:
            InputError: The batch does not have the view's schema, or the part's name is one of a
                segment of a stream, which `cut_back` may remove (`append` makes those names).
        """
        if segment_of(part) is not None:
            raise InputError(
                f"{part!r} is the name of a part that segment {segment_of(part)} of a stream has "
                "written; begin it with something else than digits"
            )
        return self.write_table(view.entity.join_key, offline_table(view, publications), part)

    def write_table(self, join_key: str, table: pa.Table, part: str) -> list[Path]:
        """Write a part as `write` does, from rows that already have the log's columns.

        Raises:
            InputError: The part's name cannot be the name of a file.
        """
        if not part or os.sep in part or part.startswith((".", "_")):
            raise InputError(f"{part!r} cannot name a part of the offline log {self.directory}")
        files = []
        for file, rows in self._by_day(join_key, table, part):
            write_part(file, rows)
            files.append(file)
        return files

    def _by_day(self, join_key: str, table: pa.Table, part: str) -> Iterator[tuple[Path, pa.Table]]:
        """Yield the files of a part, and the rows of each."""
        newest = newest_rows(join_key, table)
        times: Int64Array = newest.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
        days = times // _DAY_US
        for day in np.unique(days).tolist():
            mine = days == day
            rows = newest if mine.all() else newest.filter(pa.array(mine))
            yield self.day(str(np.datetime64(day, "D"))) / f"{part}.parquet", rows

    def files(self, first_us: int, last_us: int) -> list[Path]:
        """Return the files that may hold rows of ``[first_us, last_us]``, by day and part.

        Files directly in the directory belong to no day, and to every span. A merge may remove
        some at any time: then list again, for other files with the same rows.
        """
        found = self._list("*.parquet", first_us, last_us)
        # A listing during a merge may have neither the merged file, which was not there yet, nor
        # the files that it replaces, which were removed already: then list again.
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
            StoreError: There is no file.
        """
        while file := next(self._some_file(), None):
            try:
                return pq.read_schema(file)
            except FileNotFoundError:  # a merge has removed it
                continue
        raise StoreError(
            f"offline log {self.directory}: there is no file in it; write history with "
            "`tidemill backfill --publish`"
        )

    def _some_file(self) -> Iterator[Path]:
        yield from self.directory.glob("*.parquet")
        yield from self.directory.glob(f"{_DATE}*/*.parquet")

    def reached(self) -> Span | None:
        """Return the span of instants at which the whole log is complete: all shards cover it.

        The span is empty until all shards have reported, and None if no shard has (all rows
        came by Feast's own write path).
        """
        spans = self._spans()
        if not spans:
            return None
        shards = int(next(iter(spans))[-5:])
        if len(spans) < shards:
            return Span(TIME_MAX, TIME_MIN)
        return Span(
            max(span.first_us for span in spans.values()),
            min(span.last_us for span in spans.values()),
        )

    def append(
        self,
        view: FeatureView,
        releases: Mapping[int, pa.RecordBatch | pa.Table],
        *,
        shard: int,
        shards: int,
        since_us: int,
        until_us: int,
        segment: int = 0,
    ) -> None:
        """Write the change points of successive releases of a shard, and then extend its span.

        Each release is a part that is named by the release's number. So an engine that repeats
        releases, and groups them in other calls, finds the files that it has written.

        Args:
            view: The view.
            releases: By the number of the release: publications of the view
                (`serving.publications.schema`), ``(rows,)``.
            shard: The shard.
            shards: Number of shards of the view.
            since_us: As for `reach`.
            until_us: As for `reach`.
            segment: The segment of the stream that appends; see `cut_back`.

        Raises:
            InputError: A batch does not have the view's schema.
            OutputConflict: A release was written before with other rows.
            LostPublications: The shard's log ends before ``since_us``; nothing is written.
            StoreError: The log has another number of shards; nothing is written.
        """
        self._check(shard, shards, since_us)
        for number, publications in releases.items():
            name = f"{segment_prefix(segment)}{_shard_name(shard, shards)}-{number:012d}"
            table = offline_table(view, publications)
            for file, rows in self._by_day(view.entity.join_key, table, name):
                with write_once(file, "run `tidemill stream` again") as unfinished:
                    _write(unfinished, rows)
        self.reach(shard, shards, since_us=since_us, until_us=until_us)

    def reach(self, shard: int, shards: int, *, since_us: int, until_us: int) -> None:
        """Record that a shard's log is complete over a span; write the span's rows first.

        Args:
            shard: The shard.
            shards: Number of shards of the view.
            since_us: First instant; `TIME_MIN` for a log of all events there ever were.
            until_us: Last instant. If the shard's log reaches further already, nothing changes.

        Raises:
            LostPublications: The shard's log ends before ``since_us``.
            StoreError: The log has another number of shards.
        """
        folder = self.directory / _REACHED
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            span = self._check(shard, shards, since_us)
            if span is None or span.last_us < until_us:
                first = since_us if span is None else span.first_us
                _write_span(folder / _shard_name(shard, shards), first, until_us)

    def ends(self) -> list[int]:
        """Return the last instant of each shard's span, by shard; empty if one has not reported."""
        spans = self._spans()
        names = sorted(spans)
        if not names or len(names) != int(names[0][-5:]):
            return []
        return [spans[name].last_us for name in names]

    def link_to(self, other: OfflineLog) -> None:
        """Make another log with the same files, as links to them; it must not exist.

        Files are only replaced and removed as a whole, so the two change independently.
        """
        with self.alone():
            shutil.copytree(self.directory, other.directory, copy_function=os.link)

    def cut_back(self, segment: int, reached_us: Sequence[int]) -> bool:
        """Remove the parts that a stream has appended in a segment and in later ones.

        This prepares to repeat a segment, or to start the stream again. If it is killed half-way,
        the recorded span ends before the last rows, and the next call continues.

        Args:
            segment: The first segment to remove.
            reached_us: How far each shard's log reached before.

        Returns:
            Whether the log exists and then ends exactly there in every shard, so that a stream can
            append to it.
        """
        if not self.directory.exists():
            return False
        ends = {_shard_name(n, len(reached_us)): last_us for n, last_us in enumerate(reached_us)}
        with self.alone():
            for name, span in self._spans().items():
                if span.last_us > ends.get(name, span.last_us):
                    _write_span(self.directory / _REACHED / name, span.first_us, ends[name])
            for part in self.directory.glob(f"{_DATE}*/*.parquet"):
                of = segment_of(part.name)
                if of is not None and of >= segment:
                    part.unlink()
            return {name: span.last_us for name, span in self._spans().items()} == ends

    def day(self, date: str) -> Path:
        """Return the folder of a day, ``YYYY-MM-DD``."""
        return self.directory / f"{_DATE}{date}"

    def days(self) -> list[str]:
        """Return the days that have rows, ``YYYY-MM-DD``, in order."""
        return sorted(folder.name.removeprefix(_DATE) for folder in self._folders())

    def ended_before(self) -> str | None:
        """Return the day that the slowest shard has reached: earlier days get no more rows.

        It is ``YYYY-MM-DD``; None if no shard has reported.
        """
        reached = self.reached()
        return None if reached is None else _date(reached.last_us)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exclude other processes that remove files of the log; they wait.

        Writers and readers need not wait; the parent of the log's directory must exist.
        """
        # Beside the directory, because `take_over` replaces the directory.
        with self.directory.with_name(f"{self.directory.name}{_LOCK}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _folders(self) -> list[Path]:
        return sorted(self.directory.glob(f"{_DATE}*"))

    def _spans(self) -> dict[str, Span]:
        spans = {}
        for file in (self.directory / _REACHED).glob("?????-of-?????"):
            with reading(file, "write the log again with `tidemill backfill --publish`"):
                spans[file.name] = Span(*map(int, file.read_text().split()))
        return spans

    def _check(self, shard: int, shards: int, since_us: int) -> Span | None:
        spans = self._spans()
        for name in spans:
            if name[-5:] != f"{shards:05d}":
                raise StoreError(
                    f"offline log {self.directory}: it has {int(name[-5:])} shards, and a writer "
                    f"has {shards}; write it again with `tidemill backfill --publish`"
                )
        span = spans.get(_shard_name(shard, shards))
        if span is not None and span.last_us < since_us:
            raise LostPublications(
                f"offline log {self.directory}, shard {shard}: it ends at "
                f"{write_instant(span.last_us)}, and publications continue from "
                f"{write_instant(since_us)}; those between are missing. Write the "
                "log again with `tidemill backfill --publish`"
            )
        return span


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


def rows_digest(rows: pa.Table) -> str:
    """Return the first 16 hexadecimal digits of the rows' SHA-256."""
    digest = hashlib.sha256()
    for batch in rows.combine_chunks().to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def write_part(file: Path, rows: pa.Table, *, durable: bool = False) -> None:
    """Write a file of a log atomically (`serving.files.atomic_write`)."""
    with atomic_write(file, durable=durable) as unfinished:
        _write(unfinished, rows)


def _write(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path, row_group_size=_ROW_GROUP_ROWS, compression="zstd")


def _write_span(file: Path, first_us: int, last_us: int) -> None:
    write_text(file, f"{first_us} {last_us}")


def _shard_name(shard: int, shards: int) -> str:
    return f"{shard:05d}-of-{shards:05d}"


def _date(time_us: int) -> str:
    # There are no rows outside the calendar, so its first and last day are the bounds.
    day = min(max(time_us // _DAY_US, _FIRST_DAY), _LAST_DAY)
    return str(np.datetime64(day, "D"))


_EPOCH: Final = datetime.date(1970, 1, 1)
_FIRST_DAY: Final = (datetime.date.min - _EPOCH).days
_LAST_DAY: Final = (datetime.date.max - _EPOCH).days
