"""Exports of an archive that a test makes, and what their Delta tables and folders have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.support.archives import FIRST_DAY
from tests.support.memory_topics import MemoryTopics, TopicProject
from tidemill.features.contract import SECOND
from tidemill.pipelines.archive.manifest import ArchiveManifest
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export.export_archive import export_archive
from tidemill.pipelines.export.export_record import LOCK
from tidemill.pipelines.run.progress import QuietProgress

CARD = "kärtchen-4711"
"""A key that nothing else contains."""
ORDER = [("_partition", "ascending"), ("_position", "ascending")]


def shop_with(archive: Path, folder: Path) -> Configuration:
    """Return the configuration of a shop, without a stream, with an archive.

    Args:
        archive: The folder of the archive.
        folder: A folder for the rest.
    """
    config = TopicProject(folder, MemoryTopics()).config(archive=Archive(archive))
    config.root.mkdir()
    return config


def exported(config: Configuration, to: Path, *, wait: bool = False) -> dict[str, dict[str, Any]]:
    """Export an archive; return the figures by table."""
    figures = export_archive(config, to, QuietProgress(), wait=wait)
    return {one["table"]: one for one in figures["tables"]}


def table_rows(folder: Path) -> pa.Table:
    """Return the rows of a Delta table, in the order of their places."""
    return deltalake.DeltaTable(str(folder)).to_pyarrow_table().sort_by(ORDER)


def archive_rows(archive: Path, name: str) -> pa.Table:
    """Return the rows of the files that the manifest names, with the day, in their order."""
    manifest = ArchiveManifest.read(archive)
    assert manifest is not None
    tables = []
    for one in manifest.sources[name].files:
        rows = pq.ParquetFile(archive / name / one.name).read()
        day = pa.scalar(one.day).cast(pa.date32())
        tables.append(rows.append_column("day", pa.repeat(day, len(rows))))
    return pa.concat_tables(tables).sort_by(ORDER)


def check_same(archive: Path, export: Path, name: str) -> None:
    """Check that a table has just the rows of an archive, and its folder just its files."""
    found, expected = table_rows(export / name), archive_rows(archive, name)
    assert found.schema.equals(expected.schema)
    for column in expected.column_names:
        assert as_bits(found[column]).equals(as_bits(expected[column])), column
    check_files(export / name)


def as_bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats as their bits, which tells -0.0 from 0.0 and finds NaN equal to NaN."""
    column = column.combine_chunks()
    if column.type != pa.float64():
        return column
    return pc.if_else(column.is_null(), None, column.view(pa.int64()))


def check_files(table: Path) -> None:
    """Check that a folder has the files that its table names, and no others."""
    named = {Path(one) for one in deltalake.DeltaTable(str(table)).file_uris()}
    assert set(table.glob("day=*/*")) == named
    assert {path.name for path in table.iterdir()} == {
        "_delta_log", *(path.parent.name for path in named)
    }  # fmt: skip


def version_of(table: Path) -> int:
    """Return the number of the newest version of a Delta table."""
    return int(deltalake.DeltaTable(str(table)).version())


def payments(count: int, begin: int = 0, card: str | None = "c-1") -> list[dict[str, Any]]:
    """Return rows of payments, numbered from ``begin``."""
    return [
        {
            "payment": f"p-{number}", "at": FIRST_DAY - number * SECOND, "sent_at": FIRST_DAY,
            "card": card, "amount": number / 8, "shop": number, "online": number % 2 == 0,
        }
        for number in range(begin, begin + count)
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of an export, but for its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }
