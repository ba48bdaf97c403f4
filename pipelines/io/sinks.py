"""Record batches to Parquet files, each written atomically; a repeat writes the same file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.serving.files.atomic_write import atomic_write


def write_rows(folder: Path, rows: pa.Table, name: str) -> Path:
    """Write a table to ``folder/name.parquet`` atomically."""
    path = folder / f"{name}.parquet"
    with atomic_write(path) as unfinished:
        pq.write_table(rows, unfinished)
    return path


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class WriteParquet(beam.DoFn):
    """Writes each record batch to a Parquet file; emits the path.

    The first row names the file, so a repeated batch replaces its own file.

    Attributes:
        folder: The folder of the files.
        named_by: Columns whose values in the first row tell batches apart.
        prefix: The beginning of the files' names.
    """

    folder: Path
    named_by: tuple[str, ...]
    prefix: str = ""

    def process(self, element: pa.RecordBatch) -> Iterator[str]:
        """Write a batch, unless it is empty."""
        if element.num_rows:
            first = [element.column(column)[0].as_py() for column in self.named_by]
            digest = hashlib.sha256(repr((first, element.num_rows)).encode()).hexdigest()[:16]
            name = "-".join([*(str(part) for part in first if isinstance(part, int)), digest])
            rows = pa.Table.from_batches([element])
            yield str(write_rows(self.folder, rows, self.prefix + name))
