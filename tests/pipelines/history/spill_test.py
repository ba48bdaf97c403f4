"""Spill files: pieces that one stage writes and another reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tidemill.features.errors import DamagedFile, FileError
from tidemill.pipelines.history.spill import SpillFile, spill_file

ROWS = pa.record_batch({"key": ["a", "b", "ç"], "value": [1, 2, 3]})


def write(path: Path) -> None:
    with spill_file(path) as out:
        out.write_rows("rows", ROWS)
        out.write_rows("rows", None)
        out.write_rows("rows", ROWS.slice(1))
        out.write("words", [np.arange(3), np.arange(2)])
        out.write("bytes", [])


def test_every_piece_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "file")
    file = SpillFile(tmp_path / "file")
    assert file.read_rows("rows", ROWS.schema) == ROWS
    assert file.read_rows("rows", ROWS.schema, 1) is None
    assert file.read_rows("rows", ROWS.schema, 2) == ROWS.slice(1)
    assert file.read_array("words", np.int64).tolist() == [0, 1, 2, 0, 1]
    assert file.read("bytes").size == 0


def test_writing_again_replaces_the_file_by_an_equal_one(tmp_path: Path) -> None:
    write(tmp_path / "file")
    first = (tmp_path / "file").read_bytes()
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), spill_file(tmp_path / "file"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_file_that_is_cut_short_is_refused(size: int, tmp_path: Path) -> None:
    write(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(data[:size])
    with pytest.raises(DamagedFile, match=r"file.*run `tidemill backfill` again"):
        SpillFile(tmp_path / "file")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="absent"):
        SpillFile(tmp_path / "absent")
