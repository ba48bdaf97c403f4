"""``tidemill merge-log`` as a user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.parcels import BY_COURIER, BY_DEPOT, depot_rows
from tidemill.features.contract import DAY, TIME_MAX, TIME_MIN
from tidemill.pipelines.commands.cli import commands
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.stores.places import OFFLINE

CONFIGURATION = """\
project: tests.support.parcels:PARCELS
root: ./run
sources: {scans: {files: [s.csv]}, quotes: {files: [q.csv]}}
splits:
  train_until: 2026-02-01T00:00:00Z
  evaluate_until: 2026-02-15T00:00:00Z
  stream_until: 2026-03-01T00:00:00Z
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tidemill.yaml"
    path.write_text(CONFIGURATION)
    return path


@pytest.fixture
def log(config: Path) -> OfflineLog:
    """Three releases a day on three days, of two segments; the slowest shard is in the third."""
    log = OfflineLog.of(config.parent / "run" / OFFLINE, BY_DEPOT)
    log.reach(1, 2, since_us=TIME_MIN, until_us=9 * DAY)
    for release in range(9):
        log.append(
            BY_DEPOT,
            {release: depot_rows((7, release * DAY // 3, release, release))},
            shard=0,
            shards=2,
            since_us=TIME_MIN,
            until_us=release * DAY // 3 + 1,
            segment=release // 4,
        )
    return log


def tidemill(*arguments: Any, fails: int = 0) -> str:
    result: Result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    assert result.exit_code == fails, (result.output, result.exception)
    return str(result.exception) if fails == 1 else result.stdout


def table(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def files(log: OfflineLog) -> int:
    return len(log.files(TIME_MIN, TIME_MAX))


def test_days_that_get_no_more_rows_are_merged_and_counted(config: Path, log: OfflineLog) -> None:
    planned = table(tidemill("merge-log", "--quiet", "--dry-run", "--config", config))
    assert planned[1] == ["view", "days", "before", "days", "files", "would", "be"]
    assert files(log) == 9, "a dry run changes nothing"
    done = table(tidemill("merge-log", "--quiet", "--config", config))
    assert done[1] == ["view", "days", "before", "days", "files", "are", "now"]
    # Both segments wrote to the second day.
    assert done[3] == planned[3] == ["by_depot", "1970-01-03", "2", "6", "3"]
    assert done[2] == ["by_courier", "no", "log"]
    assert files(log) == 3 + 3
    again = table(tidemill("merge-log", "--quiet", "--config", config))
    assert again[3] == ["by_depot", "1970-01-03", "2", "3", "3"]


def test_days_may_be_chosen(config: Path, log: OfflineLog) -> None:
    done = table(tidemill("merge-log", "--before", "1970-01-02", "--quiet", "--config", config))
    assert done[3] == ["by_depot", "1970-01-02", "1", "3", "1"]
    done = table(tidemill("merge-log", "--before", "2000-01-01", "--quiet", "--config", config))
    assert done[3] == ["by_depot", "2000-01-01", "3", "7", "5"]
    assert "does not match the format" in CliRunner().invoke(
        commands, ["merge-log", "--before", "yesterday", "--config", str(config)]
    ).output.replace("\n", " ")


def test_log_of_rows_that_nobody_said_to_be_complete_is_merged_whole(config: Path) -> None:
    log = OfflineLog.of(config.parent / "run" / OFFLINE, BY_DEPOT)
    for part in range(4):
        log.write(BY_DEPOT, depot_rows((7, part % 2 * DAY, part, 1)), f"p{part}")
    done = table(tidemill("merge-log", "--quiet", "--config", config))
    assert done[3] == ["by_depot", "all", "2", "4", "2"]


def test_project_without_a_log_is_left_as_it_is(config: Path) -> None:
    printed = tidemill("merge-log", "--quiet", "--config", config)
    assert printed.count("no log") == 2
    assert not (config.parent / "run").exists()


def test_file_that_is_not_whole_is_an_explained_error(config: Path) -> None:
    log = OfflineLog.of(config.parent / "run" / OFFLINE, BY_COURIER)
    for name in ("one", "other"):
        log.day("1970-01-01").mkdir(parents=True, exist_ok=True)
        (log.day("1970-01-01") / f"{name}.parquet").write_bytes(b"half")
    assert "one.parquet is not a complete Parquet file" in tidemill(
        "merge-log", "--quiet", "--config", config, fails=1
    )
