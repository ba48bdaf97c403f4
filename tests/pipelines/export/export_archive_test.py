"""The export: each Delta table has just the archive's rows, and its folder just its files."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from tests.support.archives import WrittenArchive
from tests.support.exports import (
    CARD,
    ORDER,
    archive_rows,
    check_files,
    check_same,
    contents,
    exported,
    payments,
    table_rows,
)
from tests.support.memory_topics import PAYMENTS
from tests.support.said import Said
from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export.export_archive import export_archive

ODD: list[dict[str, Any]] = [
    {"payment": "", "at": TIME_MIN, "card": "a\0b", "amount": float("nan"), "shop": -(1 << 63)},
    {"payment": "dépôt 😀", "at": TIME_MAX, "amount": -0.0, "shop": (1 << 63) - 1, "online": True},
    {"payment": '"quoted"\n', "at": 1, "card": None, "amount": float("-inf"), "online": False},
    {"payment": "nothing else"},
]


def test_every_column_and_row_is_there_in_its_type(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(ODD)
    written.add(payments(7), partition=1)
    written.add(ODD, day=1)
    figures = exported(config, to)["payments"]
    assert (figures["rows"], figures["files"], figures["version"]) == (15, 3, 0)
    check_same(written.folder, to, "payments")
    table = deltalake.DeltaTable(str(to / "payments"))
    assert table.metadata().partition_columns == ["day"]
    assert table.metadata().name == "payments"
    assert set(table_rows(to / "payments")["day"].to_pylist()) == {
        datetime.date(2023, 11, 15), datetime.date(2023, 11, 16)
    }  # fmt: skip
    rows = polars.read_delta(str(to / "payments")).sort("_partition", "_position")
    assert rows.columns == [*PAYMENTS.schema, "_partition", "_position", "_received", "day"]
    expected = archive_rows(written.folder, "payments")
    assert rows["at"].to_physical().to_list() == expected["at"].cast(pa.int64()).to_pylist()
    assert rows["card"].to_list() == expected["card"].to_pylist()


def test_rows_are_found_by_every_column(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    """Readers leave out files by the log of a table: one that says too much would lose rows."""
    for number in range(3):
        written.add(payments(3, number * 3, f"c-{number}"), day=number % 2)
        written.add([{"payment": "without a time"}], partition=1)
    written.add([{"payment": "early", "at": TIME_MIN}, {"payment": "late", "at": TIME_MAX}])
    exported(config, to)
    table = deltalake.DeltaTable(str(to / "payments"))
    everything = table_rows(to / "payments")
    for column in everything.column_names:
        for value in set(everything[column].drop_null()):
            for is_wanted in (ds.field(column) == value, ds.field(column) >= value):
                expected = everything.filter(is_wanted)
                found = table.to_pyarrow_dataset().to_table(filter=is_wanted).sort_by(ORDER)
                assert found.equals(expected), (column, value)
    lazy = polars.scan_delta(str(to / "payments"))
    for column, value in {"card": "c-1", "shop": 4, "amount": 0.5, "payment": "late"}.items():
        count = pc.sum(pc.equal(everything[column], pa.scalar(value))).as_py()
        assert lazy.filter(polars.col(column) == value).collect().height == count > 0
        asked = f"select count(*) from t where {column} = '{value}'"
        counted = deltalake.QueryBuilder().register("t", table).execute(asked)
        assert pa.table(counted)[0].to_pylist() == [count]
    assert table.count() == len(everything)
    # What an entity is named by is in no file but its rows'.
    log = "".join(path.read_text() for path in (to / "payments" / "_delta_log").iterdir())
    assert not any(text in log for text in ("c-1", "p-1", "late"))


def test_a_run_makes_one_commit_and_a_repeat_none(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    for number in range(3):
        written.add(payments(2, number * 2))
        assert exported(config, to)["payments"]["added"] == 1
    before = contents(to)
    again = exported(config, to)["payments"]
    assert (again["version"], again["added"], again["removed"], again["deleted"]) == (2, 0, 0, 0)
    assert contents(to) == before
    written.add(payments(2, 6), partition=1)
    written.add(payments(2, 8), day=1)
    written.compact()
    figures = exported(config, to)["payments"]
    assert {name: figures[name] for name in ("version", "added", "removed", "deleted", "rows")} == {
        "version": 3, "added": 3, "removed": 3, "deleted": 3, "rows": 10
    }  # fmt: skip
    check_same(written.folder, to, "payments")
    (said,) = [one["tidemill"] for one in deltalake.DeltaTable(str(to / "payments")).history(1)]
    assert said["project"] == "shop"


def test_what_the_archive_has_lost_is_gone_from_the_table_and_from_the_disk(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    old = written.add(payments(3))
    kept = written.add([*payments(2, 3), *payments(1, 5, CARD)], day=1)
    exported(config, to)
    written.remove(old)
    emptied = written.empty(kept, "payment", "card")
    assert emptied.name == kept.name
    said = Said()
    figures = export_archive(config, to, said)
    assert figures["tables"][0]["deleted"] == 2
    assert said.lines == [f"{to / 'payments'}: deleted files that the table does not name: 2"]
    check_same(written.folder, to, "payments")
    assert table_rows(to / "payments")["card"].null_count == 3
    written.remove(emptied)
    assert exported(config, to)["payments"]["rows"] == 0
    assert len(table_rows(to / "payments")) == 0
    check_files(to / "payments")


def test_an_archive_without_rows(written: WrittenArchive, config: Configuration, to: Path) -> None:
    assert exported(config, to) == {}  # nothing was ever archived
    written.write_empty()
    assert exported(config, to)["payments"]["version"] == 0
    assert table_rows(to / "payments").num_rows == 0
    assert exported(config, to)["payments"]["version"] == 0
    written.add(payments(3))
    assert exported(config, to)["payments"]["version"] == 1
    check_same(written.folder, to, "payments")
