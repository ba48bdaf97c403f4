"""Validation: what each dtype accepts, as text and typed, and the reason for what is rejected."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import strategies
from tidemill import EventStream, Request
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT
from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, INT64, STRING, TIMESTAMP
from tidemill.features.errors import DefinitionError, InputError
from tidemill.features.rows import text_values
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.validation import LONGEST_ID, Validated, validate

NEW_YORK = "America/New_York"
SCHEMA = {"at": TIMESTAMP, "id": STRING, "key": STRING, "i": INT64, "f": FLOAT64, "b": BOOL}
STREAM = EventStream("events", schema=SCHEMA, event_time="at", event_id="id")
GOOD = {
    "at": "2013-01-31T17:05:00Z",
    "id": "e1",
    "key": "k",
    "i": "42",
    "f": "1.5",
    "b": "true",
}
MICROSECOND = datetime.timedelta(microseconds=1)


def judge(columns: dict[str, Any], **options: Any) -> Validated:
    """Validate one row or several; columns that are not given hold good texts."""
    rows = next((len(c) for c in columns.values() if isinstance(c, pa.Array | list)), 1)
    arrays = {
        name: column if isinstance(column, pa.Array) else pa.array(column)
        for name, column in ({n: [text] * rows for n, text in GOOD.items()} | columns).items()
    }
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))
    return validate(STREAM, batch, **options)


def outcome(column: str, value: Any, **options: Any) -> Any:
    """Return what a value becomes (times as microseconds), or the reason why it is refused."""
    found = judge({column: value if isinstance(value, pa.Array) else [value]}, **options)
    if found.reasons:
        assert found.batch.num_rows == 0
        assert f"column {column!r}" in found.details[0]
        return found.reasons[0]
    array = found.batch[column]
    return (array.cast(pa.int64()) if column == "at" else array)[0].as_py()


def utc_us(*fields: int) -> int:
    moment = datetime.datetime(*fields, tzinfo=datetime.UTC)  # type: ignore[arg-type, misc]
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // MICROSECOND


# What is kept


def test_what_is_kept_has_the_declared_columns_in_order_and_type() -> None:
    batch = pa.RecordBatch.from_pydict({n: [GOOD[n]] for n in reversed(GOOD)} | {"extra": ["x"]})
    found = validate(STREAM, batch)
    assert found.batch.schema.names == list(SCHEMA)
    assert [field.type for field in found.batch.schema] == [ARROW_TYPES[d] for d in SCHEMA.values()]
    assert found.kept.tolist() == [0]
    assert found.rejected_rows.tolist() == []
    assert found.batch.to_pylist()[0] == {
        "at": datetime.datetime(2013, 1, 31, 17, 5, tzinfo=datetime.UTC),
        "id": "e1",
        "key": "k",
        "i": 42,
        "f": 1.5,
        "b": True,
    }


def test_good_rows_keep_their_indices_among_bad_ones() -> None:
    found = judge({"i": ["1", "x", "3", "4.5", None]})
    assert found.kept.tolist() == [0, 2, 4]
    assert found.kept.dtype == found.rejected_rows.dtype == np.int64
    assert found.rejected_rows.tolist() == [1, 3]
    assert found.batch["i"].to_pylist() == [1, 3, None]


def test_a_row_with_several_faults_has_the_reason_of_its_first_column() -> None:
    found = judge({"id": [None], "i": ["x"], "f": ["nan"]})
    assert found.reasons == (Reason.NULL_ID,)
    assert judge({"i": ["x"], "f": ["nan"]}).reasons == (Reason.WRONG_TYPE,)


def test_an_empty_batch_is_an_empty_batch() -> None:
    found = judge({name: pa.array([], pa.string()) for name in SCHEMA})
    assert found.batch.num_rows == 0
    assert found.batch.schema.names == list(SCHEMA)


def test_a_validated_batch_is_valid() -> None:
    once = judge({"f": ["-0.0", "1e-300"]})
    again = validate(STREAM, once.batch)
    assert again.batch.equals(once.batch)


# Null and missing


@pytest.mark.parametrize(
    ("column", "reason"),
    [("at", Reason.NULL_TIME), ("id", Reason.NULL_ID)],
)
def test_null_in_a_required_column(column: str, reason: Reason) -> None:
    assert outcome(column, pa.array([None], pa.string())) == reason
    assert outcome(column, pa.nulls(1)) == reason
    assert outcome(column, "NA", nulls=["", "NA"]) == reason


@pytest.mark.parametrize("column", ["i", "f", "b"])
def test_null_elsewhere_is_a_value(column: str) -> None:
    assert outcome(column, pa.nulls(1)) is None
    assert outcome(column, "NA", nulls=["NA"]) is None
    assert outcome(column, "") == Reason.WRONG_TYPE  # an empty text is null only if declared so


def test_a_null_key_is_a_value() -> None:
    assert judge({"key": [None, "NA"]}, nulls=["NA"]).batch["key"].to_pylist() == [None, None]


def test_a_request_may_have_a_null_key() -> None:
    request = Request("asked", schema=SCHEMA, request_time="at", request_id="id")
    batch = pa.RecordBatch.from_pylist([GOOD | {"key": None}])
    assert validate(request, batch).batch["key"].to_pylist() == [None]
    late = pa.RecordBatch.from_pylist([GOOD | {"id": None}])
    assert validate(request, late).reasons == (Reason.NULL_ID,)


def test_a_missing_column_rejects_every_row_and_names_the_nearest() -> None:
    rows = [{("keys" if n == "key" else n): text for n, text in GOOD.items()}] * 3
    found = validate(STREAM, pa.RecordBatch.from_pylist(rows))
    assert found.reasons == (Reason.MISSING_COLUMN,) * 3
    assert found.rejected_rows.tolist() == [0, 1, 2]
    assert found.batch.num_rows == 0
    assert "no column 'key'; did you mean 'keys'?" in found.details[0]


def test_two_columns_of_one_name_are_no_batch_of_the_shape() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["x"])] * 7, [*SCHEMA, "key"])
    with pytest.raises(InputError, match="2 columns named 'key'"):
        validate(STREAM, batch)


def test_a_zone_must_exist() -> None:
    with pytest.raises(DefinitionError, match="Mars"):
        judge({}, zone="Mars/Olympus")


# Numbers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("007", 7),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0" * 50 + "12", 12),
        ("9223372036854775808", Reason.WRONG_TYPE),
        ("-9223372036854775809", Reason.WRONG_TYPE),
        ("1" * 5000, Reason.WRONG_TYPE),
        ("1.0", Reason.WRONG_TYPE),
        ("1e3", Reason.WRONG_TYPE),
        ("0x1F", Reason.WRONG_TYPE),
        ("1_000", Reason.WRONG_TYPE),
        ("1,000", Reason.WRONG_TYPE),
        (" 1", Reason.WRONG_TYPE),
        ("1\n", Reason.WRONG_TYPE),
        ("1\0", Reason.WRONG_TYPE),
        ("\u0663", Reason.WRONG_TYPE),
        ("-", Reason.WRONG_TYPE),
        ("nan", Reason.WRONG_TYPE),
    ],
)
def test_int64_texts_are_exact(text: str, wanted: Any) -> None:
    assert outcome("i", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1", 1.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5E-3", 0.0015),
        ("0.1", 0.1),
        ("9007199254740993", 9007199254740992.0),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("5e-324", 5e-324),
        ("1e-999", 0.0),
        ("-0.0", 0.0),
        ("-1e-999", 0.0),
        ("nan", Reason.NAN),
        ("-NaN", Reason.NAN),
        ("inf", Reason.INFINITY),
        ("-Infinity", Reason.INFINITY),
        ("1e999", Reason.INFINITY),
        ("-1.8e308", Reason.INFINITY),
        ("1_0.0", Reason.WRONG_TYPE),
        ("1,5", Reason.WRONG_TYPE),
        (" 1.5", Reason.WRONG_TYPE),
        ("0x1p3", Reason.WRONG_TYPE),
        (".", Reason.WRONG_TYPE),
        ("e5", Reason.WRONG_TYPE),
        ("1e", Reason.WRONG_TYPE),
        ("1.5f", Reason.WRONG_TYPE),
        ("\u0663.\u0665", Reason.WRONG_TYPE),
        ("infinit", Reason.WRONG_TYPE),
    ],
)
def test_float64_texts(text: str, wanted: Any) -> None:
    assert repr(outcome("f", text)) == repr(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("1", True),
        ("0", False),
        ("yes", Reason.WRONG_TYPE),
        ("t", Reason.WRONG_TYPE),
        ("01", Reason.WRONG_TYPE),
        ("true ", Reason.WRONG_TYPE),
        ("fal\u017fe", Reason.WRONG_TYPE),
    ],
)
def test_bool_texts(text: str, wanted: Any) -> None:
    assert outcome("b", text) is wanted


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("i", pa.array([7], pa.int8()), 7),
        ("i", pa.array([2**32 - 1], pa.uint32()), 2**32 - 1),
        ("i", pa.array([2**63 - 1], pa.uint64()), 2**63 - 1),
        ("i", pa.array([2**63], pa.uint64()), Reason.WRONG_TYPE),
        ("i", pa.array([1.0], pa.float64()), Reason.WRONG_TYPE),
        ("i", pa.array([True]), Reason.WRONG_TYPE),
        ("i", pa.array([0], pa.timestamp("us", "UTC")), Reason.WRONG_TYPE),
        ("i", pa.array([decimal.Decimal(1)]), 1),
        ("i", pa.array([decimal.Decimal(2**63 - 1)]), 2**63 - 1),
        ("i", pa.array([decimal.Decimal(2**63)]), Reason.WRONG_TYPE),
        ("i", pa.array([decimal.Decimal("1.00")]), Reason.WRONG_TYPE),
        ("i", pa.array([decimal.Decimal("1.5")]), Reason.WRONG_TYPE),
        ("f", pa.array([decimal.Decimal("0.10")]), 0.1),
        ("f", pa.array([decimal.Decimal("-1E-7")], pa.decimal128(38, 20)), -1e-7),
        ("f", pa.array([decimal.Decimal("-0.00")]), 0.0),
        ("f", pa.array([decimal.Decimal("9007199254740992.0000000001")]), 2.0**53),
        ("f", pa.array([decimal.Decimal(10**75 + 1)], pa.decimal256(76, 0)), 1e75),
        ("f", pa.array([decimal.Decimal(3000)], pa.decimal128(5, -3)), 3000.0),
        ("b", pa.array([decimal.Decimal(1)]), Reason.WRONG_TYPE),
        ("key", pa.array([decimal.Decimal(1)]), Reason.WRONG_TYPE),
        ("at", pa.array([decimal.Decimal(1)]), Reason.WRONG_TYPE),
        ("f", pa.array([0.5], pa.float32()), 0.5),
        ("f", pa.array(np.array([0.5], np.float16)), 0.5),
        ("f", pa.array([-0.0]), 0.0),
        ("f", pa.array([math.nan]), Reason.NAN),
        ("f", pa.array([-math.inf], pa.float32()), Reason.INFINITY),
        ("f", pa.array([2**53]), 2.0**53),
        ("f", pa.array([-(2**53)]), -(2.0**53)),
        ("f", pa.array([2**53 + 1]), Reason.WRONG_TYPE),
        ("f", pa.array([-(2**63)]), Reason.WRONG_TYPE),
        ("f", pa.array([2**64 - 1], pa.uint64()), Reason.WRONG_TYPE),
        ("f", pa.array([True]), Reason.WRONG_TYPE),
        ("b", pa.array([False]), False),
        ("b", pa.array([1]), Reason.WRONG_TYPE),
        ("key", pa.array(["é"], pa.large_string()), "é"),
        ("key", pa.array(["é"], pa.string_view()), "é"),
        ("key", pa.array(["é"]).dictionary_encode(), "é"),
        ("key", pa.array(["é".encode()]), "é"),
        ("key", pa.array([5]), Reason.WRONG_TYPE),
        ("i", pa.array(["5"]).dictionary_encode(), 5),
        ("key", pa.array([b"\xff"]), Reason.INVALID_UTF8),
        ("key", pa.array([b"\xed\xa0\x80"], pa.large_binary()), Reason.INVALID_UTF8),
        ("i", pa.array([b"4\xff"]), Reason.INVALID_UTF8),
    ],
)
def test_typed_columns(column: str, value: pa.Array, wanted: Any) -> None:
    assert repr(outcome(column, value)) == repr(wanted)


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.float16(), pa.float32(), pa.int64()])
def test_nulls_of_typed_columns_stay_null(kind: pa.DataType) -> None:
    array = pa.array(np.array([1, 0], kind.to_pandas_dtype()), mask=np.array([False, True]))
    assert judge({"f": array}).batch["f"].to_pylist() == [1.0, None]


def test_a_text_that_arrow_never_checked_is_checked() -> None:
    offsets = pa.py_buffer(np.array([0, 1, 2, 4], np.int32))
    characters = pa.py_buffer(b"a\xff\xc3\xa9")
    unchecked = pa.Array.from_buffers(pa.string(), 3, [None, offsets, characters])
    found = judge({"key": unchecked})
    assert found.reasons == (Reason.INVALID_UTF8,)
    assert found.batch["key"].to_pylist() == ["a", "é"]


def test_bad_utf8_is_refused_even_where_only_a_slice_is_looked_at() -> None:
    array = pa.array([b"\xff", b"good", b"\xfe", None])
    assert judge({"key": array.slice(1, 1)}).batch["key"].to_pylist() == ["good"]
    found = judge({"key": array.slice(1, 3)})
    assert found.reasons == (Reason.INVALID_UTF8,)
    assert found.batch["key"].to_pylist() == ["good", None]


# Times


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2013-01-31T17:05:00Z", utc_us(2013, 1, 31, 17, 5)),
        ("2013-01-31 17:05Z", utc_us(2013, 1, 31, 17, 5)),
        ("2013-01-31T17:05:00.000001+00:00", utc_us(2013, 1, 31, 17, 5, 0, 1)),
        ("2013-01-31T17:05:00.5-05:30", utc_us(2013, 1, 31, 22, 35, 0, 500_000)),
        ("2013-01-31T17:05:00+0530", utc_us(2013, 1, 31, 11, 35)),
        ("2013-01-31T17:05:00-05", utc_us(2013, 1, 31, 22, 5)),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2016-02-29T00:00:00Z", utc_us(2016, 2, 29)),
        ("0001-01-01T00:00:00Z", EARLIEST_EVENT),
        ("9999-12-31T23:59:59.999999Z", LATEST_EVENT),
        ("0001-01-01T00:00:00+00:01", Reason.TIME_OUT_OF_RANGE),
        ("9999-12-31T23:59:59.999999-00:01", Reason.TIME_OUT_OF_RANGE),
        ("0000-12-31T23:00:00Z", Reason.TIME_OUT_OF_RANGE),
        ("10000-01-01T00:00:00Z", Reason.TIME_OUT_OF_RANGE),
        ("2013-01-31T17:05:00", Reason.NAIVE_TIME),
        ("2013-02-29T00:00:00Z", Reason.WRONG_TYPE),
        ("2013-13-01T00:00:00Z", Reason.WRONG_TYPE),
        ("2013-01-00T00:00:00Z", Reason.WRONG_TYPE),
        ("2013-01-31T24:00:00Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:60Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00.1234567Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00.123456001Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00.000000001Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00.1234560Z", utc_us(2013, 1, 31, 17, 5, 0, 123_456)),
        ("2013-01-31 17:05:00.12345600+00", utc_us(2013, 1, 31, 17, 5, 0, 123_456)),
        ("2013-01-31T17:05:00.123456000-05:30", utc_us(2013, 1, 31, 22, 35, 0, 123_456)),
        ("2013-01-31T17:05:00.000000000+0530", utc_us(2013, 1, 31, 11, 35)),
        ("2013-01-31T17:05:00.000000000", Reason.NAIVE_TIME),
        ("2013-01-31T17:05:00.Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00.1234560 Z", Reason.WRONG_TYPE),
        ("2016-12-31T23:59:60Z", Reason.WRONG_TYPE),
        ("2016-12-31T23:59:59.999999000Z", utc_us(2016, 12, 31, 23, 59, 59, 999_999)),
        ("2016-12-31T23:59:61Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00+24:00", Reason.WRONG_TYPE),
        ("2013-01-31T17Z", Reason.WRONG_TYPE),
        ("2013-01-31", Reason.WRONG_TYPE),
        ("2013-1-31T17:05:00Z", Reason.WRONG_TYPE),
        ("20130131T170500Z", Reason.WRONG_TYPE),
        ("2013-01-31T17:05:00 Z", Reason.WRONG_TYPE),
        ("1359651900", Reason.WRONG_TYPE),
        ("", Reason.WRONG_TYPE),
    ],
)
def test_timestamp_texts(text: str, wanted: Any) -> None:
    assert outcome("at", text) == wanted


def test_nanoseconds_that_are_whole_microseconds_are_read_a_column_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"2013-01-31T17:05:00.{n:06}000Z" for n in range(50)]
    monkeypatch.setattr(text_values, "_PARSERS", {})  # no text is parsed on its own
    found = judge({"at": [*texts, "2013-01-31 17:05:00.5+01:00"]})
    assert found.batch["at"].cast(pa.int64()).to_pylist()[:50] == [
        utc_us(2013, 1, 31, 17, 5, 0, n) for n in range(50)
    ]


def us(value: int, unit: str = "us", tz: str | None = "UTC") -> pa.Array:
    return pa.array([value], pa.int64()).cast(pa.timestamp(unit, tz))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (us(5), 5),
        (us(5, "s"), 5_000_000),
        (us(-5, "ms"), -5000),
        (us(5000, "ns"), 5),
        (us(-5000, "ns"), -5),
        (us(5001, "ns"), Reason.WRONG_TYPE),
        (us(5, tz="Asia/Kathmandu"), 5),
        (us(EARLIEST_EVENT), EARLIEST_EVENT),
        (us(LATEST_EVENT // 1_000_000, "s"), LATEST_EVENT - 999_999),
        (us(EARLIEST_EVENT // 1_000_000, "s"), EARLIEST_EVENT),
        (us(EARLIEST_EVENT - 1), Reason.TIME_OUT_OF_RANGE),
        (us(LATEST_EVENT + 1), Reason.TIME_OUT_OF_RANGE),
        (us(2**63 - 1, "s"), Reason.TIME_OUT_OF_RANGE),
        (us(-(2**63), "ms"), Reason.TIME_OUT_OF_RANGE),
        (us(5, tz=None), Reason.NAIVE_TIME),
        (pa.array([datetime.date(2013, 1, 31)]), Reason.WRONG_TYPE),
        (pa.array([5]), Reason.WRONG_TYPE),
    ],
)
def test_typed_times_are_cast_exactly(value: pa.Array, wanted: Any) -> None:
    assert outcome("at", value) == wanted


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ("2013-01-31T12:05:00", utc_us(2013, 1, 31, 17, 5)),
        ("2013-01-31T12:05:00.000000", utc_us(2013, 1, 31, 17, 5)),
        ("2013-11-03T00:59:59.999999", utc_us(2013, 11, 3, 4, 59, 59, 999_999)),
        ("2013-11-03T01:00:00", Reason.AMBIGUOUS_LOCAL_TIME),
        ("2013-11-03T01:30", Reason.AMBIGUOUS_LOCAL_TIME),
        ("2013-11-03T01:59:59.999999", Reason.AMBIGUOUS_LOCAL_TIME),
        ("2013-11-03T02:00:00", utc_us(2013, 11, 3, 7)),
        ("2013-03-10T01:59:59.999999", utc_us(2013, 3, 10, 6, 59, 59, 999_999)),
        ("2013-03-10T02:00:00", Reason.NONEXISTENT_LOCAL_TIME),
        ("2013-03-10T03:00:00", utc_us(2013, 3, 10, 7)),
        ("0001-01-01T00:00:00", EARLIEST_EVENT + 17_762_000_000),
        ("9999-12-31T23:59:59", Reason.TIME_OUT_OF_RANGE),
        ("2013-02-30T00:00:00", Reason.WRONG_TYPE),
    ],
)
def test_naive_times_are_local_to_the_declared_zone(local: str, wanted: Any) -> None:
    assert outcome("at", local, zone=NEW_YORK) == wanted
    if wanted != Reason.WRONG_TYPE:
        typed = pa.array([np.datetime64(local, "us")])
        assert outcome("at", typed, zone=NEW_YORK) == wanted


@pytest.mark.parametrize("local", ["2013-11-03T01:30:00", "2013-11-03 01:30"])
@pytest.mark.parametrize(("rule", "hour"), [("first", 5), ("last", 6)])
def test_a_source_may_choose_an_instant_of_a_repeated_time(
    local: str, rule: str, hour: int
) -> None:
    texts = [local, "2013-11-03T01:30:00-05:00", "2013-11-03T02:30:00"]
    typed = pa.array([np.datetime64(local, "us"), np.datetime64("2013-11-03T02:30:00", "us")])
    for times in (texts, typed):
        found = judge({"at": times}, zone=NEW_YORK, ambiguous=rule)
        assert found.batch["at"].cast(pa.int64())[0].as_py() == utc_us(2013, 11, 3, hour, 30)
        assert found.resolved.tolist() == [True] + [False] * (len(times) - 1)


def test_resolved_rows_are_those_that_were_kept() -> None:
    found = judge(
        {"at": ["2013-11-03T01:30:00"] * 3, "i": ["1", "x", "3"]}, zone=NEW_YORK, ambiguous="last"
    )
    assert found.kept.tolist() == [0, 2]
    assert found.resolved.tolist() == [True, True]


def test_a_time_with_an_offset_needs_no_zone_and_heeds_none() -> None:
    texts = ["2013-01-31T17:05:00Z", "2013-01-31T12:05:00"]
    found = judge({"at": texts}, zone=NEW_YORK)
    assert len(set(found.batch["at"].to_pylist())) == 1


# Laws

TEXTS = {
    INT64: st.from_regex(re.compile(r"[+-]?[0-9]{1,22}", re.ASCII), fullmatch=True)
    | st.integers(-(2**64), 2**64).map(str),
    FLOAT64: st.floats().map(repr)
    | st.from_regex(
        re.compile(r"[+-]?[0-9]{0,20}\.?[0-9]{0,20}(e[+-]?[0-9]{1,4})?", re.ASCII), fullmatch=True
    ),
    BOOL: st.sampled_from(("true", "False", "1", "0", "no")),
    TIMESTAMP: st.datetimes().map(str)
    | st.datetimes(timezones=st.timezones()).map(datetime.datetime.isoformat)
    | st.from_regex(
        re.compile(
            r"(19|20)[0-9]{2}-(0[1-9]|1[0-3])-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]"
            r"(:[0-6][0-9](\.[0-9]{1,6}(0{1,4}|[0-9])?)?)?(Z|[+-][0-2][0-9](:?[0-6][0-9])?)?",
            re.ASCII,
        ),
        fullmatch=True,
    ),
}
columns = st.sampled_from(sorted(TEXTS)).flatmap(
    lambda dtype: st.tuples(
        st.just(dtype),
        st.lists(st.none() | TEXTS[dtype] | TEXTS[dtype] | st.text(max_size=6), max_size=8),
    )
)


@given(columns, st.sampled_from((None, NEW_YORK)))
@example((TIMESTAMP, ["2013-02-29T00:00:00Z", "2016-02-29T00:00:00Z", "2013-01-31T00:00Z"]), None)
@example((TIMESTAMP, ["2013-02-30T00:00", "2013-03-31T01:30", "2013-01-31 12:05:00.5"]), NEW_YORK)
@example((TIMESTAMP, ["2013-03-10T02:30", "2013-11-03T01:30", "2013-03-10T02:30Z"]), NEW_YORK)
@example((FLOAT64, ["0.1", "123456789012345678e22", "7.2057594037927933e16"]), None)
def test_a_column_of_texts_says_what_each_text_says_alone(
    case: tuple[str, list[str | None]], zone: str | None
) -> None:
    dtype, texts = case
    parsed = text_values.parse(pa.array(texts, pa.string()), dtype, zone)
    twice = [] if parsed.repeated is None else parsed.repeated.rows.tolist()
    for row, text in enumerate(texts):
        wanted = None if text is None else text_values.parse_one(text, dtype, zone)
        assert (row in twice) == (wanted == Reason.AMBIGUOUS_LOCAL_TIME)
        if wanted == Reason.AMBIGUOUS_LOCAL_TIME:
            assert parsed.valid[row]
        elif isinstance(wanted, Reason):
            assert parsed.refused[row] == wanted
            assert not parsed.valid[row]
        else:
            assert row not in parsed.refused
            assert parsed.valid[row] == (wanted is not None)
            if wanted is not None:
                assert repr(parsed.values[row].item()) == repr(wanted)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_written_by_python_is_read_back_bit_for_bit(value: float) -> None:
    assert repr(outcome("f", repr(value))) == repr(value + 0.0)


@given(st.datetimes(timezones=st.timezones()))
def test_a_time_written_by_python_is_read_back(moment: datetime.datetime) -> None:
    offset = moment.utcoffset()
    assert offset is not None
    if offset % datetime.timedelta(minutes=1):
        return  # ISO 8601 has no seconds in an offset
    wanted = (moment.replace(tzinfo=None) - _EPOCH - offset) // MICROSECOND
    inside = EARLIEST_EVENT <= wanted <= LATEST_EVENT
    found = outcome("at", moment.isoformat())
    assert found == (wanted if inside else Reason.TIME_OUT_OF_RANGE)


_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - subtracted from a local time

CELLS: Sequence[str | None] = (
    None,
    *GOOD.values(),
    "",
    "nan",
    "-inf",
    "2013-03-10T02:30:00",
    "2013-11-03T01:30:00",
    "0000-01-01T00:00:00Z",
    "99999999999999999999",
)


@given(
    st.lists(st.fixed_dictionaries({n: st.sampled_from(CELLS) for n in SCHEMA}), max_size=6),
    st.sampled_from((None, NEW_YORK)),
)
def test_what_becomes_of_a_row_does_not_depend_on_its_neighbours(
    rows: list[dict[str, str | None]], zone: str | None
) -> None:
    schema = pa.schema([(name, pa.string()) for name in SCHEMA])
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    whole = validate(STREAM, batch, zone=zone)
    alone = [validate(STREAM, batch.slice(row, 1), zone=zone) for row in range(len(rows))]
    assert whole.kept.tolist() == [row for row, one in enumerate(alone) if not one.reasons]
    assert list(whole.reasons) == [reason for one in alone for reason in one.reasons]
    assert list(whole.details) == [detail for one in alone for detail in one.details]
    assert whole.batch.to_pylist() == [row for one in alone for row in one.batch.to_pylist()]


@given(st.data())
def test_rows_of_the_declared_types_pass_unchanged(data: st.DataObject) -> None:
    schema = data.draw(strategies.schemas())
    stream = EventStream("events", schema, strategies.EVENT_TIME, strategies.EVENT_ID)
    row = st.fixed_dictionaries(
        {
            name: strategies.values(dtype)
            if name in stream.required
            else st.none() | strategies.values(dtype)
            for name, dtype in schema.items()
        }
    )
    batch = strategies.to_batch(schema, data.draw(st.lists(row, max_size=5)))
    assert validate(stream, batch).batch.equals(batch)


# Details


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("i", "abc", "column 'i': found 'abc', expected int64: a whole number"),
        ("f", "-inf", "column 'f': found '-inf', expected a finite number"),
        ("at", "2013-01-31T17:05:00.123456789Z", "expected whole microseconds: decimals after the"),
        ("at", us(1, "ns"), "00.000000001Z (of type timestamp[ns, tz=UTC]), expected whole micro"),
        ("at", "2016-12-31T23:59:60Z", "expected seconds from 00 to 59: every day has 86,400"),
        ("at", "2016-12-31T23:59:61Z", "expected timestamp: a date and time"),
        ("at", pa.array([5]), "expected timestamp: a date and time"),
        ("i", pa.array([1.5]), "found 1.5 (of type double)"),
        ("at", us(5, tz=None), "found 1970-01-01T00:00:00.000005 (of type timestamp[us])"),
        ("at", us(2**63 - 1, "s"), "expected a time in the years 1 to 9999"),
        ("at", "2013-01-31T17:05:00", "a zone declared for its source"),
        (
            "at",
            "2013-11-03T01:30:00",
            "showed it twice: write its offset, or choose ambiguous: first, last, infer for",
        ),
        ("key", pa.array([b"\xff"]), r"found b'\xff', expected a text in UTF-8"),
        ("id", pa.nulls(1), "found null, expected the id of every row"),
        ("i", "9" * 5000, "... (5002 characters)"),
    ],
)
def test_the_detail_says_what_was_found_where_and_what_was_expected(
    column: str, value: Any, says: str
) -> None:
    zone = NEW_YORK if "11-03" in str(value) else None
    found = judge({column: value if isinstance(value, pa.Array) else [value]}, zone=zone)
    assert says in found.details[0]
    assert len(found.details[0]) < 300


def test_a_request_id_that_is_too_long_is_refused() -> None:
    asked = Request(
        "asked", {"at": "timestamp", "id": "string"}, request_time="at", request_id="id"
    )
    ids = ["x" * LONGEST_ID, "x" * (LONGEST_ID + 1), "ä" * (LONGEST_ID // 2 + 1), None, "y"]
    times = pa.array([0] * len(ids), pa.timestamp("us", "UTC"))
    found = validate(asked, pa.RecordBatch.from_pydict({"at": times, "id": ids}))
    assert found.kept.tolist() == [0, 4]
    assert found.reasons == (Reason.TOO_LONG, Reason.TOO_LONG, Reason.NULL_ID)
    assert found.details[1] == (
        "column 'id': found a text of 4,098 bytes, expected an id of at most 4,096"
    )
