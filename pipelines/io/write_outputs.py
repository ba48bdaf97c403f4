"""The step of a stream that writes its outputs: record batches are appended to parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.epochs import epoch_of, with_epoch
from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.io.sinks import place_name

_TOGETHER_ROWS: Final = 65_536


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class WriteOutputs(beam.DoFn):
    """Appends the record batches of a bundle to a part (`pipelines.io.output_parts`).

    The place of its first row names a batch. So no two batches may begin at one place, and a
    repeated batch must hold the same rows, which whoever reads or joins the parts checks.

    Attributes:
        folder: The folder of the outputs.
        named_by: Columns (texts and integers) whose values in the first row are its place.
        segment: The segment of the stream that epoch 0 is (`pipelines.io.epochs`).
    """

    folder: Path
    named_by: tuple[str, ...]
    segment: int

    def output_of(self, rows: pa.RecordBatch) -> tuple[int, Output]:
        """Return the segment and the output of a batch with rows."""
        output = Output(place_name(rows, self.named_by), with_epoch(rows, 0))
        return self.segment + epoch_of(rows), output

    def setup(self) -> None:
        """Begin without a part."""
        self._writer = PartWriter(self.folder)

    def teardown(self) -> None:
        """Close the part."""
        self._writer.close()

    def start_bundle(self) -> None:
        """Begin with nothing."""
        self._waiting: dict[int, list[Output]] = {}
        self._rows = 0

    def process(self, element: pa.RecordBatch) -> None:
        """Take a batch, unless it is empty."""
        if element.num_rows:
            segment, output = self.output_of(element)
            self._waiting.setdefault(segment, []).append(output)
            self._rows += element.num_rows
            if self._rows >= _TOGETHER_ROWS:
                self.finish_bundle()

    def finish_bundle(self) -> None:
        """Append what was taken.

        Raises:
            FileError: The disk is full, ...
        """
        waiting, self._waiting, self._rows = self._waiting, {}, 0
        for segment, outputs in waiting.items():
            self._writer.append(segment, outputs)
