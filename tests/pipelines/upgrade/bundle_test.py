"""Another bundle in an upgrade: it scores from the new version on, and the plan says so."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builds import make_build
from tests.support.folders import stream_of
from tests.support.stream_outputs import rows_in
from tests.support.streaming_project import Row, arrivals, configuration
from tests.support.trained_bundle import (
    LINEAGE,
    OPTIONS,
    PROJECT,
    SPLITS,
    START,
    bundle,
    table,
    with_window,
)
from tidemill.features.contract import HOUR, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.training.train import train_bundle
from tidemill.pipelines.upgrade.plan import plan_upgrade
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.serving.bundles.current import make_current

CUT, HALF, STOP = START + 4 * HOUR, START + 6 * HOUR, START + 8 * HOUR


def rows_of() -> dict[str, list[Row]]:
    chance = random.Random(1)
    depots = ("north", "süd", "west")
    return {
        "scans": [
            {"at": START + chance.randrange(8 * 3_600) * SECOND, "scan": f"s{n}",
             "parcel": f"p{n}", "depot": chance.choice(depots), "minutes": chance.uniform(0, 30)}
            for n in range(200)
        ],
        "pickups": [
            {"at": START + chance.randrange(8 * 3_600) * SECOND, "parcel": f"r{n}",
             "depot": chance.choice((*depots, None)), "grams": chance.randrange(1_000),
             "metres": chance.uniform(0, 9), "fragile": True}
            for n in range(200)
        ],
    }  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    """A root whose stream has stopped half way, scored by a bundle."""
    trained = bundle().directory
    shutil.copytree(trained, tmp_path / "bundles" / trained.name)
    make_current(tmp_path, trained.name)
    made = configuration(tmp_path, PROJECT, CUT, STOP, poll_rows=60)
    parts = {"scans": 2, "pickups": 2}
    make_build(made, arrivals(PROJECT, rows_of(), parts, random.Random(1)))
    stream(made, QuietProgress(), engine="fnapi", until_us=HALF)
    return made


def of_bundle(config: Configuration) -> tuple[str, str]:
    plan = plan_upgrade(config)
    assert plan is not None
    (found,) = [step for step in plan.steps if step.what == "bundle"]
    return found.fate.value, found.why


def test_another_bundle_scores_from_the_new_version_on(config: Configuration) -> None:
    before = bundle().version
    assert of_bundle(config)[0] == "kept"
    assert upgrade(config, QuietProgress())["upgraded"] == 0
    other = train_bundle(
        PROJECT, table(), SPLITS, replace(OPTIONS, epochs=1, seeds=1, seed=3),
        work=config.root / "work", bundles=config.root / "bundles",
        created_at="2026-11-20T12:00:00Z", progress=QuietProgress(), lineage=LINEAGE,
    )  # fmt: skip
    make_current(config.root, other.version)
    assert of_bundle(config) == (
        "changed",
        f"{before} -> {other.version}, the live one, from the new version on",
    )
    first = rows_in(stream_of(config.root) / "predictions")
    assert upgrade(config, QuietProgress())["views"] == {"depot": "kept"}
    stream(config, QuietProgress(), engine="fnapi", resume=True)
    later = rows_in(stream_of(config.root) / "predictions")
    versions = [Counter(row["bundle_version"] for row in rows) for rows in (first, later)]
    assert versions == [{before: len(first)}, {other.version: len(later)}]
    assert len(first) > 30 < len(later)
    assert not {row["request_id"] for row in first} & {row["request_id"] for row in later}


def test_a_model_needs_a_bundle_for_the_new_definitions(config: Configuration) -> None:
    other = replace(config, project=with_window("2d"))
    assert of_bundle(other) == ("refused", "train it for these definitions first")
    with pytest.raises(StateMismatch, match=f"bundle {bundle().version} .* other definitions"):
        upgrade(other, QuietProgress())
    (config.root / "bundles" / "current").unlink()
    with pytest.raises(StateMismatch, match="run `tidemill train`"):
        upgrade(other, QuietProgress())


def test_a_project_loses_its_model(config: Configuration) -> None:
    other = replace(config, project=replace(PROJECT, model=None, preprocessing_fn=None))
    assert of_bundle(other)[0] == "dropped"
    assert upgrade(other, QuietProgress())["views"] == {"depot": "kept"}
    stream(other, QuietProgress(), engine="fnapi", resume=True)
    rows = rows_in(stream_of(config.root) / "predictions")
    assert rows
    assert {row["score"] for row in rows} == {None}
