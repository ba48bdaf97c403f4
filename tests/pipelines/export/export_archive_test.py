"""The export: each Delta table has just the archive's rows, and its folder just its files."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import deltalake
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from tests.support.archives import FIRST_DAY, WrittenArchive
from tests.support.exports import (
    CARD,
    ORDER,
    Said,
    archive_rows,
    check_files,
    check_same,
    contents,
    exported,
    payments,
    table_rows,
)
from tests.support.memory_topics import PAYMENTS
from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
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


def test_readers_leave_files_out_by_time_and_place_and_miss_no_row(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    for number in range(4):
        at_us = FIRST_DAY + number * SECOND + 123_456
        written.add([{"payment": f"p-{n}", "at": at_us + n} for n in range(3)])
        written.add([{"payment": "without a time"}], partition=1)
    exported(config, to)
    table = deltalake.DeltaTable(str(to / "payments"))
    everything = table_rows(to / "payments")
    instants = [one for name in ("at", "_received") for one in everything[name].to_pylist() if one]
    for column in ("at", "_received"):
        for instant in instants:
            for is_wanted in (ds.field(column) == instant, ds.field(column) > instant):
                expected = everything.filter(is_wanted)
                found = table.to_pyarrow_dataset().to_table(filter=is_wanted).sort_by(ORDER)
                assert found.equals(expected)
            asked = f"select count(*) from t where {column} <= timestamp '{instant.isoformat()}'"
            counted = deltalake.QueryBuilder().register("t", table).execute(asked)
            (count,) = pa.table(counted)[0].to_pylist()
            assert count == pc.sum(pc.less_equal(everything[column], instant)).as_py()
    actions = pa.table(table.get_add_actions(flatten=True))
    assert actions["max.at"].null_count == 4
    assert actions["min._position"].to_pylist() == [0, 3, 6, 9, 0, 1, 2, 3]
    # What an entity is named by is in no file but its rows'.
    log = "".join(path.read_text() for path in (to / "payments" / "_delta_log").iterdir())
    assert "p-1" not in log


def test_times_of_years_that_a_reader_may_not_parse_are_in_no_statistics(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add([{"payment": "early", "at": TIME_MIN}, {"payment": "now", "at": FIRST_DAY}])
    written.add([{"payment": "late", "at": TIME_MAX}])
    written.add([{"payment": "now", "at": FIRST_DAY}])
    exported(config, to)
    log = (to / "payments" / "_delta_log" / f"{0:020d}.json").read_text().splitlines()
    added = [json.loads(line)["add"] for line in log if '"add"' in line]
    least = [json.loads(one["stats"])["minValues"].get("at") for one in added]
    assert sorted(filter(None, least)) == ["2023-11-15T00:00:00.000000Z"]
    table = deltalake.DeltaTable(str(to / "payments"))
    for wanted, count in (
        (ds.field("at") < pa.scalar(0, pa.timestamp("us", "UTC")), 1),
        (ds.field("at") > pa.scalar(FIRST_DAY, pa.timestamp("us", "UTC")), 1),
    ):
        assert table.to_pyarrow_dataset().to_table(filter=wanted).num_rows == count


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
