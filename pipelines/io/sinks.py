"""Record batches to Parquet files, each written atomically and named by what it holds.

The promises: a name is a function of the rows' places alone, never of their number, of a clock or
of a bundle. A repeat keeps the first file if it holds the same, apart from declared stamps of the
wall clock; otherwise it is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.pipelines.io.epochs import epoch_of, with_epoch
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import read_table
from tidemill.serving.files.segment_names import segment_prefix
from tidemill.serving.files.write_once import equal_bytes, write_once

_REMEDY: Final = "run the command again from its beginning"


def write_rows(folder: Path, rows: pa.Table, name: str) -> Path:
    """Write a table to ``folder/name.parquet`` atomically; it replaces a file of this name."""
    path = folder / f"{name}.parquet"
    with atomic_write(path) as unfinished:
        pq.write_table(rows, unfinished)
    return path


def write_rows_once(folder: Path, rows: pa.Table, name: str, stamps: tuple[str, ...] = ()) -> Path:
    """Write a table to ``folder/name.parquet``, unless the file is there with the same rows.

    Args:
        folder: The folder.
        rows: The rows.
        name: The name without its ending.
        stamps: Columns of the wall clock: a repeat may have other values in them.

    Raises:
        OutputConflict: The file is there with other rows.
    """
    path = folder / f"{name}.parquet"

    def same(one: Path, two: Path) -> bool:
        if not stamps:
            return equal_bytes(one, two)
        first, second = (read_table(path, _REMEDY) for path in (one, two))
        kept = [column for column in rows.column_names if column not in stamps]
        return bool(
            first.column_names == second.column_names and first.select(kept) == second.select(kept)
        )

    with write_once(path, _REMEDY, same) as unfinished:
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
        segment: The segment of the stream that epoch 0 is: the beginning of the files' names says
            to which one their rows belong. None for rows that belong to none.
        stamps: Columns of the wall clock: a repeat may have other values in them.
    """

    folder: Path
    named_by: tuple[str, ...]
    segment: int | None = None
    stamps: tuple[str, ...] = ()

    def process(self, element: pa.RecordBatch) -> Iterator[str]:
        """Write a batch, unless it is empty.

        Raises:
            OutputConflict: The batch was written before with other rows.
        """
        if element.num_rows:
            name = "-".join(_part(element.column(column)[0].as_py()) for column in self.named_by)
            if self.segment is not None:
                name = segment_prefix(self.segment + epoch_of(element)) + name
            rows = pa.Table.from_batches([with_epoch(element, 0)])
            yield str(write_rows_once(self.folder, rows, name, self.stamps))


def _part(value: Any) -> str:
    """Return a value as a part of a name; integers sort as texts."""
    return f"{value:012d}" if isinstance(value, int) else str(value)
