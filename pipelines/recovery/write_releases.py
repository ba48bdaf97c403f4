"""Writes the release log of a stream: evidence of every release of its operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import apache_beam as beam

from tidemill.serving.files.write_once import write_once

_REMEDY: Final = "run `tidemill stream` again"


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class WriteReleases(beam.DoFn):
    """Writes each release (a JSON text) to a file that is named by view, shard and number.

    A release that the engine repeats must be the same, and then changes nothing.

    Args:
        folder: The folder of the files.
        prefix: The beginning of the files' names.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix

    def process(self, element: str) -> None:
        """Write a release.

        Raises:
            OutputConflict: The release was written before with other content.
        """
        release = json.loads(element)
        name = f"{release['view']}-{release['shard']:05d}-{release['number']:012d}.jsonl"
        with write_once(self._folder / f"{self._prefix}{name}", _REMEDY) as unfinished:
            unfinished.write_text(element + "\n", encoding="utf-8")
