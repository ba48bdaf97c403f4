"""Sources of the same files: a file is read once for all of them, and each is read as if alone."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import yaml

from benchmarks.fraud import write_configuration, write_payments
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.ingest.ingest import ingest
from tidemill.pipelines.ingest.read_source import alike
from tidemill.pipelines.io.files import readers
from tidemill.pipelines.run.progress import QuietProgress

ALL = ["authorisations", "outcomes", "payments"]


def configured(folder: Path, changes: dict[str, dict[str, Any]]) -> Configuration:
    """Return a project whose three sources name one file, except for some changes."""
    payments = folder / "payments.parquet"
    write_payments(payments, 500)
    shutil.copy(payments, folder / "second.parquet")
    path = write_configuration(folder, payments, folder / "run")
    read = yaml.safe_load(path.read_text())
    for name, change in changes.items():
        read["sources"][name] |= change
    path.write_text(yaml.safe_dump(read))
    return load(path)


def logs(config: Configuration, folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Ingest; return the counts and the files of the logs."""
    (folder / "work").mkdir(parents=True)
    counts = ingest(config, QuietProgress(), work=folder / "work", build=folder / "build")
    for row in counts.values():
        del row["files"]
    files = (folder / "build").rglob("*.arrow")
    return counts, {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_file_is_opened_once_for_all_sources_that_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    really = readers.opened

    def counted(path: Path) -> AbstractContextManager[BinaryIO]:
        opened.append(path)
        return really(path)

    monkeypatch.setattr(readers, "opened", counted)
    config = configured(tmp_path, {})
    together = logs(config, tmp_path / "together")
    assert opened == [tmp_path / "payments.parquet"]
    # The same rows in a file for each source.
    changes = {}
    for name in ALL:
        copy = tmp_path / name / "payments.parquet"
        copy.parent.mkdir()
        shutil.copy(tmp_path / "payments.parquet", copy)
        changes[name] = {"files": [str(copy)]}
    apart = configured(tmp_path, changes)
    assert logs(apart, tmp_path / "apart") == together
    assert len(opened) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [ALL]),
        ({"payments": {"format": "parquet"}}, [ALL]),
        ({"payments": {"nulls": ["NA"]}}, [ALL[:2], ALL[2:]]),
        ({"outcomes": {"partitions": 2}, "payments": {"zone": "Europe/Berlin"}}, [ALL]),
        ({"outcomes": {"files": ["second.parquet"]}}, [[ALL[0], ALL[2]], [ALL[1]]]),
    ],
)  # fmt: skip
def test_sources_are_read_together_if_files_formats_and_nulls_are_the_same(
    changes: dict[str, dict[str, Any]], expected: list[list[str]], tmp_path: Path
) -> None:
    assert sorted(alike(configured(tmp_path, changes))) == expected
