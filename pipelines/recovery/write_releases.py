"""Writes the release log of a stream: evidence of every release of its operators."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.stream.release_line import LINE


@beam.typehints.with_input_types(tuple[int, str])
@beam.typehints.with_output_types(str)
class WriteReleases(beam.DoFn):
    """Appends the releases of a bundle to a part (`pipelines.io.output_parts`).

    Input: pairs of an epoch and a JSON text (`pipelines.stream.featurize.Featurize`).

    View, shard and number name a release. One that the engine repeats must be the same, which
    whoever reads or joins the parts checks.

    Args:
        folder: The folder of the releases.
        segment: The segment of the stream that epoch 0 is.
    """

    def __init__(self, folder: Path, segment: int) -> None:
        self._folder = folder
        self._segment = segment

    def setup(self) -> None:
        """Begin without a part."""
        self._writer = PartWriter(self._folder)

    def teardown(self) -> None:
        """Close the part."""
        self._writer.close()

    def start_bundle(self) -> None:
        """Begin with nothing."""
        self._waiting: dict[int, list[Output]] = {}

    def process(self, element: tuple[int, str]) -> None:
        """Take a release."""
        epoch, line = element
        release = json.loads(line)
        name = f"{release['view']}-{release['shard']:05d}-{release['number']:012d}"
        rows = pa.RecordBatch.from_pydict({LINE: [line]})
        self._waiting.setdefault(self._segment + epoch, []).append(Output(name, rows))

    def finish_bundle(self) -> None:
        """Append what was taken.

        Raises:
            FileError: The disk is full, ...
        """
        waiting, self._waiting = self._waiting, {}
        for segment, outputs in waiting.items():
            self._writer.append(segment, outputs)
