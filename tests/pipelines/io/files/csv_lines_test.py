"""The rows of a csv file, compared with a reader that reads character by character."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.features.errors import InputError
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files import csv_lines

Read = list[tuple[int, bytes, Reason | list[str | None]]]


def read(content: bytes, block_bytes: int = 1 << 20, **options: Any) -> Read:
    """Return (line, payload, cells or reason) of every row."""
    found: Read = []
    for block in csv_lines.read_blocks(
        io.BytesIO(content), "x.csv", block_bytes=block_bytes, **options
    ):
        assert len(block.starts) > 0
        cells = dict(zip(block.readable.tolist(), block.batch.to_pylist(), strict=True))
        assert sorted([*cells, *block.faults]) == list(range(len(block.starts)))
        for row in range(len(block.starts)):
            what = list(cells[row].values()) if row in cells else block.faults[row][0]
            found.append((int(block.lines[row]), block.payload(row), what))
    return found


def cells_of(content: bytes, **options: Any) -> list[Any]:
    return [what for _, _, what in read(content, **options)]


def plainly(content: bytes, columns: int, longest: int) -> Read:
    """Read rows without a header, character by character, by the rules of the module."""
    if not content.endswith(b"\n"):
        content += b"\n"
    found: Read = []
    start = 0
    while start < len(content):
        line = content.count(b"\n", 0, start) + 1
        end, cells = one_row(content, start)
        first_line_ends = content.index(b"\n", start) + 1
        what: Reason | list[str | None]
        if cells is None or end > max(first_line_ends, start + longest):
            end, what = first_line_ends, Reason.BROKEN_CSV_LINE
        else:
            try:
                content[start:end].decode("utf-8")
                what = Reason.BROKEN_CSV_LINE
                if len(cells) == columns:
                    what = [cell.decode("utf-8") for cell in cells]
            except UnicodeDecodeError:
                what = Reason.INVALID_UTF8
        payload = content[start:end].removesuffix(b"\n").removesuffix(b"\r")
        if payload:
            found.append((line, payload, what))
        start = end
    return found


def one_row(content: bytes, at: int) -> tuple[int, list[bytes] | None]:
    """Return the end of the row, after its newline, and its cells; None if quotes are broken."""
    cells: list[bytes] = []
    while True:
        cell = b""
        if content[at : at + 1] == b'"':
            at += 1
            while content[at : at + 1] != b'"' or content[at : at + 2] == b'""':
                if at >= len(content):
                    return at, None
                cell += content[at : at + 1]
                at += 2 if content[at : at + 1] == b'"' else 1
            at += 1
        else:
            while content[at : at + 1] not in (b",", b'"', b"\r", b"\n"):
                cell += content[at : at + 1]
                at += 1
        cells.append(cell)
        for newline in (b"\n", b"\r\n"):
            if content.startswith(newline, at):
                return at + len(newline), cells
        if content[at : at + 1] != b",":
            return at, None
        at += 1


ROW_PIECES = (b"x,y\n", b'"q,""\n",z\n', b"one,two\n")
SPECIAL = (b",", b",", b'"', b'""', b"\n", b"\n", b"\r\n", b"\r")
pieces = st.lists(
    st.sampled_from((b"a", b"b", *SPECIAL, b"\xff", b"\0", "é".encode(), *ROW_PIECES)),
    max_size=40,
).map(b"".join)


@pytest.fixture(autouse=True, scope="module")
def short_rows() -> Any:
    """Set the longest quoted row to 24 bytes, so that the tests reach the bound."""
    patch = pytest.MonkeyPatch()
    patch.setattr(csv_lines, "LONGEST_QUOTED_ROW", 24)
    yield
    patch.undo()


@given(pieces, st.integers(1, 50))
@example(b'1,"abc\n2,z\n', 50)
@example(b'1,"abc\n2,"y"\n', 7)
@example(b'1,"abcdefghijklmnop\nqrstuvwxyz"\n', 50)
def test_any_bytes_in_any_blocks_read_as_the_plain_reader_reads_them(
    body: bytes, block_bytes: int
) -> None:
    wanted = [(line + 1, payload, what) for line, payload, what in plainly(body, 2, longest=24)]
    assert read(b"x,y\n" + body, block_bytes) == wanted


@given(
    st.lists(
        st.tuples(*[st.text(st.sampled_from('ab ,"\n\ré'), max_size=5)] * 3).filter(any),
        max_size=8,
    ),
    st.sampled_from((b"\n", b"\r\n")),
    st.booleans(),
    st.integers(1, 60),
)
def test_what_was_written_is_read(
    rows: list[tuple[str, ...]], newline: bytes, quote_all: bool, block_bytes: int
) -> None:
    def written(cell: str) -> bytes:
        quoted = '"' + cell.replace('"', '""') + '"'
        return (quoted if quote_all or set(cell) & set('",\r\n') else cell).encode()

    lines = [b",".join(map(written, row)) for row in [("x", "y", "z"), *rows]]
    patch = pytest.MonkeyPatch()
    with patch.context() as longer:
        longer.setattr(csv_lines, "LONGEST_QUOTED_ROW", 1000)
        found = cells_of(newline.join(lines) + newline, block_bytes=block_bytes)
        assert found == cells_of(newline.join(lines), block_bytes=block_bytes)  # no last newline
    assert found == [list(row) for row in rows]


@pytest.mark.parametrize("content", [b"", b"\n\r\n\n", b"\xef\xbb\xbf", b"x,y", b"x,y\r\n\r\n"])
def test_without_rows_there_is_no_block(content: bytes) -> None:
    assert read(content) == []


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    (block,) = csv_lines.read_blocks(io.BytesIO(b"\xef\xbb\xbfx,y\n1,2\n"), "x.csv")
    assert block.batch.schema.names == ["x", "y"]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("block_bytes", [1, 5, 6, 7, 8, 1 << 20])
def test_a_byte_order_mark_after_the_start_is_a_character_of_its_cell(block_bytes: int) -> None:
    rows = [b"q,1", MARK + b"q,2", b"q,3", MARK + MARK + b"q,4", MARK + b",5", b"q," + MARK]
    content = MARK + b"x,y\n" + b"\n".join(rows)
    found = read(content, block_bytes)
    assert [payload for _, payload, _ in found] == rows
    assert [what for _, _, what in found] == [row.decode().split(",") for row in rows]


@pytest.mark.parametrize("block_bytes", [1, 4, 5, 1 << 20])
def test_a_line_with_only_a_byte_order_mark_is_a_row(block_bytes: int) -> None:
    content = b"x\n" + MARK + b"\na\n" + MARK + b"\n"
    assert cells_of(content, block_bytes=block_bytes) == [["\ufeff"], ["a"], ["\ufeff"]]
    wide = b"x,y\n1,2\n" + MARK + b"\n3,4\n"
    assert cells_of(wide, block_bytes=block_bytes) == [
        ["1", "2"],
        Reason.BROKEN_CSV_LINE,
        ["3", "4"],
    ]


def test_the_second_byte_order_mark_of_a_file_belongs_to_the_header() -> None:
    (block,) = csv_lines.read_blocks(io.BytesIO(MARK * 2 + b"x,y\n1,2\n"), "x.csv")
    assert block.batch.schema.names == ["\ufeffx", "y"]


def test_a_refused_line_does_not_bring_a_byte_order_mark_to_the_start() -> None:
    # Arrow is given the good lines only: the mark of the second is then at the start.
    assert cells_of(b"x,y\n1\n" + MARK + b"q,2\n") == [Reason.BROKEN_CSV_LINE, ["\ufeffq", "2"]]


def test_lines_are_those_an_editor_shows() -> None:
    content = b'x,y\n\n1,"a\nb"\n\r\n2,c\nbad\n3,d\n'
    assert [line for line, _, _ in read(content)] == [3, 6, 7, 8]


def test_only_the_bad_lines_are_refused() -> None:
    content = (
        b"x,y\n1,a\n2\n3,b,c\n"
        b'4,"open\n5,"fine"\n6,"d"e\n7,f"g\n\0\0\0\n8,\xff\n9,\xc3\xa9\n10,h\ri\n11,last'
    )
    refused = {
        b"2": Reason.BROKEN_CSV_LINE,
        b"3,b,c": Reason.BROKEN_CSV_LINE,
        b'4,"open': Reason.BROKEN_CSV_LINE,
        b'6,"d"e': Reason.BROKEN_CSV_LINE,
        b'7,f"g': Reason.BROKEN_CSV_LINE,
        b"\0\0\0": Reason.BROKEN_CSV_LINE,
        b"8,\xff": Reason.INVALID_UTF8,
        b"10,h\ri": Reason.BROKEN_CSV_LINE,
    }
    for block_bytes in (1, 5, 13, 1000):
        found = read(content, block_bytes)
        assert {p: w for _, p, w in found if isinstance(w, Reason)} == refused
        assert [w for _, _, w in found if not isinstance(w, Reason)] == [
            ["1", "a"],
            ["5", "fine"],
            ["9", "é"],
            ["11", "last"],
        ]


def test_a_row_of_several_lines_with_too_many_cells_is_one_bad_row() -> None:
    found = read(b'x,y\n1,"a\n2,b\n",c\n3,d\n')
    assert found == [
        (2, b'1,"a\n2,b\n",c', Reason.BROKEN_CSV_LINE),
        (5, b"3,d", ["3", "d"]),
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"1", "found 1 cells, expected 2"),
        (b'1,"2,3",4', "found 3 cells, expected 2"),
        (b'1,"2', "a quote is not closed"),
        (b"1\r,2", "a carriage return without a line feed"),
        (b"1,\xfe", "found byte 0xfe at byte 2 of the row"),
    ],
)
def test_the_detail_says_what_is_wrong_with_the_line(row: bytes, says: str) -> None:
    (block,) = csv_lines.read_blocks(io.BytesIO(b"x,y\n" + row), "x.csv")
    assert says in block.faults[0][1]


def test_nulls_are_the_cells_that_are_declared_to_mean_it() -> None:
    content = b'x,y\n,NA\n"","NA"\nNaN,na\n'
    assert cells_of(content, nulls=["", "NA"]) == [[None, None], [None, None], ["NaN", "na"]]
    assert cells_of(content) == [["", "NA"], ["", "NA"], ["NaN", "na"]]


def test_unwanted_columns_are_left_out_if_all_wanted_ones_are_there() -> None:
    assert cells_of(b"x,y,z\n1,2,3\n", columns=["z", "x"]) == [["1", "3"]]
    assert cells_of(b"x,y,z\n1,2,3\n", columns=["z", "w"]) == [["1", "2", "3"]]


def test_an_empty_line_is_no_row_even_in_a_file_of_one_column() -> None:
    assert cells_of(b'x\n\n""\n1\n\n', nulls=[""]) == [[None], ["1"]]


def test_no_line_of_a_file_is_good() -> None:
    content = b"x,y\n1\n2\n"
    assert cells_of(content) == [Reason.BROKEN_CSV_LINE] * 2


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"x,y,x", "names column 'x' 2 times"),
        (b"x,\xff", "not UTF-8"),
        (b'x,"y', "the header line is broken"),
        (b"x\ry\r1\r2", "the header line is broken"),
    ],
)
@pytest.mark.parametrize("more", [b"", b"\n1,2\n"])
def test_an_unusable_header_is_an_error_that_names_the_file(
    header: bytes, says: str, more: bytes
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read(header + more)
    assert str(caught.value).startswith("x.csv: ")
