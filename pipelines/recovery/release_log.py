"""The release log on disk: evidence of every release of the stream's operators."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import apache_beam as beam

from tidemill.features.errors import StateVersionError
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.release_line import RELEASE_VERSION
from tidemill.serving.files.atomic_write import write_text


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class WriteReleases(beam.DoFn):
    """Writes releases (JSON texts), one a line, to a file for each bundle, atomically.

    Args:
        folder: The folder of the files.
        prefix: The beginning of the files' names.
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


def read_releases(root: Path) -> list[dict[str, Any]]:
    """Read the evidence of a stream, sorted by view, shard and number.

    A release that the engine repeated occurs once.

    Raises:
        StateVersionError: The version of an entry is not supported.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for path in sorted((root / paths.RELEASES).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if (version := entry.get("version", RELEASE_VERSION)) != RELEASE_VERSION:
                raise StateVersionError(
                    f"{path}: a release has version {version}, this code reads "
                    f"{RELEASE_VERSION}; read it with the Tidemill that wrote it, or run "
                    "`tidemill stream` again"
                )
            found[entry["view"], entry["shard"], entry["number"]] = entry
    return [found[key] for key in sorted(found)]
