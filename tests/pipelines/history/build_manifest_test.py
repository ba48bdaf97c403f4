"""The manifest of a build: whatever of it or of its files was changed is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of
from tests.support.proof_run import PROJECT, SHARDS, configuration, write_sources
from tidemill.features.errors import DamagedState, StateMismatch, StateVersionError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import (
    BuildManifest,
    check_training_table,
    table_digests,
)
from tidemill.pipelines.ingest.source_digests import SourceFile
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import read_record
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.serving.generations.current import read_current

AGAIN = "run `tidemill backfill` again"


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("manifest")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    return config


@pytest.fixture
def build(backfilled: Configuration, tmp_path: Path) -> Path:
    """A copy of the build's folder."""
    shutil.copytree(build_of(backfilled.root), tmp_path / "build")
    return tmp_path / "build"


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of another root, whose history lacks one ride."""
    folder = tmp_path_factory.mktemp("corrected")
    write_sources(folder)
    lines = (folder / "rides.csv").read_text().splitlines(keepends=True)
    (folder / "rides.csv").write_text("".join([*lines[:9], *lines[10:]]))
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    return build_of(config.root)


def check(build: Path) -> BuildManifest:
    return check_training_table(build, PROJECT, SHARDS)


def test_a_manifest_says_what_the_build_was_made_from(backfilled: Configuration) -> None:
    current = read_current(backfilled.root)
    build, folder = current.build_folder, backfilled.path.parent
    found, log = check(build), Log(build)
    states = read_record(build / "states")
    assert found == BuildManifest.read(build)
    assert (found.generation, found.parent, list(found.because)) == (current.generation, None, [])
    assert (found.project, found.shards) == (PROJECT.hash, SHARDS)
    assert found.views == {view.name: view.hash for view in PROJECT.views}
    assert (found.as_of_us, found.handoff) == (states.as_of_us, states.id)
    assert found.training_table == table_digests(build)
    assert len(found.training_table) > 0
    files = {"rides": ["rides.csv"], "quotes": ["quotes-0.csv", "quotes-1.csv"]}
    assert found.sources == {
        name: {
            "cut": log.lengths(name),
            "digest": log.prefix_digest(name, log.lengths(name)),
            "files": [dataclasses.asdict(SourceFile.of(folder / file)) for file in files[name]],
        }
        for name in files
    }


# The record.


@pytest.mark.parametrize(
    "field", [*(one.name for one in dataclasses.fields(BuildManifest)), "checksum"]
)
def test_a_field_that_was_changed_is_refused(build: Path, field: str) -> None:
    path = build / "build.json"
    stored = json.loads(path.read_text())
    other: dict[type, Any] = {str: "0" * 16, int: 7, list: ["x"], dict: {}, type(None): "0" * 16}
    stored[field] = other[type(stored[field])]
    path.write_text(json.dumps(stored))
    with pytest.raises(DamagedState, match=f"{path} was changed after it was written.*{AGAIN}"):
        check(build)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(BuildManifest)])
def test_a_field_that_is_missing_is_refused(build: Path, field: str) -> None:
    path = build / "build.json"
    stored = json.loads(path.read_text())
    del stored[field]
    path.write_text(json.dumps(stored))
    with pytest.raises(DamagedState, match=f"{path} .*{AGAIN}"):
        check(build)


def test_another_version_is_refused_by_its_number(build: Path) -> None:
    path = build / "build.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    with pytest.raises(StateVersionError, match=f"{path} has version 9, this code reads 2"):
        check(build)


def test_a_build_without_a_manifest_is_not_complete(build: Path) -> None:
    (build / "build.json").unlink()
    with pytest.raises(StateMismatch, match=f"no {build / 'build.json'}, so the build is not comp"):
        check(build)


def remade(build: Path, **fields: Any) -> None:
    """Write the manifest with other fields, and with their right checksum."""
    dataclasses.replace(BuildManifest.read(build), **fields).write(build)


def test_other_definitions_or_shards_are_refused_by_name(build: Path) -> None:
    views = BuildManifest.read(build).views
    for fields, message in (
        ({"views": {**views, "by_zone": "0" * 16}}, "view 'by_zone': .* for definition 0000"),
        ({"views": {"by_zone": views["by_zone"]}}, "view 'by_driver': .* for definition None"),
        ({"project": "0" * 16}, f"for definitions 0000000000000000, these are {PROJECT.hash}"),
        ({"shards": 3}, "with 3 shards, the configuration says 2"),
    ):
        written = BuildManifest.read(build)
        remade(build, **fields)
        with pytest.raises(StateMismatch, match=f"{message}.*{AGAIN}"):
            check(build)
        written.write(build)
    check(build)


# The table.


def first_file(build: Path) -> Path:
    return min((build / "features").glob("*.parquet"))


def remove_a_third(build: Path) -> Path:
    path = first_file(build)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) * 2 // 3), path)
    return path


def change_a_value(build: Path) -> Path:
    path = first_file(build)
    table = pq.read_table(path)
    ids = ["another", *table["request_id"].to_pylist()[1:]]
    place = table.schema.get_field_index("request_id")
    pq.write_table(table.set_column(place, "request_id", [ids]), path)
    return path


def add_a_file(build: Path) -> Path:
    path = first_file(build)
    return Path(shutil.copy(path, path.with_name("zzz.parquet")))


def remove_a_file(build: Path) -> Path:
    path = first_file(build)
    path.unlink()
    return path


def cut_off(build: Path) -> Path:
    path = first_file(build)
    path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (remove_a_third, "was changed after it was written"),
        (change_a_value, "was changed after it was written"),
        (cut_off, "was changed after it was written"),
        (add_a_file, "does not belong to the build"),
        (remove_a_file, "is missing"),
    ],
)
def test_a_table_with_other_files_is_refused_and_the_file_is_named(
    build: Path, harm: Callable[[Path], Path], said: str
) -> None:
    path = harm(build)
    with pytest.raises(StateMismatch, match=f"training table: {path} {said}; {AGAIN}"):
        check(build)


def test_the_table_of_another_root_is_refused(build: Path, corrected: Path) -> None:
    """Its definitions, shards and columns are the same."""
    shutil.rmtree(build / "features")
    shutil.copytree(corrected / "features", build / "features")
    with pytest.raises(StateMismatch, match=f"training table: {build / 'features'}/.*{AGAIN}"):
        check(build)


def test_the_table_of_another_root_with_its_manifest_is_refused_by_the_log(
    build: Path, corrected: Path
) -> None:
    shutil.rmtree(build / "features")
    shutil.copytree(corrected / "features", build / "features")
    shutil.copy(corrected / "build.json", build / "build.json")
    with pytest.raises(StateMismatch, match=f"log of 'rides' in {build / 'log'} is not the one"):
        check(build)


def test_a_log_that_has_grown_is_still_the_one(build: Path) -> None:
    """Only the rows below the recorded cut count."""
    sources = {
        name: {**record, "cut": cut, "digest": Log(build).prefix_digest(name, cut)}
        for name, record in BuildManifest.read(build).sources.items()
        for cut in ([length - 1 for length in record["cut"]],)
    }
    remade(build, sources=sources)
    check(build)
    remade(build, sources={**sources, "rides": {**sources["rides"], "digest": "0" * 64}})
    with pytest.raises(StateMismatch, match="log of 'rides'"):
        check(build)
