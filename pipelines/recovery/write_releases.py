"""Writes the release log of a stream: evidence of every release of its operators."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import apache_beam as beam

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
