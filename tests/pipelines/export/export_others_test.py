"""Tables that somebody else has changed, appended to, or created: named, and left as they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from tests.support.archives import WrittenArchive
from tests.support.exports import (
    archive_rows,
    check_same,
    contents,
    exported,
    payments,
    table_rows,
    version_of,
)
from tidemill.features.errors import (
    DamagedState,
    StateMismatch,
)
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export import delta_table
from tidemill.pipelines.export.export_record import RECORD


def append(table: Path) -> None:
    deltalake.write_deltalake(str(table), table_rows(table).slice(0, 1), mode="append")


def merge(table: Path) -> None:
    deltalake.DeltaTable(str(table)).optimize.compact()


def delete(table: Path) -> None:
    deltalake.DeltaTable(str(table)).delete("_position = 1")


def replace_table(table: Path) -> None:
    rows = table_rows(table)
    shutil.rmtree(table)
    deltalake.write_deltalake(str(table), rows, partition_by=["day"])


def add_column(table: Path) -> None:
    new = deltalake.Field("theirs", deltalake.schema.PrimitiveType("long"), nullable=True)
    deltalake.DeltaTable(str(table)).alter.add_columns(new)


def mark_deleted(table: Path) -> None:
    """Delete rows as Spark does: the file stays, and a vector says which rows count."""
    log = table / "_delta_log"
    (line,) = (log / f"{0:020d}.json").read_text().splitlines()[3:4]
    added = json.loads(line)["add"]
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    vector = {
        "storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1,
        "sizeInBytes": 36, "cardinality": 2,
    }  # fmt: skip
    actions = [
        {"protocol": {**protocol, "readerFeatures": features, "writerFeatures": features}},
        {"remove": {"path": added["path"], "dataChange": True, "deletionTimestamp": 1}},
        {"add": {**added, "deletionVector": vector}},
    ]
    (log / f"{1:020d}.json").write_text("\n".join(map(json.dumps, actions)))


OTHERS: dict[Callable[[Path], None], str] = {
    append: "it has 1 other files, such as day=2023-11-15/part-",
    merge: "and lacks 2",
    delete: "and lacks 1",
    replace_table: "and was created with",
    add_column: "it has the columns .*theirs int64",
    mark_deleted: "its readers need to know deletionVectors",
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_table_that_somebody_else_has_changed_stays_as_it_is(
    written: WrittenArchive, config: Configuration, to: Path, change: Callable[[Path], None]
) -> None:
    for number in range(2):
        written.add(payments(3, number * 3))
    exported(config, to)
    change(to / "payments")
    before = contents(to)
    for _ in range(2):
        with pytest.raises(StateMismatch, match="somebody else has changed this table") as error:
            exported(config, to)
        assert re.search(OTHERS[change], str(error.value)), error.value
        assert contents(to) == before
        written.add(payments(3))
    shutil.rmtree(to / "payments")  # as the error says
    exported(config, to)
    check_same(written.folder, to, "payments")


def test_a_change_that_was_taken_back_does_no_harm(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(payments(3))
    exported(config, to)
    append(to / "payments")
    table = deltalake.DeltaTable(str(to / "payments"))
    table.restore(0)
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 7 days"})
    written.add(payments(3, 3))
    assert exported(config, to)["payments"]["version"] == 4
    assert table_rows(to / "payments").equals(archive_rows(written.folder, "payments"))
    # What they wrote is theirs to remove.
    assert len(list((to / "payments").glob("day=*/part-*.parquet"))) == 1


def test_nothing_is_committed_behind_somebody_else(
    written: WrittenArchive,
    config: Configuration,
    to: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written.add(payments(3))
    exported(config, to)
    written.add(payments(3, 3))
    commit = delta_table.commit

    def late(*given: Any) -> Any:
        append(to / "payments")
        return commit(*given)

    monkeypatch.setattr(delta_table, "commit", late)
    with pytest.raises(StateMismatch, match="wrote to this table at the same time"):
        exported(config, to)
    assert version_of(to / "payments") == 1
    assert len(table_rows(to / "payments")) == 4
    monkeypatch.setattr(delta_table, "commit", commit)
    with pytest.raises(StateMismatch, match="it has 1 other files"):
        exported(config, to)


@pytest.mark.parametrize("what", ["record", "log", "no log"])
def test_a_damaged_export_is_named(
    written: WrittenArchive, config: Configuration, to: Path, what: str
) -> None:
    written.add(payments(3))
    exported(config, to)
    log = to / "payments" / "_delta_log"
    path = {"record": to / RECORD, "log": log / f"{0:020d}.json", "no log": log}[what]
    if what == "no log":
        shutil.rmtree(log)
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedState, match=str(to)) as error:
        exported(config, to)
    assert "remove" in str(error.value)
    shutil.rmtree(to if what == "record" else to / "payments")
    exported(config, to)
    check_same(written.folder, to, "payments")


def test_a_property_that_forbids_the_commit_is_named(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    for number in range(2):
        written.add(payments(3, number * 3))
    exported(config, to)
    table = deltalake.DeltaTable(str(to / "payments"))
    table.alter.set_table_properties({"delta.appendOnly": "true"})
    written.compact()
    with pytest.raises(StateMismatch, match=r"append-only.*has set a property that forbids"):
        exported(config, to)
    assert table_rows(to / "payments").equals(archive_rows(written.folder, "payments"))
    table.alter.set_table_properties({"delta.appendOnly": "false"})
    assert exported(config, to)["payments"]["files"] == 1
    check_same(written.folder, to, "payments")


def test_a_table_that_somebody_creates_first_is_left_as_it_is(
    written: WrittenArchive, config: Configuration, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.add(payments(3))
    create = delta_table.create

    def late(*given: Any) -> Any:
        deltalake.write_deltalake(str(to / "payments"), pa.table({"theirs": [1]}))
        return create(*given)

    monkeypatch.setattr(delta_table, "create", late)
    with pytest.raises(StateMismatch, match="somebody else"):
        exported(config, to)
    monkeypatch.setattr(delta_table, "create", create)
    with pytest.raises(StateMismatch, match="somebody else has changed this table"):
        exported(config, to)
    assert table_rows_of(to / "payments") == [{"theirs": 1}]


def table_rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deltalake.DeltaTable(str(folder)).to_pyarrow_table().to_pylist()
    return found
