"""JSON messages: values and faults of a JSON Lines file, whichever layout a message has."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.payloads import checked, faults_of, messages, rejected_of, rows_of
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.json_lines import Keys, read_lines
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads import json_rows
from tidemill.pipelines.io.payloads.decoding import IGNORE_TOMBSTONES, Decoded
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder

COLUMNS = ["a", "b", "é"]


def decode(
    values: Sequence[bytes | None], columns: Sequence[str] | None = None, **options: Any
) -> list[Decoded]:
    decoded = list(JsonDecoder(Reader("orders", columns), **options).decode(messages(values), 7))
    checked(decoded, 7)
    return decoded


def outcome(decoded: Sequence[Decoded]) -> list[tuple[int, Any]]:
    """By position, a row's values that are not null, or its reason and detail."""
    found: list[tuple[int, Any]] = []
    for part in decoded:
        for row, place in zip(part.raw.batch.to_pylist(), part.raw.positions, strict=True):
            found.append((int(place) - 7, {k: v for k, v in row.items() if v is not None}))
    for row in rejected_of(decoded):
        found.append((row["position"] - 7, (row["reason"], row["detail"])))
    return sorted(found, key=lambda one: one[0])


def as_a_file(lines: Sequence[bytes], columns: Sequence[str] | None) -> list[tuple[int, Any]]:
    """What a JSON Lines file of these lines gives."""
    found: list[tuple[int, Any]] = []
    for line in lines:
        # A file of one line each, because in a file an empty line is no row.
        file = io.BytesIO(b"\n" + line)
        for (one,) in read_lines(file, [Keys(columns)]):
            for row in one.batch.to_pylist():
                found.append((len(found), {k: v for k, v in row.items() if v is not None}))
            found += [(len(found), (str(fault[0]), fault[1])) for fault in one.faults.values()]
    return found


TEXT = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["\ud800", "\udc00x", "\U0001f600", '"', "\\", "\x00", "\x7f"]),
)
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    TEXT,
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)
KEY = st.sampled_from(["a", "b", "é", "other", "\ud800"])


@st.composite
def objects(draw: st.DrawFn) -> str:
    """An object whose keys may occur twice."""
    ascii_only = draw(st.booleans())

    def written(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=ascii_only)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return json.dumps(value)
        return text

    pairs = draw(st.lists(st.tuples(KEY, draw(st.sampled_from([LEAF, VALUE]))), max_size=5))
    comma = draw(st.sampled_from([",", " , "]))
    inside = comma.join(f"{written(key)}:{written(value)}" for key, value in pairs)
    return "{" + inside + "}"


BROKEN = st.sampled_from(
    [
        *[b"{", b'{"a":1', b'{"a":1}}', b"5", b"null", b'"x"', b'{"a":"\xff"}', b'{"a":01}', b" "],
        *[b'{"a":"\x01"}', b'{"a":{"c":1,"c":2}}', b'{"b":{"c":1,"c":2},"a":[NaN,1e400]}'],
        *[b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a":1}{"a":2}'],
    ]
)
LINES = st.lists(st.one_of(objects().map(str.encode), BROKEN), min_size=1, max_size=6)
ALIKE = st.lists(
    st.fixed_dictionaries({"a": LEAF, "b": LEAF, "other": LEAF}).map(
        lambda row: json.dumps(row).encode()
    ),
    min_size=1,
    max_size=5,
)


@given(st.one_of(LINES, ALIKE), st.sampled_from([None, COLUMNS]))
@example([b'{"a":true}', b'{"a":1.50}'], None)
@example([b'{"a":"x","a":"y"}', b'{"a":"x","a":"y"}'], ["a"])
@example([b'{"other":1,"other":2}', b'{"other":1,"other":2}'], ["a"])
@settings(max_examples=300, deadline=None)
def test_single_rows_are_those_of_a_file(lines: list[bytes], columns: list[str] | None) -> None:
    assert outcome(decode(lines, columns)) == as_a_file(lines, columns)


@given(LINES, st.sampled_from([None, COLUMNS]))
@settings(max_examples=150, deadline=None)
def test_json_lines_in_a_message_are_those_of_a_file(
    lines: list[bytes], columns: list[str] | None
) -> None:
    whole = [b'{"a":"first"}', b'{"b":2}', *lines]
    expected = as_a_file([line for line in whole if line], columns)
    assert outcome(decode([b"\n".join(whole)], columns)) == expected
    assert outcome(decode([b"\r\n".join(whole) + b"\r\n"], columns)) == expected
    (read,) = read_lines(io.BytesIO(b"\n".join(whole)), [Keys(columns)])
    assert len(read[0].lines) == len(expected)


@given(
    st.lists(st.one_of(objects(), st.sampled_from(["5", "[1, {}]", '"],["'])), max_size=5),
    st.sampled_from([",", " ,\n\t"]),
    st.sampled_from([None, COLUMNS]),
)
@settings(max_examples=150, deadline=None)
def test_elements_of_an_array_are_those_of_a_file(
    elements: list[str], comma: str, columns: list[str] | None
) -> None:
    array = f"[ {comma.join(elements)} ]".encode()
    expected = as_a_file([element.encode() for element in elements], columns)
    found = decode([array, b" " + array], columns)
    assert outcome(found) == [*expected, *((n + len(expected), one) for n, one in expected)]
    for part in found:
        payloads = part.raw.payloads(np.arange(part.raw.batch.num_rows))
        assert len(elements) == 1 or {one.decode() for one in payloads} <= set(elements)


@given(
    st.lists(st.one_of(objects().map(str.encode), BROKEN, st.none()), min_size=1, max_size=8),
    st.integers(1, 7),
    st.sampled_from([None, COLUMNS]),
)
@settings(max_examples=100, deadline=None)
def test_batches_of_messages_make_no_difference(
    values: list[bytes | None], cut: int, columns: list[str] | None
) -> None:
    given = messages(values)
    decoder = JsonDecoder(Reader("orders", columns))
    whole = outcome(list(decoder.decode(given, 7)))
    parts = list(decoder.decode(messages(values[:cut]), 7))
    rest = messages(values[cut:], first=100 + cut)
    parts += decoder.decode(rest, 7 + sum(map(len, parts)))
    assert outcome(parts) == whole


def test_a_message_that_is_no_json_is_one_rejected_record_with_its_bytes() -> None:
    values = [b'{"a":1}', b'[{"a":1},{"a":', b'{"a":\n{"b":2}\n', b"\xff\n{}", b"", b"[1,2"]
    decoded = decode(values)
    assert rows_of(decoded) == [{"a": "1"}]
    assert [row["payload"] for row in rejected_of(decoded)] == values[1:]
    reasons = [row["reason"] for row in rejected_of(decoded)]
    assert reasons == [*["broken_json"] * 2, "invalid_utf8", *["broken_json"] * 2]


def test_a_byte_order_mark_at_the_start_of_a_message_is_skipped() -> None:
    mark = b"\xef\xbb\xbf"
    values = [mark + b'{"a":1}', mark + b'[{"a":2},{"a":3}]', mark + b'{"a":4}\n{"a":5}']
    (part,) = decode(values)
    assert [row["a"] for row in part.raw.batch.to_pylist()] == list("12345")
    assert part.raw.payloads(part.raw.positions - 7)[0] == values[0]
    assert rejected_of(decode([mark]))[0]["reason"] == Reason.BROKEN_JSON


def test_an_object_over_several_lines_is_one_row_with_untouched_bytes() -> None:
    value = b' {"a": 1.0,\n "b": {"c": [1, 2]}}\n'
    (part,) = decode([value])
    assert part.raw.batch.to_pylist() == [{"a": "1.0", "b": '{"c":[1,2]}'}]
    assert part.raw.payloads(part.raw.positions - 7) == [value]
    assert part.raw.origins(part.raw.positions - 7) == ["orders/3@100"]


def test_rows_know_their_messages() -> None:
    values = [b'[{"a":1},5]', None, b"[]", b'{"a":2}\n{"a":3}', b'{"a":4}']
    given = messages(values, keys=[None, b"k\xff", None, None, None], step=10)
    (part,) = JsonDecoder(Reader("orders", ["a"])).decode(given, 40)
    assert part.offsets.tolist() == [100, 100, 110, 130, 130, 140]
    assert part.numbers.tolist() == [0, 1, 0, 0, 1, 0]
    assert part.raw.positions.tolist() == [40, 43, 44, 45]
    origins = [f"orders/3@{place}" for place in ("100:0", "130:0", "130:1", "140")]
    assert part.raw.origins(np.arange(4)) == origins
    assert part.raw.payloads(np.arange(4)) == [
        b'{"a":1}',
        b'{"a":2}',
        b'{"a":3}',
        b'{"a":4}',
    ]
    second, tombstone = rejected_of([part])
    assert (second["origin"], second["payload"]) == ("orders/3@100:1", b"5")
    assert (tombstone["origin"], tombstone["payload"]) == ("orders/3@110", b"")
    assert tombstone["reason"] == Reason.NO_VALUE
    assert "b'k\\xff'" in tombstone["detail"]


def test_ignored_tombstones_take_no_position() -> None:
    decoded = decode([None, b'{"a":1}', None], tombstones=IGNORE_TOMBSTONES)
    assert (rows_of(decoded), faults_of(decoded)) == ([{"a": "1"}], [])
    assert decode([None], tombstones=IGNORE_TOMBSTONES) == []


def test_a_column_that_no_row_has_is_null() -> None:
    assert rows_of(decode([b'{"b":1}', b"{}"], ["a"])) == [{"a": None}, {"a": None}]


def test_columns_are_in_the_order_that_is_asked_for_or_in_which_they_come() -> None:
    alike, other = [b'{"b":1,"a":2}'] * 2, [b'{"b":1}', b'{"c":[1],"a":2}', b'{"d":1,"d":2}']
    for values, found in ((alike, ["b", "a"]), (other, ["b", "c", "a", "d"])):
        assert decode(values)[0].raw.batch.schema.names == found
        assert decode(values, ["a", "é", "b"])[0].raw.batch.schema.names == ["a", "é", "b"]


def test_texts_that_mean_null_are_null() -> None:
    assert rows_of(decode([b'{"a":"-"}', b'{"a":"--"}'], nulls=["-"])) == [{"a": None}, {"a": "--"}]


def test_many_different_keys_divide_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_BATCH_CELLS", 100)
    values = [json.dumps({f"key{n}": n}).encode() for n in range(50)] + [b'[{"a":1},{"b":2}]'] * 9
    decoded = decode(values)
    assert len(decoded) > 3
    assert max(part.raw.batch.num_rows * part.raw.batch.num_columns for part in decoded) <= 100
    found = [one for _, one in outcome(decoded)]
    assert found == [{f"key{n}": str(n)} for n in range(50)] + [{"a": "1"}, {"b": "2"}] * 9
    origins = [origin for part in decoded for origin in part.raw.origins(part.raw.positions * 0)]
    assert all(":" in origin for origin in origins[-2:])


def test_a_row_with_too_many_keys_is_refused_where_each_is_a_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_rows, "MOST_KEYS", 2)
    value = b'{"a":1,"b":2,"c":3}'
    (row,) = rejected_of(decode([value, b'{"a":1}']))
    assert (row["reason"], row["payload"]) == (Reason.TOO_MANY_KEYS, value)
    assert "the key 'c' past 2 keys" in row["detail"]
    assert rows_of(decode([value], ["a"])) == [{"a": "1"}]
