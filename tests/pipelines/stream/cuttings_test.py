"""A release is a function of the log: however an engine cuts, repeats and recovers, the same files.

One log is replayed under random cuttings into bundles, with repeats and with restarts from an
engine's state (`tests.support.random_engine`), with different numbers of joiners, and on every
engine with bundles of every size. All output files must have the same bytes; of predictions, all
but the stamps of the wall clock.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.pipelines.recovery.handoff_test import late_arrivals
from tests.support.builds import make_build
from tests.support.folders import build_of, offline_of, stream_of
from tests.support.proof_run import score_without_models
from tests.support.random_engine import RandomEngine
from tests.support.streaming_project import (
    ENGINES,
    PARTITIONS,
    PROJECT,
    START,
    configuration,
)
from tidemill.features.contract import MINUTE
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io import replay
from tidemill.pipelines.io.outputs import OUTPUT, SEGMENT
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import ReplayLog, ReplayOptions
from tidemill.pipelines.recovery.resume import first_start, prepare
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import snapshot_policy, waiting_rows
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.output_folders import join_outputs
from tidemill.pipelines.stream_run.stream import stream
from tidemill.serving.stores.online_places import SqlitePlace
from tidemill.serving.stores.places import OFFLINE

BEGIN = START + 2 * MINUTE
STOP = START + 11 * MINUTE
POLL_ROWS = 7
CUTTINGS = {"exact": 20, "eager": 8}
OUTPUTS = (
    paths.PREDICTIONS,
    paths.REJECTED_BY_STREAM,
    paths.PUBLICATIONS,
    paths.RELEASES,
    OFFLINE,
)
MODES = ["exact", "eager"]
JOINERS = (1, 2, 3, 5)


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model, which these tests do not need."""
    score_without_models(monkeypatch)


def made(root: Path, mode: str) -> Configuration:
    """Make a root with a log in which some rows are late and some are rejected."""
    config = configuration(root, PROJECT, BEGIN, STOP, mode=mode, poll_rows=POLL_ROWS)
    make_build(config, late_arrivals(3), publish=True)
    return config


def copied(template: Configuration, root: Path, joiners: int = 1) -> Configuration:
    """Copy a root that no stream has run on; its stream has so many joiners."""
    shutil.copytree(template.root, root)
    return replace(
        template,
        path=root / "tidemill.yaml",
        root=root,
        online_store=SqlitePlace(root / "online.db"),
        stream=replace(template.stream, joiners=joiners),
    )


def outputs(root: Path, segment: int = 1) -> dict[str, Any]:
    """Return the content of every output of a segment by its name; its parts are joined."""
    found: dict[str, Any] = {}
    join_outputs(stream_of(root), 99)
    for folder in OUTPUTS:
        place = offline_of(root) if folder == OFFLINE else stream_of(root) / folder
        for path in sorted(place.rglob("*")):
            # A backfill has written the history; the stream's files begin with its segment.
            if not path.is_file() or not path.name.startswith(f"{segment:05d}-"):
                continue
            beside = f"{folder}/{path.parent.relative_to(place)}/{segment:05d}-"
            if folder == OFFLINE:
                found[f"{folder}/{path.relative_to(place)}"] = path.read_bytes()
                continue
            assert path.name == f"{segment:05d}-all.parquet"
            rows = pq.read_table(path)
            if folder == paths.PREDICTIONS:
                rows = rows.drop_columns(["sent_us", "created_us"])
            assert set(rows.column(SEGMENT).to_pylist()) == {segment}
            for row in rows.drop_columns([SEGMENT]).to_pylist():
                found.setdefault(beside + row.pop(OUTPUT), []).append(repr(row))
    return found


def polls_of(config: Configuration) -> list[Poll]:
    is_eager = config.stream.mode == "eager"
    options = ReplayOptions(build_of(config.root), BEGIN, STOP, POLL_ROWS, requests_first=is_eager)
    log = ReplayLog(PROJECT, options)
    polls, at = [], log.start
    while (found := log.next_poll(at, STOP, 0)) is not None:
        poll, at = found
        polls.append(poll)
    return [*polls, log.final_poll(at, 0)]


def run(config: Configuration, chance: random.Random | None) -> RandomEngine:
    start, fills = prepare(config, first_start(config, None), QuietProgress())
    options = FeaturizeOptions(
        run="cuttings",
        shards=config.shards,
        partitions=PARTITIONS,
        mode=Mode(config.stream.mode),
        changes=True,
        handoff=start.folder,
        joiners=config.stream.joiners,
    )
    engine = RandomEngine(config, start, fills, options, chance)
    engine.run(polls_of(config))
    return engine


@pytest.mark.parametrize("mode", MODES)
def test_random_cuttings_with_repeats_and_restarts_give_the_same_bytes(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Snapshots as well as logs of releases since.
    monkeypatch.setattr(waiting_rows, "MOST_IN_HEAD", 4)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_EVENTS", 5)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_TILES", 0)
    monkeypatch.setattr(snapshot_policy, "JOINER_LOG_BYTES", 4_000)
    template = made(tmp_path / "template", mode)
    orderly = copied(template, tmp_path / "orderly")
    run(orderly, None)
    expected = outputs(orderly.root)
    folders = {name.split("/")[0] for name in expected}
    assert folders == set(OUTPUTS)
    polls = len(polls_of(orderly))
    releases = [name for name in expected if name.startswith(paths.RELEASES)]
    assert len(releases) == polls * orderly.shards * len(PROJECT.views)
    failures = recoveries = 0
    for seed in range(CUTTINGS[mode]):
        config = copied(template, tmp_path / str(seed), JOINERS[seed % len(JOINERS)])
        engine = run(config, random.Random(seed))
        failures += engine.failures
        recoveries += engine.recoveries
        found = outputs(config.root)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    assert failures > CUTTINGS[mode] // 2
    assert recoveries > CUTTINGS[mode] // 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_same_bytes_whatever_its_bundles(
    engine: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a poll in each bundle, many polls in one, and at the speed of a clock; with joiners."""
    template = made(tmp_path / "template", mode)
    orderly = copied(template, tmp_path / "orderly")
    run(orderly, None)
    expected = outputs(orderly.root)
    for joiners, seconds, speed in ((2, -1.0, None), (3, 0.1, None), (1, 0.01, 2_000.0)):
        config = copied(template, tmp_path / f"{seconds}", joiners)
        monkeypatch.setattr(replay._Read, "moment_s", seconds)
        stream(config, QuietProgress(), engine=engine, speed=speed)
        found = outputs(config.root)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
