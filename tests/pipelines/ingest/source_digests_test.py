"""Digests of source files: of what was read, or an error."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tidemill.features.errors import InputError, NoSuchFile
from tidemill.pipelines.ingest.source_digests import SourceFile, digested
from tidemill.serving.files.file_digest import file_sha256


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    paths[0].write_bytes(b"id,at\n" + b"x" * 300_000)
    paths[1].write_bytes(b"")
    return paths


def test_a_file_is_described_by_path_size_and_sha_256(files: list[Path]) -> None:
    with digested(files) as found:
        pass
    assert found == [
        SourceFile(str(path), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    ]
    assert found[1].sha256 == hashlib.sha256().hexdigest()
    assert found[0] == SourceFile.of(files[0])
    assert found[0].sha256 == file_sha256(files[0])


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"one more row\n")


def edit(path: Path) -> None:
    """Change a byte; the size stays."""
    before = path.stat()
    path.write_bytes(b"ID" + path.read_bytes()[2:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace(path: Path) -> None:
    """Put another file in its place, with the same bytes, size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [append, edit, replace])
def test_a_file_that_changes_while_it_is_read_is_named(files: list[Path], change: object) -> None:
    assert callable(change)
    refusal = pytest.raises(InputError, match=f"{files[0]} was changed while it was read; run")
    with refusal, digested(files):
        change(files[0])


def test_a_file_that_goes_while_it_is_read_is_named(files: list[Path]) -> None:
    with pytest.raises(NoSuchFile, match=str(files[1])), digested(files):
        files[1].unlink()


def test_a_file_that_is_not_there_is_named(files: list[Path]) -> None:
    files[0].unlink()
    with pytest.raises(NoSuchFile, match=str(files[0])), digested(files):
        raise AssertionError("the block must not run")


def fail_after_a_change(files: list[Path]) -> None:
    with digested(files):
        append(files[0])
        raise ZeroDivisionError


def test_an_error_of_the_reader_is_not_hidden_by_a_change(files: list[Path]) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after_a_change(files)
