"""Releases on disk: the evidence that a stream leaves of every step of its operators."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import apache_beam as beam

from tidemill.features.errors import InputError, StateVersionError
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.release_line import RELEASE_VERSION
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.read_files import read_json_lines

T = TypeVar("T")


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class WriteReleases(beam.DoFn):
    """Writes releases (JSON texts), one per line, to a file per bundle: whole or not at all.

    Args:
        folder: Where to.
        prefix: How the files' names begin.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._lines: list[str] = []

    def start_bundle(self) -> None:
        """Begin a file."""
        self._lines = []

    def process(self, element: str) -> None:
        """Take a release."""
        self._lines.append(element)

    def finish_bundle(self) -> None:
        """Write the file."""
        if self._lines:
            name = f"{self._prefix}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            write_text(self._folder / name, "\n".join(self._lines) + "\n")


def read_release_lines(root: Path, take: Callable[[Any], T]) -> Iterator[T]:
    """Read the releases below a root in the order of their files.

    Args:
        root: The run's folder.
        take: Takes what the caller needs out of a release. The engine may have repeated one.

    Raises:
        InputError: There are none.
        StateVersionError: A release has a version that is not read.
        DamagedFile: A file does not hold what the stream wrote.
    """
    files = _files(root)
    if not files:
        raise InputError(
            f"there are no releases in {root / paths.RELEASES}: nothing says what the stream had "
            "seen; run `tidemill stream` first"
        )
    for path in files:
        yield from _read(path, take)


def read_releases(root: Path) -> list[dict[str, Any]]:
    """Read the evidence of a stream: one entry per release, by view, shard and number.

    A release that the engine repeated stands once.

    Raises:
        StateVersionError: A release has a version that is not read.
        DamagedFile: A file does not hold what the stream wrote.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for path in _files(root):
        found |= _read(path, lambda e: ((e["view"], e["shard"], e["number"]), e))
    return [found[key] for key in sorted(found)]


def _files(root: Path) -> list[Path]:
    return sorted((root / paths.RELEASES).glob("*.jsonl"))


def _read(path: Path, take: Callable[[Any], T]) -> list[T]:
    def checked(entry: Any) -> T:
        if (version := entry.get("version", RELEASE_VERSION)) != RELEASE_VERSION:
            raise StateVersionError(
                f"{path}: a release has version {version}, this code reads {RELEASE_VERSION}; "
                "read it with the Tidemill that wrote it, or run `tidemill stream` again"
            )
        return take(entry)

    return read_json_lines(path, checked, "run `tidemill stream` again")
