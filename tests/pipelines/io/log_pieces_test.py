"""A partition in pieces: the same rows as in one file, also where live rows go on; sharing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipelines.io.log_files_test import BLOCK, ROWS, arrived, write_rows
from tests.pipelines.io.log_test import many_readings
from tests.support.streaming_project import RAIN
from tidemill.features.errors import DamagedFile
from tidemill.pipelines.io import log as log_module
from tidemill.pipelines.io import log_digests, log_files, log_pieces
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.io.log_pieces import piece_paths, share_files, share_log

PIECE = 2 * BLOCK
TABLE = many_readings(ROWS)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (log_module, log_files, log_digests):
        monkeypatch.setattr(module, "BLOCK_ROWS", BLOCK)
    monkeypatch.setattr(log_pieces, "PIECE_ROWS", PIECE)


def in_pieces(folder: Path, table: pa.Table, cuts: Sequence[int] = ()) -> Log:
    """Write a partition in batches that end at some cuts."""
    log, rows = Log(folder), len(table)
    with log.writing(RAIN, 0, rows) as writer:
        ends = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
        for start, stop in itertools.pairwise(ends):
            batch = one_batch(table.slice(start, stop - start))
            writer.write(batch, arrived(rows)[start:stop])
    return log


def pieces(log: Log) -> list[Path]:
    return piece_paths(log.path("rain", 0).parent, 0)


@given(
    rows=st.integers(0, ROWS),
    cuts=st.lists(st.integers(0, ROWS), max_size=6),
    live=st.one_of(st.none(), st.integers(0, ROWS)),
    data=st.data(),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pieces_read_as_one_file(
    rows: int,
    cuts: list[int],
    live: int | None,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    table = TABLE.slice(0, rows)
    log, one = in_pieces(folder / "build", table, cuts), Log(folder / "one")
    assert len(pieces(log)) == max(-(-rows // PIECE), 1)
    assert log.size("rain", 0) == sum(path.stat().st_size for path in pieces(log))
    if live is not None:
        # Live rows go on from a whole block that the build has, up to that after its last.
        first, table = min(live, rows) // BLOCK * BLOCK, TABLE
        log = Log(log.root, folder / "live")
        write_rows(folder / f"live/rows/rain/00000-{first:012d}.arrow", table, first, ROWS)
    write_rows(one.path("rain", 0), table, 0, len(table))
    assert log.partitions("rain") == 1
    assert log.digests("rain", 0) == one.digests("rain", 0)
    assert log.read("rain", 0) == one.read("rain", 0)
    start = data.draw(st.integers(0, len(table)))
    stop = data.draw(st.integers(start, len(table)))
    assert log.read_span("rain", 0, start, stop) == one.read_span("rain", 0, start, stop)
    assert log.prefix_digest("rain", [stop]) == one.prefix_digest("rain", [stop])
    received_us = int(arrived(ROWS)[min(start, ROWS - 1)])
    assert log.position_at("rain", 0, received_us) == one.position_at("rain", 0, received_us)


@pytest.mark.parametrize("rows", [PIECE - 1, PIECE, 2 * PIECE, 2 * PIECE + 3])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_other_rows_than_were_announced_are_refused(rows: int, wrong: int, tmp_path: Path) -> None:
    table = one_batch(TABLE.slice(0, rows + wrong))
    said = f"{rows + wrong} rows were written, announced were"
    with (
        pytest.raises(ValueError, match=said),
        Log(tmp_path).writing(RAIN, 0, rows) as writer,
    ):
        writer.write(table, arrived(rows + wrong))
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name]


def test_rows_that_are_missing_between_pieces_are_found(tmp_path: Path) -> None:
    log = in_pieces(tmp_path, TABLE)
    pieces(log)[1].unlink()
    with pytest.raises(DamagedFile, match=r"has the rows below 16 .*rows are missing"):
        log.read("rain", 0)
    live = tmp_path / "live"
    write_rows(live / "rows/rain/00000-000000000016.arrow", TABLE, 16, ROWS - 1)
    with pytest.raises(DamagedFile, match=r"ends at position 44 .*rows are missing"):
        Log(in_pieces(tmp_path, TABLE).root, live).read("rain", 0)


def test_builds_share_the_pieces_with_the_same_rows(tmp_path: Path) -> None:
    before = in_pieces(tmp_path / "before", TABLE.slice(0, 40), [7])
    now = in_pieces(tmp_path / "now", TABLE, [3, 20, 33])
    saved = share_log(before.root, now.root)
    same = [a.samefile(b) for a, b in zip(pieces(before), pieces(now), strict=True)]
    assert same == [True, True, False]
    assert saved == sum(path.stat().st_size for path in pieces(now)[:2])
    assert now.read("rain", 0).column("reading").to_pylist() == list(range(ROWS))
    assert share_log(before.root, now.root) == 0
    assert share_log(tmp_path / "nowhere", now.root) == 0


def test_a_damaged_piece_is_not_shared(tmp_path: Path) -> None:
    before, now = in_pieces(tmp_path / "before", TABLE), in_pieces(tmp_path / "now", TABLE)
    damaged, cut_short, other = pieces(before)
    data = bytearray(damaged.read_bytes())
    data[data.index((5).to_bytes(8, "little") + (6).to_bytes(8, "little"))] = 4
    damaged.write_bytes(data)
    cut_short.write_bytes(cut_short.read_bytes()[:100])
    assert share_log(before.root, now.root) == other.stat().st_size
    assert now.read("rain", 0).num_rows == ROWS


def test_files_without_links_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("this file system has no links")

    for folder, texts in (("a", "xyz"), ("b", "xyw")):
        (tmp_path / folder).mkdir()
        for name, text in enumerate(texts):
            (tmp_path / folder / f"{name}.parquet").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        assert share_files(tmp_path / "a", tmp_path / "b") == 0
    assert share_files(tmp_path / "a", tmp_path / "b") == 2
    assert [path.read_text() for path in sorted((tmp_path / "b").iterdir())] == ["x", "y", "w"]
