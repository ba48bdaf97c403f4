"""The rows of a csv file (RFC 4180), block by block, with the lines that are not valid rows.

The promises:

* Commas separate cells; LF or CRLF separates rows. A quoted cell may contain commas, newlines and
  doubled quotes. A quote anywhere else, or a single CR outside quotes, makes its line broken.
* The first row is the header. Empty lines are skipped. A byte order mark is skipped at the very
  start of the file; anywhere else it is a character of its cell. The last newline may be missing.
* A line is refused if its quotes are broken, its number of cells differs from the header's, or it
  is not UTF-8; other lines are not affected. An unclosed quote would take in the rest of the file:
  if no well-formed row ends within `LONGEST_QUOTED_ROW`, only the line where the row began is
  refused, and reading continues with the next line.
* The result does not depend on where blocks end.

A good block costs a few numpy passes and one pass of Arrow's csv parser. Only a block with broken
quotes is cut row by row, with a regular expression.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.errors import InputError
from tidemill.features.rows.rejected import Reason

BLOCK_BYTES: Final = 4 << 20
"""The size of a block."""
LONGEST_QUOTED_ROW: Final = 1 << 20
"""A row of several lines with more bytes than this counts as an unclosed quote."""

_QUOTED: Final = rb'"(?:[^"]++|"")*+"'
_CELL: Final = rb'(?:%b|[^",\r\n]*+)' % _QUOTED
_ROW: Final = re.compile(rb"%b(?:,%b)*+\r?\n" % (_CELL, _CELL))
_QUOTED_CELL: Final = re.compile(_QUOTED)
_QUOTE, _COMMA, _LF, _CR = (ord(character) for character in '",\n\r')
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False)
class Block:
    """Successive rows of a csv file; every line that is not empty counts as a row.

    Attributes:
        batch: The readable rows: a string column for each cell of the header.
        readable: int64, ``(readable rows,)``: their indices among the block's rows.
        faults: The other rows: row to reason and detail.
        lines: int64, ``(rows,)``: the line of the file on which each row begins, from 1.
        content: The block's bytes.
        starts: int64, ``(rows,)``: where each row begins in ``content``.
        ends: int64, ``(rows,)``: where each row ends, without its newline.
    """

    batch: pa.RecordBatch
    readable: Int64Array
    faults: dict[int, tuple[Reason, str]]
    lines: Int64Array
    content: bytes
    starts: Int64Array
    ends: Int64Array

    def payload(self, row: int) -> bytes:
        """Return a row's unchanged bytes, without its newline."""
        return self.content[self.starts[row] : self.ends[row]]


@dataclass(frozen=True, eq=False)
class _Cut:
    """Row boundaries: starts, ends after the newline, rows with broken quotes, bytes used."""

    starts: Int64Array
    ends: Int64Array
    broken: tuple[int, ...]
    used: int


def read_blocks(
    file: BinaryIO,
    origin: str,
    *,
    nulls: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """Read a csv file block by block.

    Args:
        file: The file, at its beginning.
        origin: The file's name in errors.
        nulls: Cells that mean null, quoted or not.
        columns: Read these columns only, if the header has them all; None for all.
        block_bytes: The size of a block.

    Yields:
        Blocks with at least one row, in order.

    Raises:
        InputError: The header is unusable.
    """
    pending, line, header = file.read(len(BYTE_ORDER_MARK)), 1, None
    pending = pending.removeprefix(BYTE_ORDER_MARK)
    ended = False
    while not ended:
        chunk = file.read(block_bytes)
        ended = not chunk
        pending += chunk
        if ended and pending and not pending.endswith(b"\n"):
            pending += b"\n"
        if header is None:
            blank = len(pending) - len(pending.lstrip(b"\r\n"))
            match = _ROW.match(pending, blank)
            if match is None:
                if (ended and blank < len(pending)) or len(pending) > LONGEST_QUOTED_ROW:
                    raise InputError(
                        f"{origin}: the header line is broken: {pending[blank : blank + 80]!r}; "
                        "expected column names separated by commas, quoted in pairs if at all"
                    )
                continue
            header = _header(match[0], origin)
            line += pending.count(b"\n", 0, match.end())
            pending = pending[match.end() :]
        cut = _cut_well_formed(pending) or _cut_one_by_one(pending, ended)
        if cut.used:
            block = _block(pending, cut, line, header, nulls, columns)
            if len(block.starts):
                yield block
            line += pending.count(b"\n", 0, cut.used)
            pending = pending[cut.used :]


def _header(row: bytes, origin: str) -> list[str]:
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{origin}: the header line is not UTF-8 ({error}); save the file as UTF-8"
        ) from None
    names = next(csv.reader(io.StringIO(text, newline=""), strict=True))
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{origin}: the header names column {repeated[0]!r} {names.count(repeated[0])} times; "
            "rename or drop all but one"
        )
    return names


def _cut_well_formed(content: bytes) -> _Cut | None:
    """Cut at the newlines outside quotes; None if quotes are broken or no row is complete."""
    data = np.frombuffer(content, np.uint8)
    ends = newlines = np.flatnonzero(data == _LF)
    quotes = np.zeros(0, np.int64)
    if b'"' in content:
        quotes = np.flatnonzero(data == _QUOTE)
        ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    if len(ends) == 0:
        return None
    used = int(ends[-1]) + 1
    ends = ends + 1
    starts = np.concatenate([[0], ends[:-1]])
    quotes = quotes[quotes < used]
    if len(quotes) and not _quotes_are_well_formed(data, quotes):
        return None
    if b"\r" in content:
        returns = np.flatnonzero(data[:used] == _CR)
        alone = returns[data[returns + 1] != _LF]
        if (np.searchsorted(quotes, alone) % 2 == 0).any():
            return None
    long = np.flatnonzero(ends - starts > LONGEST_QUOTED_ROW)
    if any(b"\n" in content[starts[row] : ends[row] - 1] for row in long):
        return None
    return _Cut(starts, ends, (), used)


def _quotes_are_well_formed(data: npt.NDArray[np.uint8], quotes: Int64Array) -> bool:
    """Tell whether alternately opening and closing quotes are where RFC 4180 allows them.

    An opening quote follows a comma or newline, and a closing quote precedes one; or a closing and
    an opening quote together are a doubled quote inside a cell.
    """
    opening, closing = quotes[0::2], quotes[1::2]
    doubled: BoolArray = closing[:-1] + 1 == opening[1:]
    before = data[opening - 1]
    opens = (before == _COMMA) | (before == _LF) | (opening == 0)
    opens[1:] |= doubled
    after = data[closing + 1]
    crlf = (after == _CR) & (data[np.minimum(closing + 2, len(data) - 1)] == _LF)
    closes = (after == _COMMA) | (after == _LF) | crlf
    closes[:-1] |= doubled
    return bool(opens.all() and closes.all())


def _cut_one_by_one(content: bytes, ended: bool) -> _Cut:
    starts: list[int] = []
    ends: list[int] = []
    broken: list[int] = []
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        if newline < 0:
            break
        limit = max(newline + 1, start + LONGEST_QUOTED_ROW)
        match = _ROW.match(content, start, min(limit, len(content)))
        if match:
            end = match.end()
        elif limit > len(content) and not ended:
            break  # the closing quote may be in the next block
        else:
            broken.append(len(starts))
            end = newline + 1
        starts.append(start)
        ends.append(end)
        start = end
    return _Cut(np.array(starts, np.int64), np.array(ends, np.int64), tuple(broken), start)


def _block(
    content: bytes,
    cut: _Cut,
    first_line: int,
    header: list[str],
    nulls: Sequence[str],
    columns: Sequence[str] | None,
) -> Block:
    data = np.frombuffer(content, np.uint8)
    starts, ends = cut.starts, cut.ends - 1
    ends = ends - ((ends > starts) & (data[ends - 1] == _CR))
    newlines = np.flatnonzero(data[: cut.used] == _LF)
    lines = first_line + np.searchsorted(newlines, starts)
    faults = {
        row: (Reason.BROKEN_CSV_LINE, _why_broken(content[starts[row] : ends[row]]))
        for row in cut.broken
    }
    faults = _not_utf8(content[: cut.used], starts) | faults
    filled = np.flatnonzero(ends > starts)
    if len(filled) < len(starts):
        number = {row: index for index, row in enumerate(filled.tolist())}
        faults = {number[row]: fault for row, fault in faults.items()}
        starts, ends, lines = starts[filled], ends[filled], lines[filled]
    rows = len(starts)

    def parsed() -> pa.RecordBatch:
        good = content[: cut.used]
        if faults:
            good = b"\n".join(
                content[start:end]
                for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
                if row not in faults
            )
        return _parse(good, rows - len(faults), header, nulls, columns)

    try:
        batch = parsed()
    except pa.ArrowInvalid:
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            cells = _cells(content[start:end])
            if row not in faults and cells != len(header):
                detail = f"found {cells} cells, expected {len(header)} as the header has"
                faults[row] = (Reason.BROKEN_CSV_LINE, detail)
        batch = parsed()
    readable = np.delete(np.arange(rows), sorted(faults))
    return Block(batch, readable, faults, lines, content, starts, ends)


def _why_broken(row: bytes) -> str:
    if b'"' in row:
        return (
            "a quote is not closed, or is inside a cell that does not begin with one; expected "
            "quotes around a complete cell and doubled inside it"
        )
    return (
        "a carriage return without a line feed; expected LF or CRLF after a row, others in quotes"
    )


def _not_utf8(content: bytes, starts: Int64Array) -> dict[int, tuple[Reason, str]]:
    faults: dict[int, tuple[Reason, str]] = {}
    begin = 0
    while not content.isascii() and begin < len(content):
        try:
            str(memoryview(content)[begin:], "utf-8")
        except UnicodeDecodeError as error:
            row = int(np.searchsorted(starts, begin + error.start, "right")) - 1
            column = begin + error.start - int(starts[row])
            found = content[begin + error.start]
            faults[row] = (
                Reason.INVALID_UTF8,
                f"found byte 0x{found:02x} at byte {column} of the row, expected UTF-8",
            )
            begin = int(starts[row + 1]) if row + 1 < len(starts) else len(content)
        else:
            break
    return faults


def _cells(row: bytes) -> int:
    return (_QUOTED_CELL.sub(b"", row) if b'"' in row else row).count(b",") + 1


def _parse(
    content: bytes,
    rows: int,
    header: list[str],
    nulls: Sequence[str],
    columns: Sequence[str] | None,
) -> pa.RecordBatch:
    wanted = header
    if columns is not None and set(columns) <= set(header):
        wanted = [name for name in header if name in columns]
    schema = pa.schema([(name, pa.string()) for name in wanted])
    if rows == 0:
        return pa.RecordBatch.from_pylist([], schema=schema)
    if content.startswith(BYTE_ORDER_MARK):
        # Arrow skips one at the start of what it is given, which is not the start of the file.
        content = BYTE_ORDER_MARK + content
    table = pyarrow.csv.read_csv(
        pa.BufferReader(content),
        read_options=pyarrow.csv.ReadOptions(
            column_names=header, block_size=len(content) + 1, use_threads=False
        ),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=schema,
            include_columns=wanted,
            null_values=list(nulls),
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )
    batches = table.combine_chunks().to_batches()
    if table.num_rows != rows or len(batches) != 1:
        raise InputError(
            f"{rows} csv rows were read as {table.num_rows} rows in {len(batches)} pieces; this "
            "is a fault of the reader: please report it with the file"
        )
    return batches[0]
