"""Events that only some views count, and events that come twice, from files to figures."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    STREAM_UNTIL,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill.features.contract import TIME_MAX
from tidemill.features.definitions import Project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.ingest.ingest import validate_sources
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify


def specified(folder: Path, since_us: int = 0, until_us: int = TIME_MAX) -> dict[str, Any]:
    """Count the rides received from one instant to another, row by row."""
    with (folder / "rides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    events: set[tuple[str, ...]] = set()
    ids: set[str] = set()
    duplicates = conflicts = driverless = 0
    for row in rows:
        identity = tuple(value for name, value in row.items() if name != "received_at")
        if since_us <= instant_of(row["received_at"]) < until_us:
            duplicates += identity in events
            conflicts += identity not in events and row["ride"] in ids
            driverless += row["driver"] == ""
        events.add(identity)
        ids.add(row["ride"])
    return {
        "duplicates": duplicates,
        "conflicts": conflicts,
        "without_key": {"by_driver": driverless},
    }


def instant_of(text: str) -> int:
    return int(pa.scalar(text).cast(pa.timestamp("us", tz="UTC")).value)


def test_each_command_counts_the_events_of_the_period_that_it_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_without_models(monkeypatch)
    write_sources(tmp_path)
    config = configuration(tmp_path, tmp_path / "run")
    everything, streamed = specified(tmp_path), specified(tmp_path, EVALUATE_UNTIL, STREAM_UNTIL)
    assert everything["duplicates"] > streamed["duplicates"] > 0
    assert everything["conflicts"] > streamed["conflicts"] > 0
    assert everything["without_key"]["by_driver"] > streamed["without_key"]["by_driver"] > 0
    for figures in (validate_sources(config, QuietProgress()), backfill_sources(config)):
        assert {name: figures["rides"][name] for name in everything} == everything
        assert not everything.keys() & figures["quotes"].keys()
    found = stream(config, QuietProgress(), engine="fnapi")
    assert found["duplicates"] == {"rides": streamed["duplicates"]}
    assert found["conflicts"] == {"rides": streamed["conflicts"]}
    assert found["without_key"] == streamed["without_key"]
    assert verify(config, QuietProgress(), sample=20)["mismatches"] == 0


def backfill_sources(config: Configuration) -> dict[str, Any]:
    sources: dict[str, Any] = backfill(config, QuietProgress())["sources"]
    return sources


def test_a_view_more_changes_no_value_and_no_row_of_the_log(tmp_path: Path) -> None:
    """Events without the key of the new view count for the others as before."""
    write_sources(tmp_path)
    found = {}
    alone = Project("rides_project", request=PROJECT.request, views=[PROJECT.view("by_zone")])
    for name, project in (("alone", alone), ("beside", PROJECT)):
        config = replace(configuration(tmp_path, tmp_path / name), project=project)
        backfill(config, QuietProgress())
        build = build_of(config.root)
        table = pq.read_table(build / paths.TRAINING_TABLE)
        digest = BuildManifest.read(build).sources["rides"]["digest"]
        columns = [column for column in table.column_names if column.startswith("by_zone__")]
        found[name] = digest, table.sort_by("request_id").select(["request_id", *columns])
    assert found["alone"][0] == found["beside"][0]
    assert found["alone"][1].equals(found["beside"][1])
    assert found["alone"][1].num_columns == 1 + len(PROJECT.view("by_zone").columns)
