"""A correction of one stream leaves the views of the others what they are: their fills go on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.proof_run import (
    BY_DRIVER,
    EVALUATE_UNTIL,
    QUOTES,
    FakeScorer,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill import Entity, EventStream, FeatureView, Project, col, count, sum
from tidemill.features.contract import HOUR
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.republish import shown_frontiers
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.fills import Fill
from tidemill.serving.online.rows import KeySpace, online_keys

TIPS = EventStream(
    "tips",
    schema={
        "tip": "string",
        "given_at": "timestamp",
        "received_at": "timestamp",
        "driver": "string",
        "amount": "float64",
    },
    event_time="given_at",
    event_id="tip",
    transport=["received_at"],
    out_of_orderness="1m",
    allowed_lateness="2h",
)
TIPPED = FeatureView(
    "tipped",
    entity=Entity("driver"),
    stream=TIPS,
    hop="10m",
    features={"tips_1d": count(over="1d"), "tipped_6h": sum(col("amount"), over="6h")},
)
PROJECT = Project("rides_and_tips", request=QUOTES, views=[BY_DRIVER, TIPPED])
END = EVALUATE_UNTIL + 6 * HOUR


class Scorer(FakeScorer):
    """Scores in place of a bundle for this project."""

    stamps = replace(FakeScorer.stamps, features=PROJECT.hash)


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch, Scorer())


def read_rides(folder: Path) -> list[dict[str, str]]:
    with (folder / "rides.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def streamed(tmp_path: Path) -> Configuration:
    write_sources(tmp_path)
    tips = [
        {
            "tip": row["ride"],
            "given_at": row["ended_at"],
            "received_at": row["received_at"],
            "driver": row["driver"],
            "amount": str(float(row["fare"] or 1) / 8),
        }
        for row in read_rides(tmp_path)[::3]
    ]
    write_rows(tmp_path / "tips.csv", tips)
    config = configuration(tmp_path, tmp_path / "run")
    config = replace(
        config,
        project_name=f"{__name__}:PROJECT",
        project=PROJECT,
        sources={
            **config.sources,
            "tips": Source("tips", (str(tmp_path / "tips.csv"),), received="received_at"),
        },
        splits=replace(config.splits, stream_until_us=END),
    )
    backfill(config, QuietProgress(), publish=True)
    run(config)
    return config


def run(config: Configuration) -> None:
    stream(config, QuietProgress(), engine="fnapi")


def fills(config: Configuration) -> dict[str, Fill]:
    """The fills that readers see, by view."""
    database = open_database(config.online_store)
    found = database.fills([KeySpace.of(PROJECT.name, view) for view in PROJECT.views])
    database.close()
    return {fill.space.view: fill for fill in found if fill.is_current}


def rows(config: Configuration, view: FeatureView) -> list[Any]:
    keys = online_keys("driver", pa.array([f"d{n}" for n in range(6)]))
    database = open_database(config.online_store)
    (found,) = database.read([(KeySpace.of(PROJECT.name, view), keys)])
    database.close()
    return [row and row.cells for row in found.rows]


@pytest.mark.parametrize("publish", [True, False])
def test_a_view_of_another_stream_keeps_its_fill(publish: bool, streamed: Configuration) -> None:
    was, shown = fills(streamed), shown_frontiers(streamed)
    tipped, driven = (rows(streamed, view) for view in (TIPPED, BY_DRIVER))
    folder = streamed.path.parent
    rides = read_rides(folder)
    write_rows(
        folder / "rides.csv", [{**row, "fare": str(float(row["fare"] or 0) + 1)} for row in rides]
    )
    backfill(streamed, QuietProgress(), publish=publish)
    now = fills(streamed)
    assert now["tipped"].id == was["tipped"].id
    assert rows(streamed, TIPPED) == tipped
    assert (now["by_driver"].id != was["by_driver"].id) == publish
    assert (rows(streamed, BY_DRIVER) != driven) == publish
    assert shown_frontiers(streamed) == shown
    run(streamed)
    assert fills(streamed)["by_driver"].id != was["by_driver"].id
    assert rows(streamed, TIPPED) == tipped
    assert rows(streamed, BY_DRIVER) != driven
    assert shown_frontiers(streamed) == shown
    figures = verify(streamed, QuietProgress(), sample=20)
    assert figures["first_mismatches"] == []
    assert figures["store_values"] > 0
