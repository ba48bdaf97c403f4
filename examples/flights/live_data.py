"""The flights of November as history in files, and those of December as what is to be sent.

November is enough for features and for a model in seconds; what is prepared is what the transforms
of ``ingest.py`` accept of ``flights.csv`` and ``weather.csv``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from tidemill.examples.flights import ingest
from tidemill.examples.flights.live_project import SENT_AT, project
from tidemill.examples.flights.zones import data_folder

LIVE_FROM: Final = "2013-12-01T00:00:00Z"
"""What happened before is history; the rest is sent."""
MONTHS: Final = ("11", "12")

_Transform = Callable[[pa.RecordBatch], pa.RecordBatch]
_SOURCES: Final[Mapping[str, tuple[str, _Transform]]] = {
    "departures": ("flights", ingest.departures),
    "arrivals": ("flights", ingest.arrivals),
    "weather": ("weather", ingest.weather),
    "requests": ("flights", ingest.requests),
}


def prepare(folder: Path) -> dict[str, int]:
    """Write ``NAME.parquet`` (history) and ``NAME-live.parquet`` of each source.

    Returns:
        The number of rows that are to be sent, by source.

    Raises:
        ConfigurationError: The package with the flights is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    read = {"flights": _months(_flights()), "weather": _months(_weather())}
    live_from = pa.scalar(LIVE_FROM).cast(pa.timestamp("us", "UTC"))
    counts = {}
    for name, (file, transform) in _SOURCES.items():
        definition = project.definition(name)
        made = transform(read[file])
        good = pc.and_(pc.is_null(made["__reject__"]), pc.invert(made["__drop__"]))
        rows = pa.Table.from_batches([made.filter(good)])
        rows = rows.append_column(SENT_AT, rows[definition.time_column])
        rows = rows.select(list(definition.schema)).sort_by(definition.time_column)
        is_live = pc.greater_equal(rows[definition.time_column], live_from)
        pq.write_table(rows.filter(pc.invert(is_live)), folder / f"{name}.parquet")
        live = rows.filter(is_live)
        pq.write_table(live, folder / f"{name}-live.parquet")
        counts[name] = len(live)
    return counts


def live_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a source that are to be sent, by time, without the time of sending."""
    for batch in pq.read_table(folder / f"{name}-live.parquet").to_batches(1_000):
        yield from batch.drop_columns([SENT_AT]).to_pylist()


def _flights() -> pa.Table:
    with (
        zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
    ):
        return _texts(pa.py_buffer(file.read()))


def _weather() -> pa.Table:
    return _texts(pa.py_buffer((data_folder() / "weather.csv").read_bytes()))


def _texts(content: pa.Buffer) -> pa.Table:
    """Read a csv file as texts."""
    first = content[: content.to_pybytes().index(b"\n")].to_pybytes()
    names = first.decode("ascii").rstrip().split(",")
    return pyarrow.csv.read_csv(
        pa.BufferReader(content),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _months(rows: pa.Table) -> pa.RecordBatch:
    kept = rows.filter(pc.is_in(rows["month"], pa.array(MONTHS))).combine_chunks()
    (batch,) = kept.to_batches()
    return batch
