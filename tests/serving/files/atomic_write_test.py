"""Files that are written completely or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.serving.files.atomic_write import atomic_write

KILLED = """
import os, signal, sys
from pathlib import Path
from tidemill.serving.files.atomic_write import atomic_write

with atomic_write(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half of what")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_and_nothing_is_left_beside_it(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("one", "another"):
        with atomic_write(path, durable=durable) as unfinished:
            unfinished.write_text(text)
            assert unfinished.parent == path.parent
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_file_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("whole")

    def fail() -> None:
        with atomic_write(path) as unfinished:
            unfinished.write_text("half of what")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_writes_nothing_gets_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("whole")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "whole"


def test_two_writers_share_nothing(tmp_path: Path) -> None:
    """The later one wins, though the other began and wrote in between."""
    path = tmp_path / "file.txt"
    with atomic_write(path) as later:
        later.write_text("la")
        with atomic_write(path) as sooner:
            sooner.write_text("sooner")
        assert path.read_text() == "sooner"
        with later.open("a") as file:
            file.write("ter")
    assert path.read_text() == "later"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_killed_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "whole"
    left = [other.name for other in tmp_path.iterdir() if other != path]
    assert len(left) == 1
    assert left[0].startswith("file.txt.")
    assert left[0].endswith(".unfinished")
