"""The log of a source on disk: every accepted row, in order of arrival, by partition.

A partition is in Arrow IPC files: the declared columns, then ``_position`` (int64: the row's number
in the partition, ascending) and ``_received`` (int64 microseconds: when it arrived; for a table
without an order of arrival, the row's own time). Training, replay and verification read the log.

The file's metadata holds the digests of its rows (`pipelines.io.log_digests`). A process checks
every row of a file against them before it uses the first one, so damaged rows are never used.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import EventStream, Origin, Request, Schema, has_grown
from tidemill.features.errors import DamagedFile, InputError
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log_digests import (
    BLOCK_ROWS,
    PartitionDigests,
    block_digest,
    prefix_digest,
)
from tidemill.pipelines.io.log_files import LOG as LOG
from tidemill.pipelines.io.log_files import (
    MEND,
    MEND_LIVE,
    TECHNICAL,
    LogFile,
    block_digests,
    first_position,
    mend_of,
)
from tidemill.pipelines.io.log_files import ROWS as ROWS
from tidemill.pipelines.io.log_pieces import PartitionWriter, piece_path, piece_paths
from tidemill.pipelines.io.log_rows import PARTITION as PARTITION
from tidemill.pipelines.io.log_rows import POSITION as POSITION
from tidemill.pipelines.io.log_rows import RECEIVED as RECEIVED
from tidemill.pipelines.io.log_rows import SENT as SENT
from tidemill.pipelines.io.log_rows import conformed as conformed
from tidemill.pipelines.io.log_rows import declared_columns as declared_columns
from tidemill.pipelines.io.log_rows import definitions_of as definitions_of
from tidemill.pipelines.io.log_rows import forgotten_rows as forgotten_rows
from tidemill.pipelines.io.log_rows import log_schema as log_schema
from tidemill.pipelines.io.log_rows import one_batch as one_batch
from tidemill.serving.files.read_files import reading

_ALL: Final = 1 << 62


@dataclass(frozen=True)
class Log:
    """The logs of a build, and of the live stream that goes on with it.

    A partition of a build is in pieces, ``root/log/<source>/<partition>.arrow`` and others
    (`pipelines.io.log_pieces`). That of a live source goes on in further files,
    ``live/rows/<source>/<partition>-<first position>.arrow`` (`pipelines.io.live.live_log`). Each
    begins with a whole block. A block that two files have is read from the later one, the live one,
    which has more of its rows: that of a build has the live rows that were sealed when the build
    was made.

    A source may get columns, or wider dtypes, while its log grows (`features.kernel.base_columns`).
    Each file has the columns that its rows were written with; all rows are read with those of
    ``declared``: a column that a file lacks is null.

    Attributes:
        root: The build's folder.
        live: The folder of the rows that came since the build; None to read the build alone.
        declared: Source to the columns to read, where they are more or wider than those of the last
            file.
    """

    root: Path
    live: Path | None = None
    declared: Mapping[str, Schema] = field(default_factory=dict, hash=False)

    def path(self, source: str, partition: int) -> Path:
        """Return the file of a partition, the first one."""
        return piece_path(self.root / LOG / source, partition, 0)

    def paths(self, source: str, partition: int) -> list[Path]:
        """Return the build's files of a partition."""
        return piece_paths(self.root / LOG / source, partition)

    def size(self, source: str, partition: int) -> int:
        """Return how many bytes the build's files of a partition have."""
        return sum(path.stat().st_size for path in self.paths(source, partition))

    def sources(self) -> list[str]:
        """Return the names of the sources that have a log, in order."""
        return sorted(folder.name for folder in (self.root / LOG).glob("*") if folder.is_dir())

    def partitions(self, source: str) -> int:
        """Return how many partitions a source has.

        Raises:
            InputError: There is no log of the source.
        """
        paths = (self.root / LOG / source).glob("*.arrow")
        found = sum("-" not in path.stem for path in paths)
        if not found:
            raise InputError(
                f"there is no log of {source!r} in {self.root / LOG}; run `tidemill backfill`"
            )
        return found

    def columns(self, source: str) -> Schema:
        """Return the declared columns of a source, as its rows are read."""
        found = self._columns(source, self._pieces_of(source, 0, 0, 0))
        for partition in range(1, self.partitions(source)):
            # What a partition has got no row of since the source has grown is as it was.
            other = self._columns(source, self._pieces_of(source, partition, 0, 0))
            found = other if has_grown(found, other) else found
        return found

    def origin(self, source: str) -> Origin:
        """Return how the columns of a source came about: its first columns never change."""
        return self._pieces_of(source, 0, 0, 0)[-1].origin

    def _columns(self, source: str, pieces: Sequence[LogFile]) -> Schema:
        newest = pieces[-1].columns
        wanted = self.declared.get(source, newest)
        return wanted if has_grown(newest, wanted) else newest

    def _files(self, source: str, partition: int) -> list[tuple[Path, int, int | None]]:
        """Return the files of a partition: from which position each is read, and up to which.

        Raises:
            InputError: The first file is missing.
        """
        paths = piece_paths(self.root / LOG / source, partition)
        if not paths[0].exists():
            raise InputError(
                f"there is no partition {partition} of {source!r}: {paths[0]} is missing; {MEND}"
            )
        if live := self._live_files(source, partition):
            # The rows from the first live file on are read there, whatever the build has of them.
            first = first_position(live[0])
            paths = [paths[0], *(one for one in paths[1:] if first_position(one) < first), *live]
        starts = [first_position(path) for path in paths]
        return list(zip(paths, starts, [*starts[1:], None], strict=True))

    def _live_files(self, source: str, partition: int) -> list[Path]:
        if self.live is None:
            return []
        return sorted((self.live / ROWS / source).glob(f"{partition:05d}-*.arrow"))

    def _pieces(self, source: str, partition: int) -> list[LogFile]:
        """Return the files of a partition, each with the blocks that are read from it.

        Raises:
            InputError: The first file is missing.
            DamagedFile: A file is not one of a log, or rows are missing between two.
            StateVersionError: A file was written in another format.
        """
        return self._pieces_of(source, partition, 0, _ALL)

    def _check_ends(self, source: str, partition: int, live: Sequence[LogFile]) -> None:
        """Check that no live file ends before the one before it, nor the last before the build.

        The build may have more rows than the first of them.
        """
        newest = piece_paths(self.root / LOG / source, partition)[-1]
        end = LogFile.of(newest, first_position(newest), None).end
        pairs = [(before.end, piece) for before, piece in itertools.pairwise(live)]
        for before, piece in [*pairs, (end, live[-1])]:
            if before > piece.end:
                raise DamagedFile(
                    f"{piece.path} ends at position {piece.end:,} of its partition, and the file "
                    f"before it at {before:,}: rows are missing; {MEND_LIVE}"
                )

    def _pieces_of(self, source: str, partition: int, start: int, stop: int) -> list[LogFile]:
        """Return the files that the rows ``[start, stop)`` are read from, and all live ones."""
        files = self._files(source, partition)
        live = len(self._live_files(source, partition))
        of_build = files[: len(files) - live]
        wanted = [
            file
            for file in of_build
            if file[1] < max(stop, start + 1) and (file[2] is None or file[2] > start)
        ]
        pieces = [LogFile.of(*file) for file in [*wanted, *files[len(of_build) :]] or files[-1:]]
        base = (LogFile.of(*files[0]) if live else pieces[0]).origin.base
        for piece in pieces:
            if piece.origin.base != base:
                raise DamagedFile(
                    f"{piece.path} has other columns than {files[0][0]}: it was replaced by a file "
                    f"of another source; {mend_of(piece.path)}"
                )
        if live:
            self._check_ends(source, partition, pieces[-live:])
        return pieces

    def batches(self, source: str, partition: int) -> Iterator[pa.RecordBatch]:
        """Yield the blocks of a partition, memory-mapped, each checked before it is used.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        pieces = self._pieces(source, partition)
        columns = self._columns(source, pieces)
        for piece in pieces:
            reader = piece.checked()
            with reading(piece.path, mend_of(piece.path)):
                for number in range(piece.blocks):
                    rows = reader.get_batch(number).replace_schema_metadata(None)
                    yield conformed(rows, columns)

    def read(
        self, source: str, partition: int | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read a partition, or all partitions in order with a ``_partition`` column."""
        if partition is not None:
            pieces = self._pieces(source, partition)
            schema = _empty(pieces[0], self._columns(source, pieces)).schema
            table = pa.Table.from_batches(self.batches(source, partition), schema)
            return table if columns is None else table.select(list(columns))
        parts, partitions = [], self.partitions(source)
        log = replace(self, declared={source: self.columns(source)})
        for number in range(partitions):
            table = log.read(source, number, columns)
            parts.append(
                table.append_column(PARTITION, pa.array(np.full(len(table), number), pa.int64()))
            )
        return pa.concat_tables(parts)

    def read_span(self, source: str, partition: int, start: int, stop: int) -> pa.RecordBatch:
        """Read the rows ``[start, stop)`` of a partition into memory of their own.

        The files are not mapped, and only the blocks that hold the rows are read and checked.

        Raises:
            DamagedFile: The file is not one of a log, or its rows are not those that were written.
            StateVersionError: It was written in another format.
        """
        pieces = self._pieces_of(source, partition, start, stop)
        columns = self._columns(source, pieces)
        blocks = [
            conformed(block.replace_schema_metadata(None), columns)
            for piece in pieces
            for block in piece.read(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))
        ]
        if not blocks:
            return _empty(pieces[0], columns)
        rows = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
        return rows.slice(start % BLOCK_ROWS, stop - start)

    def position_at(self, source: str, partition: int, received_us: int) -> int:
        """Return the position of the first row that was received at an instant or later."""
        pieces = self._pieces(source, partition)
        blocks = [(piece, number) for piece in pieces for number in range(piece.blocks)]

        def received(place: int) -> Int64Array:
            piece, number = blocks[place]
            with reading(piece.path, mend_of(piece.path)):
                return hashing.bits(piece.reader.get_batch(number).column(RECEIVED))

        place = bisect.bisect_left(
            range(len(blocks)), received_us, key=lambda n: int(received(n)[-1])
        )
        if place == len(blocks):
            return pieces[-1].rows
        return place * BLOCK_ROWS + int(np.searchsorted(received(place), received_us, "left"))

    def digests(self, source: str, partition: int) -> PartitionDigests:
        """Return the digests of a partition's rows."""
        pieces = self._pieces(source, partition)
        return PartitionDigests(
            pieces[-1].rows, tuple(itertools.chain(*(piece.digests for piece in pieces)))
        )

    def lengths(self, source: str) -> list[int]:
        """Return the number of rows of each partition."""
        return [self.digests(source, n).rows for n in range(self.partitions(source))]

    def prefix_digest(self, source: str, positions: Sequence[int]) -> str | None:
        """Return the prefix digest of a cut (`pipelines.io.log_digests`).

        Args:
            source: The source.
            positions: The cut: the position in each partition.

        Returns:
            64 hexadecimal digits; None if the log has other partitions, or ends before the cut.
        """
        if len(positions) != self.partitions(source):
            return None
        found = [self.digests(source, number) for number in range(len(positions))]
        if any(position > of.rows for position, of in zip(positions, found, strict=True)):
            return None
        return prefix_digest(
            [
                of.prefix(position, functools.partial(self._digest, source, number))
                for number, (position, of) in enumerate(zip(positions, found, strict=True))
            ]
        )

    def digest_below(self, source: str, partition: int, position: int) -> str | None:
        """Return the digest of the first rows of a partition; None if it ends before ``position``.

        Args:
            source: The source.
            partition: The partition.
            position: The position after the last of the rows.

        Returns:
            64 hexadecimal digits.
        """
        found = self.digests(source, partition)
        if position > found.rows:
            return None
        prefix = found.prefix(position, functools.partial(self._digest, source, partition))
        return prefix_digest([prefix])

    def _digest(self, source: str, partition: int, start: int, stop: int) -> bytes:
        """Digest the first rows of a block, once the block has its digest."""
        pieces = self._pieces_of(source, partition, start, stop)
        span = self.digests(source, partition).span(start // BLOCK_ROWS)
        whole = self.read_span(source, partition, *span)
        columns, origin = self._columns(source, pieces), pieces[-1].origin
        return block_digest(columns, whole.slice(0, stop - start), TECHNICAL, origin)

    def write(
        self,
        definition: EventStream | Request,
        partition: int,
        table: pa.Table,
        received_us: Int64Array,
    ) -> None:
        """Write a partition; its rows get the positions 0, 1, ... in their order.

        Args:
            definition: The source.
            partition: The partition's number.
            table: The declared columns, in order of arrival, ``(rows,)``.
            received_us: int64, ``(rows,)``: when each row arrived, ascending.
        """
        with self.writing(definition, partition, len(table)) as writer:
            writer.write(one_batch(table), received_us)

    @contextmanager
    def writing(
        self, definition: EventStream | Request, partition: int, rows: int
    ) -> Iterator[PartitionWriter]:
        """Write a partition batch by batch; it is there when the block has ended.

        Args:
            definition: The source.
            partition: The partition's number.
            rows: How many rows it will have.
        """
        folder = self.root / LOG / definition.name
        with PartitionWriter(folder, definition, partition, rows) as writer:
            yield writer


def _empty(piece: LogFile, columns: Schema) -> pa.RecordBatch:
    """Return no rows of a log, as they are read with some columns."""
    return conformed(one_batch(piece.reader.schema.remove_metadata().empty_table()), columns)


def rows_digest(definition: EventStream | Request, partitions: Sequence[pa.Table]) -> str:
    """Return the prefix digest of rows that are not in a log: of the end of all partitions.

    Args:
        definition: The source.
        partitions: The rows of each partition, with the columns of a log.
    """
    prefixes = []
    for rows in partitions:
        blocks = block_digests(definition.schema, definition.origin, rows)
        found = PartitionDigests(len(rows), tuple(blocks))
        prefixes.append(found.prefix(len(rows), _no_partial))
    return prefix_digest(prefixes)


def _no_partial(start: int, stop: int) -> bytes:
    raise AssertionError(f"the end of a partition is no partial block: {start} to {stop}")
