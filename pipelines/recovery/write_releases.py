"""Writes the release log of a stream: evidence of every release of its operators."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.output_parts import Output
from tidemill.pipelines.io.write_outputs import AppendOutputs
from tidemill.pipelines.stream.release_line import LINE


@beam.typehints.with_input_types(tuple[int, str])
@beam.typehints.with_output_types(str)
class WriteReleases(AppendOutputs):
    """Appends releases; view, shard and number name one.

    Input: pairs of an epoch and a JSON text (`pipelines.stream.featurize.Featurize`).

    Args:
        folder: The folder of the releases.
        segment: The segment of the stream that epoch 0 is.
    """

    def __init__(self, folder: Path, segment: int) -> None:
        self.folder = folder
        self._segment = segment

    def output_of(self, element: tuple[int, str]) -> tuple[int, Output]:
        """Return the segment and the output of a release."""
        epoch, line = element
        release = json.loads(line)
        name = f"{release['view']}-{release['shard']:05d}-{release['number']:012d}"
        return self._segment + epoch, Output(name, pa.RecordBatch.from_pydict({LINE: [line]}))
