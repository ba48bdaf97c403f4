"""Directories that appear whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidemill.serving.files.atomic_directory import publish, scratch_directory

WRITER = """
import sys, time
from pathlib import Path
from tidemill.serving.files.atomic_directory import scratch_directory

with scratch_directory(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("of what")
    print(scratch, flush=True)
    time.sleep(600)
"""
FILES = 20


def _whole(place: Path) -> bool:
    texts = {path.read_text() for path in place.iterdir()}
    return len(list(place.iterdir())) == FILES and len(texts) == 1


def _write(parent: Path, name: str, text: str, after: threading.Barrier | None = None) -> None:
    with scratch_directory(parent) as scratch:
        for index in range(FILES):
            (scratch / str(index)).write_text(text)
        if after is not None:
            after.wait()
        publish(scratch, parent / name, _whole)


def test_a_directory_gets_its_name_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    _write(tmp_path / "new", "one", "1")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one"]
    assert _whole(tmp_path / "new" / "one")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_directory(tmp_path) as scratch:
            (scratch / "half").write_text("of what")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_whole_directory_of_the_name_stays_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    _write(tmp_path, "one", "first")
    _write(tmp_path, "one", "second")
    assert (tmp_path / "one" / "0").read_text() == "first"
    (tmp_path / "one" / "3").unlink()
    _write(tmp_path, "one", "third")
    assert {path.read_text() for path in (tmp_path / "one").iterdir()} == {"third"}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_next_writer_removes_what_a_killed_one_left_and_spares_what_a_living_one_writes(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            scratch = Path(writer.stdout.readline().strip())
            _write(tmp_path, "one", "1")
            assert (scratch / "half").read_text() == "of what"
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"one", scratch.name}
    _write(tmp_path, "two", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    """All publish at the same instant: eight under one name, eight under names of their own."""
    barrier = threading.Barrier(16)
    names = ["same"] * 8 + [str(index) for index in range(8)]
    with ThreadPoolExecutor(16) as threads:
        writes = [
            threads.submit(_write, tmp_path, name, str(index), barrier)
            for index, name in enumerate(names)
        ]
        for write in writes:
            write.result()
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert all(_whole(place) for place in tmp_path.iterdir())
