"""Request ids: the first place of each, whatever the batches, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.judged import read_stream
from tidemill import Request
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.judged_rows import Counts, StreamBatch
from tidemill.pipelines.io.request_ids import FirstPlaces, RecentPlaces

ASKED = Request(
    "asked",
    schema={"id": "string", "at": "timestamp", "got": "timestamp", "n": "int64"},
    request_time="at",
    request_id="id",
    out_of_orderness="1m",
)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), max_size=8))
def test_each_digest_has_the_place_of_its_first_row(batches: list[list[tuple[int, int]]]) -> None:
    """Also of digests that share a half."""
    first: dict[tuple[int, int], int] = {}
    found, place = FirstPlaces(), 0
    for batch in batches:
        places = np.arange(place, place + len(batch))
        wanted = [first.setdefault(d, p) for d, p in zip(batch, places.tolist(), strict=True)]
        given_ = np.array(batch, np.uint64).reshape(-1, 2)
        assert found.add(given_, places).tolist() == wanted
        place += len(batch)


def test_a_request_costs_less_than_thirty_bytes() -> None:
    chance, found, count = np.random.default_rng(1), FirstPlaces(), 0
    for _ in range(60):
        digests = chance.integers(0, 2**63, (10_000, 2)).astype(np.uint64)
        places = np.arange(count, count + len(digests))
        assert (found.add(digests, places) == places).all()
        assert (found.add(digests[::7], places[::7] + 10**9) == places[::7]).all()
        count += len(digests)
    assert found.nbytes < 30 * count


APART = 4
"""How far apart two accepted requests with one id are, in the tests below."""

requests = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 14)), max_size=15), max_size=6
)


@given(requests)
def test_a_digest_is_compared_with_those_near_in_time(batches: list[list[tuple[int, int]]]) -> None:
    """As one row after the other, whatever the batches, and in whatever order the times are."""
    heads: list[tuple[int, int, int]] = []
    found, place = RecentPlaces(APART), 0
    for batch in batches:
        wanted = []
        for digest, at in batch:
            near = {p for d, t, p in heads if d == digest and abs(t - at) < APART}
            wanted.append(near or {place})
            if not near:
                heads.append((digest, at, place))
            place += 1
        digests = np.array([(7, digest) for digest, _ in batch], np.uint64).reshape(-1, 2)
        times = np.array([at for _, at in batch], np.int64)
        places = np.arange(place - len(batch), place)
        known = found.find(digests, times)
        added = found.add(digests, places, times)
        for row_, (one, before) in enumerate(zip(added.tolist(), known.tolist(), strict=True)):
            assert one in wanted[row_]
            assert before == -1 or before in wanted[row_]
    count = sum(map(len, batches))
    assert found.nbytes <= 44 * count + 1


@given(requests)
def test_what_is_too_old_to_be_near_can_be_forgotten(batches: list[list[tuple[int, int]]]) -> None:
    whole, bounded = RecentPlaces(APART), RecentPlaces(APART)
    newest, place = -(10**6), 0
    for batch in batches:
        batch = [(digest, at) for digest, at in batch if at >= newest - APART]
        digests = np.array([(7, digest) for digest, _ in batch], np.uint64).reshape(-1, 2)
        times = np.array([at for _, at in batch], np.int64)
        places = np.arange(place, place + len(batch))
        assert (
            bounded.add(digests, places, times).tolist()
            == whole.add(digests, places, times).tolist()
        )
        newest, place = max([newest, *times.tolist()]), place + len(batch)
        bounded.forget_before(newest - 2 * APART)


def test_a_flood_of_one_id_is_looked_at_in_one_pass() -> None:
    count, found = 200_000, RecentPlaces(10**9)
    digests = np.tile(np.array([[1, 2]], np.uint64), (count, 1))
    added = found.add(digests, np.arange(count), np.arange(count))
    assert (added == 0).all()


def read(
    folder: Path,
    files: Sequence[Sequence[str]],
    repeated: str = "reject",
    within: str | None = None,
    **options: Any,
) -> list[StreamBatch]:
    paths = []
    for number, lines in enumerate(files):
        path = folder / f"asked-{number}.csv"
        path.write_text("\n".join(["id,at,got,n", *lines, ""]))
        paths.append(path)
    request = replace(ASKED, repeated=repeated, repeated_within=within)
    return list(read_stream(request, paths, **options))


def row(name: str, at: int, n: int = 0, got: int | None = None) -> str:
    got = at if got is None else got
    return f"{name},2026-01-01T00:{at:02}:00Z,2026-01-01T00:{got:02}:00Z,{n}"


FILES = (
    [row("a", 1), row("b", 2), row("a", 3), "c,never,2026-01-01T00:04:00Z,0", row("c", 5)],
    [row("b", 1, 7), row("d", 2), row("", 3), row("d", 2), row("c", 6)],
)


def numbers(batches: list[StreamBatch]) -> tuple[list[tuple[int, int]], list[Any], Counts]:
    """Places of the accepted rows; reason, detail and place of the others; and the counts."""
    accepted = [(b.partition, p) for b in batches for p in b.positions.tolist()]
    rejected = pa.Table.from_batches([b.rejected for b in batches]).to_pylist()
    counts = Counts()
    for batch in batches:
        counts += batch.counts
    return accepted, rejected, counts


@pytest.mark.parametrize("received", [None, "got"])
@pytest.mark.parametrize("block_bytes", [16, 40, 1 << 20])
def test_of_requests_with_one_id_the_first_in_reading_order_is_accepted(
    block_bytes: int, received: str | None, tmp_path: Path
) -> None:
    """The first that is acceptable: a row with a wrong time has no id that counts."""
    batches = read(tmp_path, FILES, block_bytes=block_bytes, received=received)
    accepted, rejected, counts = numbers(batches)
    assert accepted == [(0, 0), (0, 1), (0, 4), (1, 1)]
    assert counts == Counts(read=10, kept=4, rejected=6)
    by_place = {(one["partition"], one["position"]): one for one in rejected}
    again = [(0, 2), (1, 0), (1, 3), (1, 4)]
    assert sorted(by_place) == sorted([*again, (0, 3), (1, 2)])
    for place in again:
        assert (by_place[place]["stage"], by_place[place]["reason"]) == (
            "accept",
            Reason.REPEATED_REQUEST_ID,
        )
    assert by_place[1, 0]["detail"] == (
        "column 'id': found 'b', which row 2 of asked-0.csv has, expected an id of its own"
    )
    assert by_place[1, 0]["payload"] == row("b", 1, 7).encode()
    assert by_place[1, 0]["origin"] == "asked-1.csv:2"


@pytest.mark.parametrize("block_bytes", [16, 40, 1 << 20])
def test_ids_are_compared_with_those_of_requests_that_are_near(
    block_bytes: int, tmp_path: Path
) -> None:
    """In files nothing is forgotten, in whatever order they come."""
    files = [
        [row("a", 30), row("b", 40), row("a", 34), row("a", 35), row("a", 39)],
        [row("a", 1), row("a", 5), row("a", 6), row("b", 36)],
    ]
    batches = read(tmp_path, files, within="5m", block_bytes=block_bytes)
    accepted, rejected, _ = numbers(batches)
    assert accepted == [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2)]
    assert [(one["partition"], one["position"]) for one in rejected] == [
        (0, 2), (0, 4), (1, 1), (1, 3)
    ]  # fmt: skip
    assert rejected[1]["detail"] == (
        "column 'id': found 'a', which row 4 of asked-0.csv has, expected an id of its own within "
        "5m"
    )


def test_repeated_requests_are_accepted_and_counted_where_that_is_declared(tmp_path: Path) -> None:
    accepted, rejected, counts = numbers(read(tmp_path, FILES, "count", block_bytes=40))
    assert len(accepted) == 8
    assert len(rejected) == 2
    assert counts == Counts(read=10, kept=8, rejected=2, repeated=4)


def test_a_request_that_came_too_late_leaves_its_id_to_the_next(tmp_path: Path) -> None:
    lines = [row("a", 30), row("b", 1, got=31), row("b", 32), row("b", 33)]
    accepted, rejected, _ = numbers(read(tmp_path, [lines], received="got"))
    assert accepted == [(0, 0), (0, 2)]
    assert [one["reason"] for one in rejected] == ["too_late", "repeated_request_id"]


def test_a_repeated_request_moves_the_highest_time_of_its_partition(tmp_path: Path) -> None:
    lines = [row("a", 1), row("a", 30), row("b", 1, got=31)]
    _, rejected, _ = numbers(read(tmp_path, [lines], received="got"))
    assert [one["reason"] for one in rejected] == ["repeated_request_id", "too_late"]


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    request = replace(ASKED, request_id="n")
    path = tmp_path / "asked.csv"
    path.write_text("\n".join(["id,at,got,n", row("a", 1, 5), row("b", 1, 5), row("c", 1, 6), ""]))
    batches = list(read_stream(request, [path]))
    accepted, rejected, _ = numbers(batches)
    assert accepted == [(0, 0), (0, 2)]
    assert "column 'n': found 5, which row 1 of asked.csv has" in rejected[0]["detail"]
