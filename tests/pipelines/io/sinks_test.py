"""Sink: Parquet files are complete or missing, and a repeat must be the same."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.streaming_project import ENGINES, pipeline_on
from tidemill.features.errors import OutputConflict
from tidemill.pipelines.engines.choosing import run
from tidemill.pipelines.io.sinks import WriteParquet, write_rows, write_rows_once


def batch(partition: int, *positions: int, stage: str = "answer") -> pa.RecordBatch:
    return pa.record_batch(
        {
            "stage": [stage] * len(positions),
            "partition": pa.array([partition] * len(positions), pa.int64()),
            "position": pa.array(positions, pa.int64()),
        }
    )


def written(folder: Path) -> list[tuple[int, int]]:
    rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted((row["partition"], row["position"]) for row in rows)


def write(engine: str, folder: Path, batches: list[pa.RecordBatch], *names: str) -> None:
    pipeline, choice = pipeline_on(engine, streaming=False)
    _ = pipeline | beam.Create(batches) | beam.ParDo(WriteParquet(folder, names))
    run(pipeline, choice)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_that_is_repeated_is_one_file(engine: str, tmp_path: Path) -> None:
    batches = [batch(0, 0, 1), batch(0, 2), batch(1, 0, 1)]
    write(engine, tmp_path, [*batches, batches[0]], "partition", "position")
    write(engine, tmp_path, batches, "partition", "position")
    assert written(tmp_path) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert len(list(tmp_path.iterdir())) == 3


def test_batches_that_differ_in_a_text_are_files_of_their_own(tmp_path: Path) -> None:
    batches = [batch(0, 0), batch(0, 0, stage="read")]
    write("fnapi", tmp_path, batches, "stage", "partition", "position")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_batch_of_one_place_and_another_length_is_an_error(tmp_path: Path) -> None:
    """A name says which rows a file holds, so there is never a second copy of some of them."""
    write("fnapi", tmp_path, [batch(0, 0, 1)], "partition", "position")
    with pytest.raises(Exception, match="written before with other content"):
        write("fnapi", tmp_path, [batch(0, 0)], "partition", "position")
    assert written(tmp_path) == [(0, 0), (0, 1)]


def test_a_repeat_keeps_the_first_file_if_it_is_the_same(tmp_path: Path) -> None:
    def rows(score: float) -> pa.Table:
        return pa.table({"id": ["a"], "score": [score]})

    path = write_rows_once(tmp_path, rows(0.5), "p")
    first = path.read_bytes()
    write_rows_once(tmp_path, rows(0.5), "p")
    assert path.read_bytes() == first
    with pytest.raises(OutputConflict, match=r"p\.parquet was written before with other cont"):
        write_rows_once(tmp_path, rows(0.25), "p")
    assert path.read_bytes() == first
    assert [found.name for found in tmp_path.iterdir()] == ["p.parquet"]


def test_files_stand_in_the_order_of_their_first_rows_numbers(tmp_path: Path) -> None:
    write("fnapi", tmp_path, [batch(3, 70), batch(3, 8), batch(12, 1)], "partition", "position")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{p:012d}-{n:012d}.parquet" for p, n in ((3, 8), (3, 70), (12, 1))]


def test_an_empty_batch_writes_nothing(tmp_path: Path) -> None:
    write("fnapi", tmp_path / "none", [batch(0)], "partition")
    assert not (tmp_path / "none").exists()


def test_half_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path, pa.table({"a": [1]}), "rows")
    assert path == tmp_path / "rows.parquet"

    def fail(_: pa.Table, where: Path) -> None:
        where.write_bytes(b"half a file")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="no space left"):
            write_rows(tmp_path, pa.table({"a": [2]}), "rows")
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    assert pq.read_table(path).to_pydict() == {"a": [1]}
