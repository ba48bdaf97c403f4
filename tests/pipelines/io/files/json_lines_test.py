"""JSON Lines: what a line costs, which of its keys are read, and keys that occur twice."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files import json_lines
from tidemill.pipelines.io.files.json_lines import Keys, Lines, keys_in, read_lines

MARK = b"\xef\xbb\xbf"


def read(
    lines: Sequence[bytes],
    keys: Sequence[str] = (),
    wanted: Sequence[str] | None = None,
    **options: Any,
) -> list[Lines]:
    file = io.BytesIO(b"\n".join(lines))
    return [found for (found,) in read_lines(file, [Keys(wanted, keys)], **options)]


def rows_of(batches: Sequence[Lines]) -> list[dict[str, Any]]:
    return [row for found in batches for row in found.batch.to_pylist()]


def faults_of(batches: Sequence[Lines]) -> dict[int, tuple[Reason, str]]:
    """Return line number to fault."""
    return {
        int(found.lines[row]): fault for found in batches for row, fault in found.faults.items()
    }


# Keys that are not wanted


def test_only_wanted_keys_become_columns() -> None:
    lines = [json.dumps({"a": n, f"other{n}": n, "nested": {"b": n}}).encode() for n in range(50)]
    for found in read(lines, keys=["a"], wanted=["a", "b"], batch_rows=20):
        assert found.batch.schema.names == ["a"]
    assert [row["a"] for row in rows_of(read(lines, wanted=["a", "b"]))] == list(
        map(str, range(50))
    )


@pytest.mark.parametrize(("line", "wanted"), [(b"{}", None), (b'{"a":1}', ["b"])])
def test_lines_without_a_key_to_read_are_rows(line: bytes, wanted: list[str] | None) -> None:
    (found,) = read([line, b"", line, b"["], wanted=wanted)
    assert (found.batch.num_rows, found.batch.num_columns) == (2, 0)
    assert (found.readable.tolist(), list(found.faults)) == ([0, 1], [2])


def test_a_wanted_key_that_comes_late_is_a_column_from_then_on() -> None:
    lines = [b'{"a":1}', b'{"a":2,"b":3}', b'{"c":4}', b"{}"]
    found = read(lines, wanted=["a", "b"], batch_rows=2)
    assert rows_of(found) == [
        {"a": "1", "b": None}, {"a": "2", "b": "3"}, {"a": None, "b": None}, {"a": None, "b": None}
    ]  # fmt: skip


@pytest.mark.parametrize("wanted", [None, ["k7"], ["k0", "k7", "absent"]])
def test_a_line_is_parsed_at_most_twice_however_many_nested_values_it_has(
    monkeypatch: pytest.MonkeyPatch, wanted: list[str] | None
) -> None:
    parsed: list[str] = []
    plain = json.loads

    def loads(text: str) -> Any:
        parsed.append(text)
        return plain(text)

    monkeypatch.setattr(json, "loads", loads)
    line = json.dumps({f"k{n}": {"a": [n, 1.50]} for n in range(4000)}).encode()
    (row,) = rows_of(read([line], wanted=wanted))
    assert row["k7"] == '{"a":[7,1.5]}'
    assert len(row) == len([n for n in wanted or range(4000) if n != "absent"])
    assert len(parsed) == 1


def test_nested_values_that_are_not_wanted_are_not_parsed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json, "loads", None)
    assert rows_of(read([b'{"a":1,"b":{"c":[2]}}'], wanted=["a"])) == [{"a": "1"}]


# Where every key is wanted: bounds


def test_a_line_past_the_most_keys_is_refused_and_the_others_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_lines, "MOST_KEYS", 5)
    lines = [f'{{"a":{n},"k{n}":1}}'.encode() for n in range(9)] + [b'{"k1":2,"a":9}']
    for batch_rows in (1, 4, 100):
        found = read(lines, batch_rows=batch_rows)
        assert [row["a"] for row in rows_of(found)] == ["0", "1", "2", "3", "9"]
        faults = faults_of(found)
        assert list(faults) == [5, 6, 7, 8, 9]
        assert {reason for reason, _ in faults.values()} == {Reason.TOO_MANY_KEYS}
        assert "found the key 'k4' past 5 keys of the file" in faults[5][1]
    wanted = read(lines, wanted=["a", *(f"k{n}" for n in range(9))])
    assert len(rows_of(wanted)) == 10


def test_a_batch_has_fewer_rows_where_there_are_many_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_lines, "_BATCH_CELLS", 100)
    lines = [f'{{"k{n}":1}}'.encode() for n in range(40)]
    found = read(lines)
    assert sum(len(part.lines) for part in found) == 40
    for part in found:
        # One row may go over the bound.
        assert (part.batch.num_rows - 1) * (part.batch.num_columns - 1) < 100


# Keys that occur twice


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a":1,"a":2}', "column 'a': found the key twice in the line"),
        (b'{"a":1,"b":2,"a":1}', "column 'a': found the key twice in the line"),
        (rb'{"a":1,"\u0061":2}', "column 'a': found the key twice in the line"),
        (b'{"a":{"x":1,"x":2}}', "column 'a': found 'x' twice in an object"),
        (b'{"a":[1,[{"y":[],"y":[]}]]}', "column 'a': found 'y' twice in an object"),
        (b'{"a":{"x":{"z":1,"z":2},"y":1}}', "column 'a': found 'z' twice"),
    ],
)
def test_a_wanted_key_that_occurs_twice_refuses_its_line(line: bytes, says: str) -> None:
    for wanted in (["a"], None):
        found = read([b'{"a":0}', line, b'{"a":3}'], wanted=wanted)
        # A line that repeats a key is not read: its other keys are no columns.
        assert rows_of(found) == [{"a": "0"}, {"a": "3"}]
        ((number, (reason, detail)),) = faults_of(found).items()
        assert (number, reason) == (2, Reason.DUPLICATE_KEY)
        assert says in detail


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1,"b":2,"b":3}',
        b'{"a":1,"b":{"x":1,"x":2}}',
        b'{"b":{"a":5,"a":6},"a":1}',
    ],
)
def test_other_keys_may_occur_twice(line: bytes) -> None:
    assert rows_of(read([line], wanted=["a"])) == [{"a": "1"}]


def test_equal_keys_of_different_objects_are_no_duplicates() -> None:
    line = b'{"a":{"x":{"x":1},"y":[{"x":2},{"x":3}]}}'
    assert rows_of(read([line])) == [{"a": line.decode().removeprefix('{"a":')[:-1]}]


def test_keys_of_a_refused_line_are_not_in_the_file() -> None:
    assert keys_in(io.BytesIO(b'{"a":1,"a":2}\n{"b":3}'), ["a", "b", "c"]) == ["b"]


# A byte order mark


def test_only_the_byte_order_mark_at_the_very_start_is_skipped() -> None:
    found = read([MARK + b'{"a":1}', MARK + b'{"a":2}', b'{"a":"' + MARK + b'3"}'])
    assert rows_of(found) == [{"a": "1"}, {"a": "\ufeff3"}]
    assert {number: reason for number, (reason, _) in faults_of(found).items()} == {
        2: Reason.BROKEN_JSON
    }


# Laws

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from("abcdef"), values, max_size=6)


@given(st.lists(objects, max_size=8), st.sets(st.sampled_from("abcdef")), st.integers(1, 9))
@example([{"a": 1}, {}, {"b": [{}]}], {"b"}, 2)
def test_wanted_columns_are_those_of_reading_all(
    rows: list[dict[str, Any]], wanted: set[str], batch_rows: int
) -> None:
    lines = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows]
    everything = rows_of(read(lines))
    some = rows_of(read(lines, wanted=sorted(wanted), batch_rows=batch_rows))
    assert len(some) == len(everything) == len(rows)
    for row, found, complete in zip(rows, some, everything, strict=True):
        assert found.keys() <= wanted
        for key in wanted:
            assert found.get(key) == complete.get(key)
        for key, value in row.items():
            if isinstance(value, str):
                assert complete[key] == value
            elif value is not None:
                assert json.loads(complete[key]) == value
