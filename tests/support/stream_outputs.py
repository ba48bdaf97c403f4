"""The outputs of a segment of a stream, taken out and put back otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.pipelines.io.output_parts import Output, PartWriter, read_part
from tidemill.pipelines.io.outputs import OUTPUT, SEGMENT, OutputFolder


def table_in(folder: Path) -> pa.Table:
    """Return the rows of all outputs in a folder, joined or not; there must be some."""
    found = OutputFolder(folder).read()
    assert found is not None, folder
    return found


def change_a_file(folder: Path, change: Callable[[pa.Table], pa.Table | None]) -> None:
    """Change the first Parquet file in a folder for which a change returns another table."""
    for path in sorted(folder.glob("*.parquet")):
        if (table := change(pq.read_table(path))) is not None:
            pq.write_table(table, path)
            return
    raise AssertionError(f"nothing in {folder} was changed")


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all outputs in a folder."""
    found = OutputFolder(folder).read()
    return [] if found is None else found.to_pylist()


def outputs_of(folder: Path, segment: int) -> dict[str, pa.RecordBatch]:
    """Return the outputs of a segment by name, whether they are joined or not."""
    found: dict[str, pa.RecordBatch] = {}
    for file in OutputFolder(folder).files(segment, segment):
        if file.is_part:
            for appended in read_part(file.path):
                found |= {output.name: output.rows for output in appended.outputs()}
            continue
        table = pq.read_table(file.path)
        names = table.column(OUTPUT).to_pylist()
        table = table.drop_columns([OUTPUT, SEGMENT]).replace_schema_metadata(None)
        for name in dict.fromkeys(names):
            rows = table.slice(names.index(name), names.count(name)).combine_chunks()
            (found[name],) = rows.to_batches()
    return found


def put_outputs(folder: Path, segment: int, outputs: Mapping[str, pa.RecordBatch]) -> None:
    """Replace the outputs of a segment; they are joined if they were."""
    place = OutputFolder(folder)
    is_joined = False
    for file in place.files(segment, segment):
        is_joined |= file.is_joined
        file.path.unlink()
    writer = PartWriter(folder)
    writer.append(segment, [Output(name, rows) for name, rows in outputs.items()])
    writer.close()
    if is_joined:
        place.join(segment)


def without_first(folder: Path, segment: int) -> None:
    """Remove the first output of a segment."""
    outputs = outputs_of(folder, segment)
    del outputs[min(outputs)]
    put_outputs(folder, segment, outputs)
