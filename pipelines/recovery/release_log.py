"""Reads the release log below a root: the evidence of every release of the stream's operators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from tidemill.features.errors import InputError, StateVersionError
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import releases_of
from tidemill.pipelines.stream.release_line import LINE, RELEASE_VERSION
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.segment_names import segment_of

T = TypeVar("T")

_AGAIN: Final = "run `tidemill stream` again"
_OLDEST: Final = 1
"""Releases of version 1 have no marks: they serve as evidence, and no state continues from them."""


def place_of(entry: Any) -> tuple[str, int, int]:
    """Return the view, the shard and the number of a release."""
    return str(entry["view"]), int(entry["shard"]), int(entry["number"])


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
    found = False
    for where, lines in _lines(root):
        for entry in _taken(where, lines, take):
            found = True
            yield entry
    if not found:
        raise InputError(
            f"there are no releases in {root / paths.RELEASES}: nothing says what the stream had "
            "seen; run `tidemill stream` first"
        )


def read_releases(root: Path, since: int = 0, until: int | None = None) -> list[dict[str, Any]]:
    """Read the evidence of a stream, sorted by view, shard and number.

    A release that the engine repeated occurs once.

    Args:
        root: The stream's folder.
        since: The first segment that is wanted.
        until: The last one; None for all.

    Raises:
        StateVersionError: A release has a version that is not read.
        DamagedFile: A file does not hold what the stream wrote.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for where, lines in _lines(root, since, until):
        found |= _taken(where, lines, lambda entry: (place_of(entry), entry))
    return [found[key] for key in sorted(found)]


def last_releases(root: Path, shards: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the evidence of the last release of each view and shard.

    Of a stream that has run for long only the end of its release log is read: every poll gives a
    release of every shard.

    Args:
        root: The stream's folder.
        shards: How many (view, shard) there are.

    Raises:
        StateVersionError: A release has a version that is not read.
        DamagedFile: A file does not hold what the stream wrote.
    """
    last: dict[tuple[str, int], dict[str, Any]] = {}
    until: int | None = None
    while True:
        segments = {file.last for file in releases_of(root).files(until=until)}
        since = max(segments, default=0)
        for entry in read_releases(root, since, until):
            key = entry["view"], entry["shard"]
            if key not in last or last[key]["number"] < entry["number"]:
                last[key] = entry
        if len(last) >= shards or since <= 1:
            return last
        until = since - 1


def count_releases(root: Path) -> int:
    """Return the number of releases that are recorded; one that the engine repeated counts once."""
    files = (root / paths.RELEASES).glob("*.jsonl")
    former = sum(path.read_bytes().count(b"\n") for path in files)
    return former + releases_of(root).count()


def _lines(
    root: Path, since: int = 0, until: int | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the lines of each file of the release log."""
    # Versions without parts wrote a file for each release.
    for path in sorted((root / paths.RELEASES).glob("*.jsonl")):
        segment = segment_of(path.name) or 0
        if segment >= since and (until is None or segment <= until):
            with reading(path, _AGAIN):
                lines = path.read_bytes().decode("utf-8").splitlines()
                if not lines:
                    raise ValueError("there is no line in it")
            yield path, lines
    for file, rows in releases_of(root).tables([LINE], since, until):
        with reading(file.path, _AGAIN):
            yield file.path, rows.column(LINE).to_pylist()


def _taken(path: Path, lines: Iterable[str], take: Callable[[Any], T]) -> list[T]:
    def checked(entry: Any) -> T:
        if (version := entry.get("version", _OLDEST)) not in range(_OLDEST, RELEASE_VERSION + 1):
            raise StateVersionError(
                f"{path}: a release has version {version}, this code reads {RELEASE_VERSION}; "
                "read it with the Tidemill that wrote it, or run `tidemill stream` again"
            )
        return take(entry)

    with reading(path, _AGAIN):
        return [checked(json.loads(line)) for line in lines]
