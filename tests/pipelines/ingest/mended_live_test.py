"""The files of mended messages: complete or not there, read in order, and refused if damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.features.errors import DamagedFile
from tidemill.pipelines.ingest.mended_live import next_replay, read_mended, write_mended
from tidemill.pipelines.io.live.mended import MendedMessage

ONE = MendedMessage(
    "0123456789abcdef", "paid", "topic/1@6:2", b"\xff\x00", "paid.jsonl:3", 1, True, None, -1,
    (("h", b"1"), ("h", None)),
)  # fmt: skip
TWO = MendedMessage("1" * 16, "asked", "topic/0@0", b"", "asked.jsonl:1", 2, False, b"", 5)


def test_replays_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert (next_replay(tmp_path), list(read_mended(tmp_path))) == (1, [])
    write_mended(tmp_path, [ONE])
    write_mended(tmp_path, [TWO])
    assert list(read_mended(tmp_path)) == [ONE, TWO]
    assert list(read_mended(tmp_path, after=1)) == [TWO]
    assert next_replay(tmp_path) == 3


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_damaged_file_is_named_and_not_skipped(tmp_path: Path, content: bytes) -> None:
    write_mended(tmp_path, [ONE])
    path = tmp_path / "mended_live" / "00001.parquet"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"00001\.parquet.*restore the file"):
        list(read_mended(tmp_path))
