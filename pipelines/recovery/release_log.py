"""Reads the release log below a root: the evidence of every release of the stream's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from tidemill.features.errors import InputError, StateVersionError
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.release_line import RELEASE_VERSION
from tidemill.serving.files.read_files import read_json_lines

T = TypeVar("T")

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
    files = _files(root)
    if not files:
        raise InputError(
            f"there are no releases in {root / paths.RELEASES}: nothing says what the stream had "
            "seen; run `tidemill stream` first"
        )
    for path in files:
        yield from _read(path, take)


def read_releases(root: Path, prefix: str = "") -> list[dict[str, Any]]:
    """Read the evidence of a stream, sorted by view, shard and number.

    A release that the engine repeated occurs once.

    Args:
        root: The stream's folder.
        prefix: The start of the names of the files, to read those of one segment.

    Raises:
        StateVersionError: A release has a version that is not read.
        DamagedFile: A file does not hold what the stream wrote.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for path in _files(root, prefix):
        found |= _read(path, lambda entry: (place_of(entry), entry))
    return [found[key] for key in sorted(found)]


def _files(root: Path, prefix: str = "") -> list[Path]:
    return sorted((root / paths.RELEASES).glob(f"{prefix}*.jsonl"))


def _read(path: Path, take: Callable[[Any], T]) -> list[T]:
    def checked(entry: Any) -> T:
        if (version := entry.get("version", _OLDEST)) not in range(_OLDEST, RELEASE_VERSION + 1):
            raise StateVersionError(
                f"{path}: a release has version {version}, this code reads {RELEASE_VERSION}; "
                "read it with the Tidemill that wrote it, or run `tidemill stream` again"
            )
        return take(entry)

    return read_json_lines(path, checked, "run `tidemill stream` again")
