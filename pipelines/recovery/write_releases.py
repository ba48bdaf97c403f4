"""Writes the release log of a stream: evidence of every release of its operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import apache_beam as beam

from tidemill.serving.files.segment_names import segment_prefix
from tidemill.serving.files.write_once import write_once

_REMEDY: Final = "run `tidemill stream` again"


@beam.typehints.with_input_types(tuple[int, str])
@beam.typehints.with_output_types(str)
class WriteReleases(beam.DoFn):
    """Writes each release to a file that is named by its segment, view, shard and number.

    Input: pairs of an epoch and a JSON text (`pipelines.stream.featurize.Featurize`).

    A release that the engine repeats must be the same, and then changes nothing.

    Args:
        folder: The folder of the files.
        segment: The segment of the stream that epoch 0 is.
    """

    def __init__(self, folder: Path, segment: int) -> None:
        self._folder = folder
        self._segment = segment

    def process(self, element: tuple[int, str]) -> None:
        """Write a release.

        Raises:
            OutputConflict: The release was written before with other content.
        """
        epoch, line = element
        release, prefix = json.loads(line), segment_prefix(self._segment + epoch)
        name = f"{release['view']}-{release['shard']:05d}-{release['number']:012d}.jsonl"
        with write_once(self._folder / f"{prefix}{name}", _REMEDY) as unfinished:
            unfinished.write_text(line + "\n", encoding="utf-8")
