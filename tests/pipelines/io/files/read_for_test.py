"""Files that are read once for several readers: each gets what it gets alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.pipelines.io.files import readers
from tidemill.pipelines.io.files.readers import Reader, read_for

NAMES = ("a", "b", "c", "d")
CELLS = st.sampled_from(["1", "", "x", '"', "\xff", "NA", None])
ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=5), max_size=12)
COLUMNS = st.none() | st.lists(st.sampled_from(NAMES), unique=True, max_size=4)
READERS = st.lists(COLUMNS, min_size=1, max_size=4)


def csv_file(path: Path, rows: list[list[str | None]]) -> None:
    """Write rows of which some have too many cells, too few, broken quotes or no UTF-8."""
    lines = ["a,b,c"] + [",".join(cell or "" for cell in row) for row in rows]
    path.write_bytes("\n".join(lines).encode("latin-1"))


def jsonl_file(path: Path, rows: list[list[str | None]]) -> None:
    """Write objects of which some lack a key, and some have one twice, also inside a value."""
    lines = []
    for row in rows:
        pairs = [f"{json.dumps(NAMES[n % 4])}:{json.dumps(cell)}" for n, cell in enumerate(row)]
        if row[0] == "x":
            pairs.append('"d":{"e":1,"e":2}')
        lines.append("{" + ",".join(pairs[1:]) + ("" if row[-1] == '"' else "}"))
    path.write_text("\n".join(lines))


def parquet_file(path: Path, rows: list[list[str | None]]) -> None:
    """Write a column of texts and two of INT96 times, some with parts of a microsecond."""
    far = np.array([1_000 + (row[0] == "x") for row in rows], "datetime64[ns]")
    near = np.array([1_000 + (row[1] == "x") for row in rows], "datetime64[ns]")
    table = pa.table({"a": pa.array([row[2] for row in rows], pa.string()), "b": far, "c": near})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)


FILES = {"csv": csv_file, "jsonl": jsonl_file, "parquet": parquet_file}


def told(raw: readers.RawBatch) -> dict[str, Any]:
    rows = np.arange(raw.batch.num_rows)
    return {
        "columns": raw.batch.schema.names,
        "rows": raw.batch.to_pydict(),
        "positions": raw.positions.tolist(),
        "origins": raw.origins(rows),
        "payloads": raw.payloads(rows),
        "rejected": raw.rejected.to_pylist(),
    }


@pytest.mark.parametrize("format", FILES)
@given(rows=ROWS, asked=READERS, nulls=st.sampled_from([None, ("NA",)]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_each_reader_gets_what_it_gets_alone(
    format: str,
    rows: list[list[str | None]],
    asked: list[list[str] | None],
    nulls: tuple[str, ...] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("files") / f"rows.{format}"
    FILES[format](path, rows)
    several = [Reader(f"stream-{n}", columns) for n, columns in enumerate(asked)]
    options: dict[str, Any] = {"nulls": nulls, "block_bytes": 64, "batch_rows": 5}
    together = list(zip(*read_for(several, [path], **options), strict=True))
    for n, reader in enumerate(several):
        alone = [told(raw) for (raw,) in read_for([reader], [path], **options)]
        assert [told(raw) for raw in (together[n] if together else [])] == alone
