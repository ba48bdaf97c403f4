"""Acceptance: exactly the rows that come too late or too far ahead are rejected."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.judged import read_stream
from tidemill import EventStream, Request
from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import INT64, STRING, TIMESTAMP
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.acceptance import Gate, judge_arrivals
from tidemill.pipelines.io.files.judged_rows import Counts, StreamBatch

SCHEMA = {"at": TIMESTAMP, "got": TIMESTAMP, "id": STRING, "n": INT64}
STREAM = EventStream(
    "events",
    schema=SCHEMA,
    event_time="at",
    event_id="id",
    transport=["got"],
    out_of_orderness="10s",
    allowed_lateness="20s",
    max_ahead="5s",
)
SECOND = 1_000_000


def line(at: int, got: int | None, name: str = "e", n: Any = 0) -> bytes:
    stamp = "" if got is None else f"1970-01-01T00:{got // 60:02}:{got % 60:02}Z"
    return f"1970-01-01T00:{at // 60:02}:{at % 60:02}Z,{stamp},{name},{n}".encode()


def written(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"\n".join([",".join(SCHEMA).encode(), *lines]) + b"\n")
    return path


def judged(files: Sequence[Path], **options: Any) -> list[StreamBatch]:
    options = {"received": "got"} | options
    return list(read_stream(STREAM, files, **options))


def rejections(batches: Sequence[StreamBatch]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = rejected.concat(b.rejected for b in batches).to_pylist()
    return rows


def kept(batches: Sequence[StreamBatch]) -> list[tuple[int, int]]:
    return [(b.partition, position) for b in batches for position in b.positions.tolist()]


def test_a_row_below_the_bound_is_too_late_and_one_on_it_is_not(tmp_path: Path) -> None:
    lines = [line(100, 100), line(69, 101), line(70, 102), line(101, 103), line(70, 104)]
    batches = judged([written(tmp_path / "e.csv", lines)])
    assert [p for _, p in kept(batches)] == [0, 2, 3]
    assert [b.batch["at"].cast(pa.int64()).to_pylist() for b in batches] == [
        [100 * SECOND, 70 * SECOND, 101 * SECOND]
    ]
    first, second = rejections(batches)
    assert first == {
        "stage": "accept",
        "reason": "too_late",
        "detail": "column 'at': found 1970-01-01T00:01:09.000000Z, expected at least "
        "1970-01-01T00:01:10.000000Z: 30s (out_of_orderness + allowed_lateness) below the "
        "highest accepted time; the highest accepted time before it is "
        "1970-01-01T00:01:40.000000Z",
        "stream": "events",
        "partition": 0,
        "position": 1,
        "origin": "e.csv:3",
        "payload": lines[1],
    }
    assert (second["position"], second["reason"]) == (4, "too_late")
    assert sum((b.counts for b in batches), start=Counts()) == Counts(5, 3, 0, 2)


def test_a_row_too_far_past_its_receipt_is_ahead_and_moves_no_watermark(tmp_path: Path) -> None:
    lines = [line(100, 100), line(200, 194), line(105, 100), line(75, 100)]
    found = rejections(batches := judged([written(tmp_path / "e.csv", lines)]))
    # If the second row moved the watermark, the two rows after it would be too late.
    assert [p for _, p in kept(batches)] == [0, 2, 3]
    assert [(r["position"], r["stage"], r["reason"]) for r in found] == [(1, "accept", "ahead")]
    assert found[0]["payload"] == lines[1]
    assert found[0]["detail"] == (
        "column 'at': found 1970-01-01T00:03:20.000000Z, expected at most "
        "1970-01-01T00:03:19.000000Z: 5s (max_ahead) past its receipt at "
        "1970-01-01T00:03:14.000000Z; the highest accepted time before it is "
        "1970-01-01T00:01:40.000000Z"
    )


def test_a_row_that_is_rejected_earlier_or_is_no_event_moves_no_watermark(tmp_path: Path) -> None:
    lines = [line(900, 900, n="x"), line(901, 901, n=7), line(902, 902, n=8), b"900", line(1, 2)]

    def transform(raw: pa.RecordBatch) -> pa.RecordBatch:
        numbers = raw["n"].to_pylist()
        return raw.append_column("__drop__", pa.array([n == "7" for n in numbers])).append_column(
            "__reject__", pa.array(["no" if n == "8" else None for n in numbers])
        )

    batches = judged([written(tmp_path / "e.csv", lines)], transform=transform)
    assert [p for _, p in kept(batches)] == [4]
    assert [(r["position"], r["stage"]) for r in rejections(batches)] == [
        (0, "validate"),
        (2, "transform"),
        (3, "read"),
    ]
    assert sum((b.counts for b in batches), start=Counts()) == Counts(5, 1, 1, 3)


def test_each_partition_has_a_highest_time_of_its_own(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "a.csv", [line(500, 500), line(1, 501)]),
        written(tmp_path / "b.csv", [line(1, 501), line(2, 502)]),
    ]
    batches = judged(files)
    assert kept(batches) == [(0, 0), (1, 0), (1, 1)]
    assert [(r["partition"], r["position"]) for r in rejections(batches)] == [(0, 1)]


def test_without_a_time_of_receipt_nothing_is_late_or_ahead(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", [line(3000, 1), line(1, None), line(2, 900)])
    batches = judged([path], received=None)
    assert [p for _, p in kept(batches)] == [0, 1, 2]
    assert rejections(batches) == []


def test_a_row_without_its_time_of_receipt_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", [line(100, 100), line(3000, None), line(101, 101)])
    (found,) = rejections(batches := judged([path]))
    assert [p for _, p in kept(batches)] == [0, 2]
    assert (found["stage"], found["reason"]) == ("accept", "null_time")
    assert "column 'got': found null" in found["detail"]


def test_a_json_lines_log_is_judged_too(tmp_path: Path) -> None:
    rows = [(100, 100), (1, 101)]
    path = tmp_path / "e.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(dict(zip(SCHEMA, line(at, got).decode().split(","), strict=True)))
            for at, got in rows
        )
    )
    (found,) = rejections(judged([path]))
    assert (found["origin"], found["reason"]) == ("e.jsonl:2", "too_late")


def test_a_request_is_judged_by_its_own_bounds() -> None:
    request = Request(
        "asked", schema=SCHEMA, request_time="at", request_id="id", out_of_orderness="1s"
    )
    rows = batch_of([(100, 100), (99, 100), (98, 100)])
    assert judge_arrivals(request, rows, "got", TIME_MIN)[0].keys() == {2}


def batch_of(rows: Sequence[tuple[int, int | None]]) -> pa.RecordBatch:
    kind = pa.timestamp("us", "UTC")
    return pa.RecordBatch.from_pydict(
        {
            "at": pa.array([at * SECOND for at, _ in rows], kind),
            "got": pa.array([None if got is None else got * SECOND for _, got in rows], kind),
            "id": pa.array([f"e{i}" for i in range(len(rows))]),
            "n": pa.array([0] * len(rows), pa.int64()),
        }
    )


def spelt_out(rows: Sequence[tuple[int, int | None]]) -> list[Reason | None]:
    """The contract of time, row by row."""
    highest, out = -(10**9), []
    for at, got in rows:
        if got is None:
            out.append(Reason.NULL_TIME)
        elif at > got + 5:
            out.append(Reason.AHEAD)
        elif at < highest - 30:
            out.append(Reason.TOO_LATE)
        else:
            highest = max(highest, at)
            out.append(None)
    return out


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 100), st.one_of(st.none(), st.integers(0, 100))), max_size=40
    ),
    cuts=st.sets(st.integers(0, 40)),
)
def test_the_decision_is_the_contracts_however_the_log_is_cut_into_batches(
    rows: list[tuple[int, int | None]], cuts: set[int]
) -> None:
    gate = Gate(STREAM, "got")
    edges = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
    found: list[Reason | None] = []
    for start, stop in itertools.pairwise(edges):
        refusals = gate.refuse(0, batch_of(rows[start:stop]))
        found += [refusals[i][0] if i in refusals else None for i in range(stop - start)]
    assert found == spelt_out(rows)


@pytest.mark.parametrize("block_bytes", [64, 500, 1 << 20])
def test_a_file_is_judged_the_same_however_it_is_read(tmp_path: Path, block_bytes: int) -> None:
    chance = np.random.default_rng(1)
    rows = [(int(chance.integers(0, 3) * 40 + i % 7), i // 2) for i in range(200)]
    path = written(tmp_path / "e.csv", [line(at, got) for at, got in rows])
    batches = judged([path], block_bytes=block_bytes)
    wanted = {i: reason for i, reason in enumerate(spelt_out(rows)) if reason is not None}
    assert {r["position"]: r["reason"] for r in rejections(batches)} == wanted
    assert {Reason.AHEAD, Reason.TOO_LATE} == set(wanted.values())
    assert all(r["stage"] == Stage.ACCEPT for r in rejections(batches))
    assert [p for _, p in kept(batches)] == [i for i in range(200) if i not in wanted]
