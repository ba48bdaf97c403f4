"""Digests of the files that a source is read from: the beginning of every artefact's lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tidemill.features.errors import InputError
from tidemill.pipelines.io.files.input_files import at_hand
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.files.file_errors import named_for


@dataclass(frozen=True)
class SourceFile:
    """A file that a source was read from.

    Attributes:
        path: The file.
        size: Its bytes.
        sha256: The SHA-256 of its bytes.
    """

    path: str
    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> SourceFile:
        """Digest a file."""
        here = at_hand(path)
        with named_for(path):
            return SourceFile(str(path), here.stat().st_size, file_sha256(here))


@contextmanager
def digested(paths: Sequence[Path]) -> Iterator[list[SourceFile]]:
    """Digest files that the block reads.

    Raises:
        InputError: A file was changed while the block ran, so its digest is not of what was read.
    """
    before = [_status(path) for path in paths]
    yield [SourceFile.of(path) for path in paths]
    for path, status in zip(paths, before, strict=True):
        if _status(path) != status:
            raise InputError(f"{path} was changed while it was read; run again when it is complete")


def _status(path: Path) -> tuple[int, int, int]:
    with named_for(path):
        found = at_hand(path).stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
