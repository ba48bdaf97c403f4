"""The steps of a stream that write its outputs: those of a bundle are appended together."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.io.epochs import epoch_of, with_epoch
from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.io.sinks import place_name

_TOGETHER_ROWS: Final = 65_536


class CollectOutputs(beam.DoFn):
    """Collects the outputs of a bundle by their segments, and passes them on together."""

    @abc.abstractmethod
    def output_of(self, element: Any) -> tuple[int, Output]:
        """Return the segment and the output of an element."""

    @abc.abstractmethod
    def pass_on(self, outputs: Mapping[int, Sequence[Output]]) -> None:
        """Pass outputs on, by segment; there is at least one."""

    def start_bundle(self) -> None:
        """Begin with nothing."""
        self._waiting: dict[int, list[Output]] = {}
        self._rows = 0

    def process(self, element: Any) -> None:
        """Take an element, unless it has no rows."""
        segment, output = self.output_of(element)
        if output.rows.num_rows:
            self._waiting.setdefault(segment, []).append(output)
            self._rows += output.rows.num_rows
            if self._rows >= _TOGETHER_ROWS:
                self.finish_bundle()

    def finish_bundle(self) -> None:
        """Pass on what was taken."""
        waiting, self._waiting, self._rows = self._waiting, {}, 0
        if waiting:
            self.pass_on(waiting)


class AppendOutputs(CollectOutputs):
    """Appends outputs to a part (`pipelines.io.output_parts`).

    An output that the engine repeats must be the same, which whoever reads or joins the parts
    checks.

    Attributes:
        folder: The folder of the outputs.
    """

    folder: Path

    def setup(self) -> None:
        """Begin without a part."""
        self._writer = PartWriter(self.folder)

    def teardown(self) -> None:
        """Close the part."""
        self._writer.close()

    def pass_on(self, outputs: Mapping[int, Sequence[Output]]) -> None:
        """Append outputs.

        Raises:
            FileError: The disk is full, ...
        """
        for segment, of_segment in outputs.items():
            self._writer.append(segment, of_segment)


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class WriteOutputs(AppendOutputs):
    """Appends record batches.

    The place of its first row names a batch. So no two batches may begin at one place.

    Attributes:
        folder: The folder of the outputs.
        named_by: Columns (texts and integers) whose values in the first row are its place.
        segment: The segment of the stream that epoch 0 is (`pipelines.io.epochs`).
    """

    folder: Path
    named_by: tuple[str, ...]
    segment: int

    def output_of(self, element: pa.RecordBatch) -> tuple[int, Output]:
        """Return the segment and the output of a batch."""
        name = place_name(element, self.named_by) if element.num_rows else ""
        return self.segment + epoch_of(element), Output(name, with_epoch(element, 0))
