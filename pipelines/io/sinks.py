"""Record batches to Parquet files, each written atomically and named by what it holds.

The promises: a name is a function of the rows' places alone, never of their number, of a clock or
of a bundle. A repeat keeps the first file if it holds the same; otherwise it is an error. A stream
writes its outputs, which come all the time, otherwise (`pipelines.io.write_outputs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.write_once import write_once

_REMEDY: Final = "run the command again from its beginning"


def write_rows(folder: Path, rows: pa.Table, name: str) -> Path:
    """Write a table to ``folder/name.parquet`` atomically; it replaces a file of this name."""
    path = folder / f"{name}.parquet"
    with atomic_write(path) as unfinished:
        pq.write_table(rows, unfinished)
    return path


def write_rows_once(folder: Path, rows: pa.Table, name: str) -> Path:
    """Write a table to ``folder/name.parquet``, unless the file is there with the same rows.

    Args:
        folder: The folder.
        rows: The rows.
        name: The name without its ending.

    Raises:
        OutputConflict: The file is there with other rows.
    """
    path = folder / f"{name}.parquet"
    with write_once(path, _REMEDY) as unfinished:
        pq.write_table(rows, unfinished)
    return path


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class WriteParquet(beam.DoFn):
    """Writes each record batch to a Parquet file; emits the path.

    The place of the first row names the file. So no two batches may begin at one place, and a
    repeated batch must hold the same rows.

    Attributes:
        folder: The folder of the files.
        named_by: Columns (texts and integers) whose values in the first row are its place.
    """

    folder: Path
    named_by: tuple[str, ...]

    def process(self, element: pa.RecordBatch) -> Iterator[str]:
        """Write a batch, unless it is empty.

        Raises:
            OutputConflict: The batch was written before with other rows.
        """
        if element.num_rows:
            rows = pa.Table.from_batches([element])
            yield str(write_rows_once(self.folder, rows, place_name(element, self.named_by)))


def place_name(rows: pa.RecordBatch, named_by: Sequence[str]) -> str:
    """Return the name of rows by the place of the first one; integers sort as texts.

    Args:
        rows: The rows; at least one.
        named_by: The columns, texts and integers, that give the place.
    """
    return "-".join(_part(rows.column(column)[0].as_py()) for column in named_by)


def _part(value: Any) -> str:
    """Return a value as a part of a name; integers sort as texts."""
    return f"{value:012d}" if isinstance(value, int) else str(value)
