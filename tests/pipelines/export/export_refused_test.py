"""What an export refuses, by name, and leaves as it is: folders, columns, faults."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from tests.support import hostile_places
from tests.support.archives import WrittenArchive
from tests.support.exports import (
    check_files,
    check_same,
    contents,
    exported,
    payments,
    table_rows,
    version_of,
)
from tests.support.memory_topics import PAYMENTS
from tidemill.features.errors import (
    ConfigurationError,
    DamagedFile,
    FileError,
    InputError,
    StateMismatch,
)
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export.export_record import RECORD

# Folders


def test_a_folder_of_others_is_left_as_it_is(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(payments(3))
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    with pytest.raises(StateMismatch, match=r"has files, such as notes\.txt, and no _tidemill"):
        exported(config, to)
    assert [path.name for path in to.iterdir()] == ["notes.txt"]
    (to / "notes.txt").unlink()
    exported(config, to)  # an empty folder is as good as none
    (to / RECORD).unlink()
    with pytest.raises(StateMismatch, match=f"and no {RECORD}"):
        exported(config, to)


def test_a_table_that_was_there_before_is_left_as_it_is(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    exported(config, to)
    deltalake.write_deltalake(str(to / "payments"), pa.table({"theirs": [1]}))
    written.add(payments(3))
    before = contents(to)
    with pytest.raises(StateMismatch, match="is not of this export"):
        exported(config, to)
    assert contents(to) == before


def test_the_export_of_another_root_or_project_is_left_as_it_is(
    written: WrittenArchive, config: Configuration, to: Path, tmp_path: Path
) -> None:
    written.add(payments(3))
    exported(config, to)
    before = contents(to)
    other_root = replace(config, root=tmp_path / "other")
    with pytest.raises(InputError, match="is not there, and an export belongs to the root"):
        exported(other_root, to)
    assert not other_root.root.exists()
    other_root.root.mkdir()
    with pytest.raises(StateMismatch, match="is the export of project 'shop' of the root"):
        exported(other_root, to)
    other = replace(config, project=replace(config.project, name="other"))
    with pytest.raises(StateMismatch, match="is the export of project 'shop' of the root"):
        exported(other, to)
    with pytest.raises(StateMismatch, match="is the archive of project 'shop'"):
        exported(other, tmp_path / "second")
    assert contents(to) == before


def test_an_archive_that_is_gone_takes_nothing_away(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(payments(3))
    exported(config, to)
    before = contents(to)
    manifest = written.manifest
    replace(manifest, sources={}).write(written.folder)
    with pytest.raises(StateMismatch, match="it has no source 'payments'"):
        exported(config, to)
    written.folder.rename(written.folder.with_name("elsewhere"))
    with pytest.raises(StateMismatch, match=r"it has no _tidemill\.json"):
        exported(config, to)
    assert contents(to) == before


@pytest.mark.parametrize(
    "place", ["archive", "archive/payments", "shop/run", "shop/run/x", "shop", "."]
)
def test_an_export_is_apart_from_archive_and_root(
    written: WrittenArchive, config: Configuration, tmp_path: Path, place: str
) -> None:
    written.add(payments(3))
    with pytest.raises(InputError, match="neither in it nor around it"):
        exported(config, tmp_path / place)
    assert not list(tmp_path.rglob("_delta_log"))


# Columns


def with_columns(archive: WrittenArchive, **columns: str) -> None:
    """Write an archive of the rows of another live log: a source with other columns."""
    shutil.rmtree(archive.folder)
    archive.definition = replace(archive.definition, schema=columns)
    archive.ends = {}


def test_columns_may_be_added_and_integers_become_floats(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(payments(3))
    exported(config, to)
    schema = {**PAYMENTS.schema, "shop": "float64", "note": "string"}
    with_columns(written, **schema)
    written.add([{**row, "note": "n"} for row in payments(2)])
    figures = exported(config, to)["payments"]
    assert (figures["version"], figures["added"], figures["removed"], figures["deleted"]) == (
        1, 1, 1, 1
    )  # fmt: skip
    check_same(written.folder, to, "payments")
    assert table_rows(to / "payments")["shop"].type == pa.float64()
    written.add([{**row, "note": "n"} for row in payments(2)])
    exported(config, to)
    check_same(written.folder, to, "payments")
    # Before there are rows of them, too.
    with_columns(written, **schema, more="bool")
    written.write_empty()
    assert exported(config, to)["payments"]["rows"] == 0
    assert "more" in table_rows(to / "payments").column_names


@pytest.mark.parametrize("fault", ["gone", "other type"])
def test_columns_that_readers_would_miss_are_refused(
    written: WrittenArchive, config: Configuration, to: Path, fault: str
) -> None:
    written.add(payments(3))
    exported(config, to)
    before = contents(to)
    schema = {**PAYMENTS.schema, "shop": "string"}
    if fault == "gone":
        del schema["shop"]
    with_columns(written, **schema)
    written.write_empty()
    with pytest.raises(StateMismatch, match="has the column 'shop' of type int64, and") as error:
        exported(config, to)
    assert ("none of this name" if fault == "gone" else "it as string") in str(error.value)
    assert contents(to) == before


@pytest.mark.parametrize("column", ["day", "Day", "CARD"])
def test_a_column_that_delta_cannot_tell_from_another_is_named(
    written: WrittenArchive, config: Configuration, to: Path, column: str
) -> None:
    with_columns_before = {**PAYMENTS.schema, column: "string"}
    written.definition = replace(written.definition, schema=with_columns_before)
    written.add(payments(3))
    with pytest.raises(InputError, match=f"'payments' has the column '{column}'"):
        exported(config, to)


# Faults


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_damaged_file_of_the_archive_is_named(
    written: WrittenArchive, config: Configuration, to: Path, fault: str
) -> None:
    written.add(payments(3))
    exported(config, to)
    file = written.add(payments(3, 3))
    path = written.folder / "payments" / file.name
    whole = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(DamagedFile, match=str(path)):
        exported(config, to)
    assert version_of(to / "payments") == 0
    check_files(to / "payments")
    path.write_bytes(whole)
    exported(config, to)
    check_same(written.folder, to, "payments")


def test_files_that_are_gone_from_the_disk_are_copied_again(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    for number in range(3):
        written.add(payments(3, number * 3))
    exported(config, to)
    files = sorted((to / "payments").glob("day=*/*"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-7])
    assert exported(config, to)["payments"]["restored"] == 2
    assert version_of(to / "payments") == 0
    check_same(written.folder, to, "payments")


@pytest.mark.parametrize("fault", ["full disk", "read-only folder"])
def test_a_place_that_cannot_be_written_is_named(
    written: WrittenArchive, config: Configuration, tmp_path: Path, fault: str
) -> None:
    written.add(payments(3))
    exported(config, tmp_path / "export")
    written.add(payments(500, 3))
    hostile = hostile_places.full_disk if fault == "full disk" else hostile_places.read_only
    with hostile(tmp_path / "export", tmp_path / "place") as place:
        with pytest.raises(FileError) as error:
            exported(config, place)
        assert str(place) in str(error.value)
        assert version_of(place / "payments") == 0
        assert len(table_rows(place / "payments")) == 3


def test_without_deltalake_the_command_says_what_to_install(
    written: WrittenArchive, config: Configuration, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.add(payments(3))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(ConfigurationError, match=r"install tidemill\[delta\]"):
        exported(config, to)
    assert not to.exists()


def test_a_project_without_an_archive(config: Configuration, to: Path) -> None:
    with pytest.raises(InputError, match="names no archive to export"):
        exported(replace(config, archive=None), to)
