"""Exports of the archive of live rows: savepoint after savepoint, by age, and after forgetting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.exports import CARD, archive_rows, check_same, exported, table_rows, version_of
from tests.support.memory_topics import NAMES, TopicProject
from tests.support.searched import where_found
from tests.support.times import other_times
from tidemill.features.contract import DAY, HOUR, SECOND
from tidemill.pipelines.archive.archive import archive_live_rows
from tidemill.pipelines.archive.archiving import bring_up
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.run.progress import QuietProgress

MIDNIGHT = 1_700_092_800 * SECOND


class Shop(TopicProject):
    """A shop with a card of a name of its own."""

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        found = super()._some(at_us)
        for _, row in found:
            if row.get("card") == "c-1":
                row["card"] = CARD
        return found


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose files end an hour before a midnight, and are built."""
    project = Shop.of_now(
        tmp_path / "shop", monkeypatch, ago_us=HOUR, now_us=MIDNIGHT, poll_rows=50,
        archive=Archive(tmp_path / "archive"),
    )  # fmt: skip
    backfill(project.config(), QuietProgress())
    return project


def archive_of(config: Configuration) -> Path:
    assert config.archive is not None
    return config.archive.folder


def savepoints(shop: Shop) -> Iterator[int]:
    """Read, seal and archive rows, before midnight and on the days after; yield after each."""
    for number, hours in enumerate((0.1, 0.5, 2, 3, 26, 27, 50)):
        shop.now_us = shop.until_us + round(hours * HOUR)
        shop.send(shop.now_us, steps=12)
        shop.read(steps=2)
        config = shop.config()
        archive_live_rows(config, shop.current)
        yield number


def test_a_run_after_each_savepoint_makes_a_commit_of_each_table(shop: Shop, to: Path) -> None:
    config = shop.config()
    removed = 0
    for number in savepoints(shop):
        figures = exported(config, to)
        assert {*figures} == {*NAMES}
        for name in NAMES:
            check_same(archive_of(config), to, name)
            assert version_of(to / name) == number
            removed += figures[name]["removed"]
    assert removed > 0  # days were put together
    assert len(table_rows(to / "payments")) == sum(map(len, shop.rows["payments"][1:]))


def test_days_that_are_removed_by_age_are_gone(shop: Shop, to: Path) -> None:
    config = shop.config()
    for _ in savepoints(shop):
        exported(config, to)
    days = {path.name for path in (to / "payments").glob("day=*")}
    keeping = replace(config, archive=Archive(archive_of(config), DAY))
    archive_live_rows(keeping, shop.current)
    exported(config, to)
    gone = days - {path.name for path in (to / "payments").glob("day=*")}
    assert gone
    assert all(not list((archive_of(config) / "payments").glob(f"{day}/*")) for day in gone)
    for name in NAMES:
        check_same(archive_of(config), to, name)


@pytest.mark.parametrize("is_exported_before", [True, False])
def test_a_card_that_is_forgotten_is_in_no_file_of_the_export(
    shop: Shop, to: Path, tmp_path: Path, is_exported_before: bool
) -> None:
    config = shop.config()
    for number in savepoints(shop):
        if is_exported_before or number == 3:
            exported(config, to)
    assert where_found(to, CARD)
    before = archive_rows(archive_of(config), "payments")
    figures = forget(config, "card", CARD, QuietProgress())
    assert figures["removed"]["archive"] > 0
    assert any("`tidemill export-archive`" in one for one in figures["remains"])
    exported(config, to)
    assert where_found(to, CARD) == where_found(tmp_path / "archive", CARD) == []
    for name in NAMES:
        check_same(archive_of(config), to, name)
    rows = table_rows(to / "payments")
    # The rows stay at their places, with the time of receipt.
    for column in ("_partition", "_position", "_received", "day"):
        assert rows[column].equals(before[column])
    assert rows["payment"].null_count > before["payment"].null_count == 0
    for _ in savepoints(shop):
        pass
    exported(config, to)
    check_same(archive_of(config), to, "payments")


def test_an_export_beside_the_archive_of_a_stream(shop: Shop, to: Path) -> None:
    """The archive is brought up from nothing, day by day, while runs of the export go on."""
    config = shop.config()
    for _ in savepoints(shop):
        pass
    live = find_live_rows(shop.current, config.project)
    assert live is not None
    other = Archive(archive_of(config).with_name("second"))
    beside = replace(config, archive=other)
    ended, failed = threading.Event(), list[BaseException]()

    def bring_up_slowly() -> None:
        try:
            whole = live.sealed.positions
            for part in (5, 4, 3, 2, 1):
                positions = {
                    name: [count // part for count in counts] for name, counts in whole.items()
                }
                so_far = replace(live, sealed=replace(live.sealed, positions=positions))
                bring_up(beside, other, so_far)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)
        finally:
            ended.set()

    writer = threading.Thread(target=bring_up_slowly)
    writer.start()
    before = dict.fromkeys(NAMES, 0)
    while not ended.is_set():
        for name in exported(beside, to):
            rows = table_rows(to / name).select(["_partition", "_position"]).to_pylist()
            assert len({tuple(one.values()) for one in rows}) == len(rows) >= before[name]
            before[name] = len(rows)
    writer.join(120)
    assert failed == []
    exported(beside, to)
    for name in NAMES:
        check_same(other.folder, to, name)
        assert table_rows(to / name).equals(archive_rows(archive_of(config), name))


YAML = """
project: tests.support.memory_topics:PROJECT
root: run
sources:
  payments: {files: ["payments*.csv"], received: sent_at,
    kafka: {bootstrap: "nowhere:1", topic: payments, format: json}}
  refunds: {files: ["refunds*.csv"], received: sent_at,
    kafka: {bootstrap: "nowhere:1", topic: refunds, format: json}}
  checks: {files: ["checks*.csv"], received: sent_at,
    kafka: {bootstrap: "nowhere:1", topic: checks, format: json}}
splits:
  train_until: 2023-11-15T22:00:00Z
  evaluate_until: 2023-11-15T23:00:00Z
archive: {folder: ../archive}
"""


def test_the_command(
    shop: Shop, to: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop.folder / "tidemill.yaml").write_text(YAML)
    for _ in savepoints(shop):
        pass

    def run(*options: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["export-archive", "--config", str(shop.folder / "tidemill.yaml"), *options])
        printed = capsys.readouterr()
        assert left.value.code == (0 if options else 2), printed.err
        return printed.out + printed.err

    assert "Missing option '--to'" in run()
    said = run("--to", str(to), "--quiet")
    rows = said.split("export-archive: tables\n")[1].splitlines()[1:]
    assert [row.split()[0] for row in rows if row] == sorted(NAMES)
    assert other_times(said) == []
    archive_live_rows(
        replace(shop.config(), archive=Archive(tmp_path / "archive", DAY)), shop.current
    )
    said = run("--to", str(to))
    assert f"{to / 'payments'}: deleted files that the table does not name:" in said
    check_same(tmp_path / "archive", to, "payments")
