"""The archive: every sealed row once, whatever is killed; readable by others and by Tidemill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.support.memory_topics import NAMES, PROJECT, MemoryTopics, TopicProject
from tidemill.features.contract import DAY, HOUR, MINUTE
from tidemill.features.errors import InputError, StateError, StateMismatch
from tidemill.pipelines.archive import archiving
from tidemill.pipelines.archive.archive import archive, archive_live_rows
from tidemill.pipelines.archive.exchange import exchange
from tidemill.pipelines.archive.manifest import MANIFEST, ArchiveManifest
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training.table_digest import in_canonical_order, table_digest
from tidemill.pipelines.verify.compare_archive import compare_archive
from tidemill.pipelines.verify.findings import Findings
from tidemill.serving.files.file_digest import file_sha256

BEGIN = 1_700_092_800_000_000 - 2 * HOUR
"""Two hours before a midnight."""


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TopicProject]:
    """A project whose stream has read rows of four days, sealed at many savepoints."""
    with pytest.MonkeyPatch.context() as patch:
        topics = MemoryTopics()
        topics.install(patch)
        project = TopicProject(tmp_path_factory.mktemp("lived") / "shop", topics, begin_us=BEGIN)
        backfill(project.config(), QuietProgress())
        yield project


def savepoints(project: TopicProject) -> Iterator[None]:
    """Read and seal rows, before midnight and on the days after; yield after each savepoint."""
    for hours in (0, 0.5, 2, 3, 26, 27, 50):
        project.now_us = max(project.now_us, BEGIN + HOUR) + MINUTE
        project.now_us = max(project.now_us, BEGIN + HOUR + round(hours * HOUR))
        project.send(project.now_us, steps=6)
        project.read(steps=2)
        yield


@pytest.fixture
def project(lived: TopicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TopicProject:
    """A copy of it, before its stream has begun."""
    shutil.copytree(lived.folder, tmp_path / "shop")
    topics = MemoryTopics()
    topics.install(monkeypatch)
    copy = TopicProject(tmp_path / "topics", topics, begin_us=BEGIN)
    copy.folder = tmp_path / "shop"
    return copy


def configured(project: TopicProject, keep_us: int | None = None) -> Configuration:
    folder = project.folder.parent / "archive"
    return project.config(archive=Archive(folder, keep_us))


def archived(project: TopicProject, **changes: Any) -> Configuration:
    config = configured(project, **changes)
    for _ in savepoints(project):
        archive_live_rows(config, config.current)
    return config


def folder_of(config: Configuration) -> Path:
    assert config.archive is not None
    return config.archive.folder


def files_of(config: Configuration) -> dict[str, bytes]:
    folder = folder_of(config)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*/*")}


def found_by(config: Configuration) -> tuple[Findings, dict[str, int]]:
    findings = Findings()
    figures = compare_archive(config, QuietProgress(), findings)
    return findings, dict(figures)


def test_every_row_is_archived_once_and_other_programs_read_it(project: TopicProject) -> None:
    config = archived(project)
    folder, log = folder_of(config), Log(config.current.build_folder, project.live.folder)
    days = {path.name for path in (folder / "payments").iterdir()}
    assert days == {f"day=2023-11-{day}" for day in (15, 16, 17, 18)}
    for name in NAMES:
        paths_of = sorted((folder / name).glob("*/*.parquet"))
        over = [path for path in paths_of if "11-18" not in str(path)]
        assert len({(path.parent, path.name[:5]) for path in over}) == len(over)  # compacted
        rows = pa.concat_tables(pq.ParquetFile(path).read() for path in paths_of)
        rows = rows.sort_by([("_partition", "ascending"), ("_position", "ascending")])
        parts = [log.read(name, 1 + partition) for partition in range(2)]
        expected = pa.concat_tables(
            part.append_column("_partition", pa.array([n] * len(part), pa.int64()))
            for n, part in enumerate(parts)
        )
        received = expected.column("_received").cast(pa.timestamp("us", tz="UTC"))
        expected = expected.set_column(
            expected.schema.get_field_index("_received"), "_received", received
        ).select(rows.column_names)
        assert rows.equals(expected)
        assert len(rows) == sum(map(len, project.rows[name][1:])) > 0
        by_day = ds.dataset(folder / name, partitioning="hive").to_table()
        pattern = f"{folder}/{name}/*/*.parquet"
        polars_rows = polars.read_parquet(pattern, hive_partitioning=True)
        counted = duckdb.sql(
            f"select count(*), count(distinct (_partition, _position)), min(day), "
            f"sum(cast(cast(_received as date) = cast(day as date) as int)) "
            f"from read_parquet('{pattern}', hive_partitioning = true)"
        ).fetchall()[0]
        assert len(by_day) == len(polars_rows) == len(rows)
        assert counted[:2] == (len(rows), len(rows))
        assert counted[3] == len(rows)
    findings, figures = found_by(config)
    assert not findings.count, findings.listed
    assert figures["archive_rows"] == sum(len(one) for n in NAMES for one in project.rows[n][1:])
    assert not figures["archive_behind"]


def test_an_archive_is_the_files_of_another_project(project: TopicProject, tmp_path: Path) -> None:
    config = archived(project)
    backfill(config, QuietProgress())
    own = replace(config.sources["checks"], files=(str(folder_of(config) / "checks/*/*.parquet"),))
    with pytest.raises(InputError, match="they would be there twice"):
        backfill(replace(config, sources={**config.sources, "checks": own}), QuietProgress())
    sources = {
        name: Source(
            name,
            (
                str(project.folder / f"{name}.csv"),
                str(folder_of(config) / name / "**" / "*.parquet"),
            ),
            received="sent_at",
        )
        for name in NAMES
    }
    other = replace(config, root=tmp_path / "other", sources=sources, archive=None)
    backfill(other, QuietProgress())
    tables = []
    for one in (config, other):
        folder = one.current.build_folder / paths.TRAINING_TABLE
        rows = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
        tables.append(in_canonical_order(rows.drop_columns(["_partition", "_position"])))
    assert tables[0].equals(tables[1])
    assert table_digest(tables[0]) == table_digest(tables[1])
    assert tables[0].column("label").null_count < len(tables[0]) > 50


class _Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("is_linux", [True, False])
def test_an_archive_that_is_killed_at_any_step_has_no_row_twice(
    project: TopicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linux: bool
) -> None:
    config = configured(project)
    for number, _ in enumerate(savepoints(project)):
        if number in (1, 3):
            archive_live_rows(config, config.current)
    before = tmp_path / "before"
    shutil.copytree(folder_of(config), before)
    archive_live_rows(config, config.current)
    right = files_of(config)
    steps = 0
    count = [0, 0]

    def step() -> None:
        count[0] += 1
        if count[0] == count[1]:
            raise _Killed

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            step()
            found = call(*arguments, **options)
            step()
            return found

        return called

    monkeypatch.setattr(Path, "rename", killing(Path.rename))
    if is_linux:
        monkeypatch.setattr(archiving, "write_file", killing(archiving.write_file))
        monkeypatch.setattr(archiving, "exchange", killing(archiving.exchange))
        monkeypatch.setattr(ArchiveManifest, "write", killing(ArchiveManifest.write))
        monkeypatch.setattr(Path, "unlink", killing(Path.unlink))
    else:
        monkeypatch.setattr("tidemill.pipelines.archive.exchange._exchanged", lambda *_: False)
    while True:
        steps += 1
        shutil.rmtree(folder_of(config))
        shutil.copytree(before, folder_of(config))
        count[:] = [0, steps]
        try:
            archive_live_rows(config, config.current)
        except _Killed:
            pass
        else:
            break
        places = [
            place
            for path in folder_of(config).glob("payments/day=*/*.parquet")
            for place in pq.ParquetFile(path).read(["_partition", "_position"]).to_pylist()
        ]
        assert len(places) == len({(one["_partition"], one["_position"]) for one in places})
        count[1] = 0
        archive_live_rows(config, config.current)
        assert files_of(config) == right
    assert steps > 20
    assert not found_by(config)[0].count


def test_folders_are_exchanged_without_the_system_call_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("new", "old"):
        (tmp_path / one).mkdir()
        (tmp_path / one / one).touch()
    exchange(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    monkeypatch.setattr("tidemill.pipelines.archive.exchange._exchanged", lambda *_: False)
    exchange(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["old"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["new"]


def test_tampered_missing_and_extra_files_are_named(project: TopicProject) -> None:
    config = archived(project)
    files = sorted(folder_of(config).glob("payments/*/*.parquet"))
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    second = files[1].read_bytes()
    files[1].unlink()
    extra = files[2].with_name("copy-of-it.parquet")
    shutil.copy(files[2], extra)
    findings, _ = found_by(config)
    said = {one.id: one.cause for one in findings.listed}
    assert {*said} == {str(files[0]), str(files[1]), str(extra)}
    assert said[str(files[0])] == "it was changed after it was written"
    assert said[str(files[1])] == "it is missing"
    extra.unlink()
    files[1].write_bytes(second)
    # An enemy writes other rows, and the manifest's digest of them.
    files[0].write_bytes(whole)
    table = pq.ParquetFile(files[0]).read()
    amounts = pc.add(table.column("amount"), 1.0)
    place = table.schema.get_field_index("amount")
    pq.write_table(table.set_column(place, "amount", amounts), files[0])
    manifest = ArchiveManifest.read(folder_of(config))
    assert manifest is not None
    source = manifest.sources["payments"]
    forged = [
        replace(
            one,
            size=files[0].stat().st_size,
            sha256=file_sha256(files[0]),
        )
        if folder_of(config) / "payments" / one.name == files[0]
        else one
        for one in source.files
    ]
    manifest.with_source("payments", replace(source, files=forged)).write(folder_of(config))
    findings, _ = found_by(config)
    assert [(one.id, one.feature) for one in findings.listed] == [(str(files[0]), "rows")]


def test_days_are_removed_by_age_and_leave_their_digests(project: TopicProject) -> None:
    config = archived(project, keep_us=DAY)
    folder = folder_of(config)
    assert not list(folder.glob("*/day=2023-11-1[56]"))
    assert list(folder.glob("payments/day=2023-11-17/*.parquet"))
    manifest = ArchiveManifest.read(folder)
    assert manifest is not None
    assert {one.day for one in manifest.sources["payments"].removed} == {"2023-11-15", "2023-11-16"}
    findings, figures = found_by(config)
    assert not findings.count, findings.listed
    assert figures["archive_removed_rows"] > 0
    assert archive(config, QuietProgress())["rows"] == {}  # nothing comes back
    backfill(config, QuietProgress())  # what a build needs is in the live log


def test_the_archive_of_another_root_is_not_written(project: TopicProject, tmp_path: Path) -> None:
    config = archived(project)
    other = replace(
        config, archive=Archive(folder_of(config)), project=replace(PROJECT, name="other")
    )
    with pytest.raises(StateMismatch, match="is the archive of project 'shop'"):
        archive_live_rows(other, config.current)
    whole = (folder_of(config) / MANIFEST).read_bytes()
    (folder_of(config) / MANIFEST).write_bytes(whole[:-20])
    with pytest.raises(StateError, match=MANIFEST):
        archive_live_rows(config, config.current)
    assert found_by(config)[0].listed[0].id == str(folder_of(config) / MANIFEST)
    (folder_of(config) / MANIFEST).write_bytes(whole)
    (folder_of(config) / MANIFEST).rename(tmp_path / "manifest")
    with pytest.raises(StateMismatch, match=r"and no _tidemill\.json"):
        archive_live_rows(config, config.current)
    assert found_by(config)[0].count  # files that no manifest names
    (tmp_path / "manifest").rename(folder_of(config) / MANIFEST)
    shutil.rmtree(project.live.folder)
    assert found_by(config)[0].listed[0].cause.startswith("there is no live log")
    for _ in savepoints(project):
        pass  # the live log has begun anew
    with pytest.raises(StateMismatch, match="are not those of the live log"):
        archive_live_rows(config, config.current)
    with pytest.raises(InputError, match="names no archive"):
        archive(project.config(), QuietProgress())
