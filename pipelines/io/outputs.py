"""The outputs of a stream in a folder: parts, joined files, and how both are read.

| name | holds |
|---|---|
| ``00012-TOKEN.part`` | outputs of segment 12 (`pipelines.io.output_parts`) |
| ``00012-TOKEN.joining`` | the same, of which a joined file is being made |
| ``00012-all.parquet`` | outputs of segment 12 |
| ``00064-since-00033.parquet`` | outputs of the segments 33 to 64 |
| ``00012-PLACE.parquet`` | one output of segment 12: versions without parts wrote those |

The promises:

* Whatever is joined meanwhile, and wherever a join was killed, a reader sees every output once.
* Outputs are read by segment, and within one by their names. A repeated output must be the same,
  apart from declared stamps of the wall clock, and the first one counts.
* A joined file is on the disk before it is seen. It has the name of each row's output and its
  segment in the columns `OUTPUT` and `SEGMENT`, so an output that comes after its segment was
  joined is known too.
* What is joined again are files of equally many segments, so a stream that runs for ever leaves a
  number of files that grows with the logarithm of its segments, and with its size.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.errors import OutputConflict
from tidemill.pipelines.io.batch_bytes import batch_bytes
from tidemill.pipelines.io.output_parts import JOINING, PART, REMEDY, Output, read_part
from tidemill.serving.files import segment_names
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.segment_names import (
    runs_of,
    segment_prefix,
    segments_of,
    since_prefix,
)

OUTPUT: Final = "_output"
"""The column of joined files with the name of each row's output."""
SEGMENT: Final = "_segment"
"""Their column with its segment."""
_LARGE_BYTES: Final = 256 << 20
"""Files of so many bytes in all stay as they are."""
_GROUP_ROWS: Final = 65_536
"""Rows of a row group of a joined file."""
_DECODED: Final = 64
"""So many appends are kept decoded."""
_PARTS: Final = b"tidemill.parts"
"""Where a joined file says of which parts it was made."""
_ALL: Final = re.compile(r"\d{5,}-all\.parquet")
_SINCE: Final = re.compile(r"\d{5,}-since-\d{5,}\.parquet")


class OutputFile(NamedTuple):
    """A file with outputs.

    Attributes:
        first: The first segment whose outputs it holds.
        last: The last one.
        path: Its path.
        is_joined: Whether it was made of parts.
    """

    first: int
    last: int
    path: Path
    is_joined: bool

    @property
    def is_part(self) -> bool:
        """Whether it is a part."""
        return self.path.suffix != ".parquet"

    @property
    def segments(self) -> int:
        """The number of segments."""
        return self.last - self.first + 1

    def holds(self, other: OutputFile) -> bool:
        """Tell whether its segments are among those of this joined file."""
        return self.is_joined and self.first <= other.first and other.last <= self.last


def _output_file(path: Path) -> OutputFile | None:
    if path.suffix not in (PART, JOINING, ".parquet"):
        return None
    first, last = segments_of(path.name) or (0, 0)
    is_joined = _SINCE.fullmatch(path.name) or _ALL.fullmatch(path.name)
    return OutputFile(first, last, path, bool(is_joined))


_Opened: TypeAlias = "tuple[OutputFile, _Parts | pq.ParquetFile | None]"


@dataclass(frozen=True)
class OutputFolder:
    """A folder of a stream's outputs.

    Attributes:
        path: The folder; it need not exist.
        stamps: Columns of the wall clock: a repeated output may have other values in them.
    """

    path: Path
    stamps: tuple[str, ...] = ()

    def files(self, since: int = 0, until: int | None = None) -> list[OutputFile]:
        """Return the files, by segment and name, but for joined ones that were joined again.

        Args:
            since: The first segment that is wanted.
            until: The last one; None for all.
        """
        found = self._all_files()
        wanted = [
            file
            for file in found
            if file.last >= since
            and (until is None or file.first <= until)
            and not _is_replaced(file, found)
        ]
        return sorted(wanted, key=_order)

    def _all_files(self) -> list[OutputFile]:
        if not self.path.is_dir():
            return []
        return [file for path in self.path.iterdir() if (file := _output_file(path)) is not None]

    def has_any(self) -> bool:
        """Tell whether there is an output."""
        with ExitStack() as stack:
            return any(
                opened.rows > 0 if isinstance(opened, _Parts) else True
                for _, opened in self._opened(stack, 0, None)
            )

    def tables(
        self,
        columns: Sequence[str] | None = None,
        since: int = 0,
        until: int | None = None,
        optional: Sequence[str] = (),
    ) -> Iterator[tuple[OutputFile, pa.Table]]:
        """Yield the outputs, file by file, and those in the parts of a segment together.

        Args:
            columns: The columns; None for all of the outputs.
            since: The first segment that is wanted.
            until: The last one; None for all.
            optional: Further columns, where a file has them.

        Yields:
            A file (of a segment's parts, the first) and its rows.

        Raises:
            OutputConflict: An output was repeated with other rows.
            DamagedFile, DamagedState: A file does not hold what was written.
        """
        with ExitStack() as stack:
            for file, opened in self._opened(stack, since, until):
                if isinstance(opened, _Parts):
                    table = opened.table()
                    if table is None:
                        continue
                    with reading(file.path, REMEDY):
                        found = table.select(_wanted(columns, optional, table.column_names))
                else:
                    with reading(file.path, REMEDY):
                        source = pq.ParquetFile(file.path) if opened is None else opened
                        names = _wanted(columns, optional, source.schema_arrow.names)
                        found = _of_segments(file, source, names, since, until)
                yield file, found.replace_schema_metadata(None)

    def read(
        self, columns: Sequence[str] | None = None, since: int = 0, until: int | None = None
    ) -> pa.Table | None:
        """Read all outputs; None if there are none. Arguments and errors as for `tables`."""
        found = [table for _, table in self.tables(columns, since, until)]
        with reading(self.path, REMEDY):
            return pa.concat_tables(found) if found else None

    def count(self) -> int:
        """Return the number of rows of all outputs; errors as for `tables`."""
        rows = 0
        with ExitStack() as stack:
            for file, opened in self._opened(stack, 0, None):
                if isinstance(opened, _Parts):
                    rows += opened.rows
                else:
                    with reading(file.path, REMEDY):
                        source = pq.ParquetFile(file.path) if opened is None else opened
                        rows += source.metadata.num_rows
        return rows

    def check_places(self) -> None:
        """Read where the rows of joined files come from, which readers of whole files leave out.

        Raises:
            DamagedFile: The rows of a file are not of the segments that it is named by, in order.
        """
        with ExitStack() as stack:
            for file, opened in self._opened(stack, 0, None):
                if isinstance(opened, pq.ParquetFile):
                    with reading(file.path, REMEDY):
                        _check_segments(file, opened)

    def _opened(self, stack: ExitStack, since: int, until: int | None) -> list[_Opened]:
        """Open all files that may be joined meanwhile: what is open is read though it is removed.

        Files of versions without parts are many, and stay: they are not opened.
        """
        while True:
            files = self.files(since, until)
            opened: list[_Opened] = []
            try:
                with ExitStack() as opening:
                    joined: dict[OutputFile, pq.ParquetFile] = {}
                    for file in files:
                        if file.is_joined:
                            with reading(file.path, REMEDY):
                                source = opening.enter_context(pa.OSFile(str(file.path)))
                                joined[file] = pq.ParquetFile(source)
                            opened.append((file, joined[file]))
                        elif not file.is_part:
                            opened.append((file, None))
                    for parts in _by_segment(files):
                        beside = [source for one, source in joined.items() if one.holds(parts[0])]
                        opened.append((parts[0], self._parts(parts, beside)))
                    if files == self.files(since, until):
                        stack.push(opening.pop_all())
                        return sorted(opened, key=lambda one: _order(one[0]))
            except FileNotFoundError:
                if files == self.files(since, until):
                    raise

    def _parts(self, parts: Sequence[OutputFile], joined: Sequence[pq.ParquetFile]) -> _Parts:
        """Return what parts hold beside joined files of their segment."""
        made_of = {name for file in joined for name in _made_of(file)}
        paths = [part.path for part in parts if part.path.stem not in made_of]
        known: set[str] = set()
        if paths:
            for file in joined:
                known |= set(file.read([OUTPUT]).column(0).unique().to_pylist())
        return _Parts(paths, self.stamps, known)

    def join(self, until: int) -> None:
        """Join the parts of each segment, and the joined files of many segments.

        One process joins at a time; writers and readers go on. A kill leaves files that the next
        call goes on with.

        Args:
            until: The last segment whose parts are joined.

        Raises:
            OutputConflict: An output was repeated with other rows.
            DamagedState: A part does not hold what was written.
            FileError: The disk is full, ...; nothing is lost.
        """
        self._remove_replaced()
        for parts in _by_segment(self.files(until=until)):
            beside = [file for file in self.files() if file.holds(parts[0])]
            if any(file.segments > 1 for file in beside):
                continue  # it came very late, and stays a part
            self._join(parts, beside)
        self._join_again(until)

    def _join(self, parts: Sequence[OutputFile], beside: Sequence[OutputFile]) -> None:
        """Make the joined file of a segment, of its parts and of the one that is there."""
        joining = []
        for part in parts:
            # A writer that appends now sees that the part has gone, and writes it again.
            to = part.path.with_suffix(JOINING)
            part.path.rename(to)
            joining.append(OutputFile(part.first, part.last, to, is_joined=False))
        path = self.path / f"{segment_prefix(parts[0].last)}all.parquet"
        with ExitStack() as stack:
            sources = []
            for file in beside:
                with reading(file.path, REMEDY):
                    sources.append(stack.enter_context(pq.ParquetFile(file.path)))
            found = self._parts(joining, sources)
            made_of = [name for source in sources for name in _made_of(source)]
            made_of += [part.path.stem for part in joining]
            before = (batch for source in sources for batch in source.iter_batches(_GROUP_ROWS))
            rows = itertools.chain(before, found.named(parts[0].last))
            _write(path, rows, made_of)
        for part in joining:
            part.path.unlink()

    def _join_again(self, until: int) -> None:
        """Join files of many segments, beginning with those of the fewest."""
        size = 1
        while True:
            joined = [file for file in self.files(until=until) if file.is_joined]
            if all(file.segments < size for file in joined):
                return
            for run in runs_of(joined, lambda file: file.segments, _fits, size):
                name = f"{since_prefix(run[0].first, run[-1].last)}.parquet"
                _write(self.path / name, _batches([file.path for file in run]), ())
                self._remove_replaced()
            size *= segment_names.TOGETHER

    def _remove_replaced(self) -> None:
        """Remove what an earlier call has left, and what was joined again."""
        found = self._all_files()
        for file in found:
            if _is_replaced(file, found):
                file.path.unlink()
        left = [file for file in found if file.path.suffix == JOINING]
        for file in left:
            for joined in found:
                if joined.holds(file) and joined.path.exists():
                    with reading(joined.path, REMEDY), pq.ParquetFile(joined.path) as source:
                        is_joined = file.path.stem in _made_of(source)
                    if is_joined:
                        file.path.unlink()


def _order(file: OutputFile) -> tuple[int, int, bool, str]:
    """Return by what files are ordered: a segment's parts come behind its joined file."""
    return file.first, file.last, file.is_part, file.path.name


def _is_replaced(file: OutputFile, others: Sequence[OutputFile]) -> bool:
    """Tell whether a joined file was joined again, with those of other segments."""
    return file.is_joined and any(
        other.holds(file) and other.segments > file.segments for other in others
    )


def _by_segment(files: Sequence[OutputFile]) -> list[list[OutputFile]]:
    """Return the parts of each segment that has any."""
    parts = [file for file in files if file.is_part]
    return [list(of_it) for _, of_it in itertools.groupby(parts, key=lambda file: file.last)]


def _made_of(file: pq.ParquetFile) -> list[str]:
    """Return the names, without endings, of the parts that a joined file was made of."""
    found = (file.schema_arrow.metadata or {}).get(_PARTS, b"[]")
    return [str(name) for name in json.loads(found)]


def _wanted(
    columns: Sequence[str] | None, optional: Sequence[str], there: Sequence[str]
) -> list[str]:
    """Return the names of the columns to read."""
    if columns is None:
        return [name for name in there if name not in (OUTPUT, SEGMENT)]
    return [*columns, *(name for name in optional if name in there)]


def _of_segments(
    file: OutputFile, source: pq.ParquetFile, names: list[str], since: int, until: int | None
) -> pa.Table:
    """Read columns of the rows of some segments."""
    if file.first >= since and (until is None or file.last <= until):
        return source.read(names)
    rows = source.read([*names, SEGMENT])
    segments = rows.column(SEGMENT)
    wanted = pc.greater_equal(segments, since)
    if until is not None:
        wanted = pc.and_(wanted, pc.less_equal(segments, until))
    return rows.filter(wanted).drop_columns([SEGMENT])


def _check_segments(file: OutputFile, source: pq.ParquetFile) -> None:
    at = file.first
    for batch in source.iter_batches(columns=[OUTPUT, SEGMENT]):
        if any(column.null_count for column in batch.columns):
            raise ValueError("a row names no output, or no segment")
        segments = batch.column(1).to_numpy()
        if len(segments) and (segments[0] < at or (segments[1:] < segments[:-1]).any()):
            raise ValueError("its rows are not in the order of their segments")
        at = segments[-1] if len(segments) else at
        if at > file.last:
            raise ValueError(f"a row is of segment {at}, the last of the file is {file.last}")


def _fits(file: OutputFile, other: OutputFile) -> bool:
    """Tell whether a file is not too large, and has the columns of another one."""
    if file.path.stat().st_size >= _LARGE_BYTES:
        return False
    with reading(file.path, REMEDY):
        return bool(pq.read_schema(file.path).equals(pq.read_schema(other.path)))


class _At(NamedTuple):
    """Where an output is: in which part, in which of its appends, and at which place."""

    part: int
    append: int
    place: int


class _Parts:
    """The outputs in the parts of a segment; their rows are read when they are wanted.

    Args:
        paths: The parts.
        stamps: Columns of the wall clock.
        known: Names of outputs that are read from elsewhere.

    Attributes:
        rows: The number of all rows.

    Raises:
        OutputConflict: An output was repeated with other rows.
    """

    def __init__(
        self, paths: Sequence[Path], stamps: tuple[str, ...], known: Collection[str]
    ) -> None:
        self._paths, self._stamps = paths, stamps
        self.rows = 0
        self._places: dict[str, _At] = {}
        self._decoded: dict[tuple[int, int], list[Output]] = {}
        self._appends = [list(read_part(path)) for path in paths]
        for part, appends in enumerate(self._appends):
            for append, appended in enumerate(appends):
                for place, name in enumerate(appended.names):
                    if name not in known:
                        self._note(name, _At(part, append, place), appended.rows[place])

    def _note(self, name: str, at: _At, rows: int) -> None:
        first = self._places.setdefault(name, at)
        if first == at:
            self.rows += rows
        elif not same_output(self._rows(first), self._rows(at), self._stamps):
            raise OutputConflict(
                f"{self._paths[at.part]}: the output {name} was written before with other content "
                f"({self._paths[first.part].name}): it was repeated, and a repeat must be the "
                "same; the input, the definitions or the software have changed in between; "
                f"{REMEDY}"
            )

    def _rows(self, at: _At) -> pa.RecordBatch:
        key = at.part, at.append
        if key not in self._decoded:
            if len(self._decoded) >= _DECODED:
                del self._decoded[next(iter(self._decoded))]
            with reading(self._paths[at.part], REMEDY):
                self._decoded[key] = list(self._appends[at.part][at.append].outputs())
        return self._decoded[key][at.place].rows

    def table(self) -> pa.Table | None:
        """Return the rows of all outputs, in order; None if there are none."""
        batches = [self._rows(self._places[name]) for name in sorted(self._places)]
        return pa.Table.from_batches(batches) if batches else None

    def named(self, segment: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of each output, in order, with its name and the segment."""
        for name in sorted(self._places):
            rows = self._rows(self._places[name])
            for column, value in ((OUTPUT, name), (SEGMENT, segment)):
                rows = rows.append_column(column, pa.repeat(pa.scalar(value), rows.num_rows))
            yield rows


def same_output(one: pa.RecordBatch, other: pa.RecordBatch, stamps: Sequence[str] = ()) -> bool:
    """Tell whether two outputs are the same, apart from stamps of the wall clock."""
    if one.schema != other.schema:
        return False
    kept = [name for name in one.schema.names if name not in stamps]
    first, second = one.select(kept), other.select(kept)
    # A NaN is not equal to itself; its bytes are.
    return bool(first.equals(second) or batch_bytes(first).equals(batch_bytes(second)))


def _batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of joined files, in turn."""
    for path in paths:
        with reading(path, REMEDY), pq.ParquetFile(path) as file:
            yield from file.iter_batches(_GROUP_ROWS)


def _write(path: Path, batches: Iterator[pa.RecordBatch], made_of: Sequence[str]) -> None:
    """Write batches of one schema to a Parquet file, which is on the disk before it is seen.

    Without a batch no file is written.
    """
    first = next(batches, None)
    if first is None:
        return
    told = {_PARTS: json.dumps(list(made_of))} if made_of else None
    schema = first.schema.with_metadata(told)
    with (
        atomic_write(path, durable=True) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="zstd") as writer,
    ):
        waiting, rows = [], 0
        for batch in itertools.chain([first], batches):
            waiting.append(batch.replace_schema_metadata(told))
            rows += batch.num_rows
            if rows >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=_GROUP_ROWS)
                waiting, rows = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=_GROUP_ROWS)
