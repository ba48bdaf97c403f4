"""A stream that goes on with another bundle: who scores a request is a function of the log."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import FakeScorer, configuration, write_sources
from tests.support.stream_outputs import change_a_file
from tidemill.features.contract import HOUR
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.stream_run import stream as stream_module
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.bundles.blocks import Blocks

SCORES = {"b1": 0.25, "b2": 0.5, "b3": 0.75}


class Of(FakeScorer):
    """The scorer of a bundle: its score is the bundle's, whatever the request."""

    def __init__(self, bundle: str) -> None:
        self.stamps = replace(FakeScorer.stamps, bundle=bundle)

    def score(self, columns: pa.RecordBatch | Blocks, parts: Sequence[int] | None = None) -> Any:
        return np.full(columns.num_rows, SCORES[self.stamps.bundle], np.float32)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The live bundle, in a list that a test may change."""
    live = ["b1"]
    monkeypatch.setattr(infer, "scorer_of", lambda folder, _: Of(folder.name))
    monkeypatch.setattr(stream_module, "live_bundle", lambda _, root: root / "bundles" / live[0])
    return live


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("bundles")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    config = replace(config, stream=replace(config.stream, poll_rows=20))
    backfill(config, QuietProgress(), publish=True)
    return config


@pytest.fixture
def config(backfilled: Configuration, tmp_path: Path) -> Configuration:
    shutil.copytree(backfilled.root, tmp_path / "run")
    copy = configuration(backfilled.path.parent, tmp_path / "run")
    return replace(copy, stream=backfilled.stream)


def _run(config: Configuration, hours: int | None, **options: Any) -> dict[str, Any]:
    until_us = None if hours is None else config.splits.evaluate_until_us + hours * HOUR
    return stream(config, QuietProgress(), until_us=until_us, **options)


def _models(config: Configuration) -> list[tuple[str | None, list[int]]]:
    run = StreamRun.read(stream_of(config.root))
    assert run is not None
    return [(made["bundle"], list(made["positions"])) for made in run.models or ()]


def _served(config: Configuration) -> pa.Table:
    found = predictions_of(stream_of(config.root)).read()
    assert found is not None
    return found


def _causes(config: Configuration) -> list[str]:
    return [one["cause"] for one in verify(config, QuietProgress(), sample=5)["first_mismatches"]]


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_each_request_is_scored_by_the_bundle_of_its_place(
    engine: str, config: Configuration, live: list[str]
) -> None:
    waiting = []
    for bundle, hours in (("b1", 5), ("b2", 11), ("b3", None)):
        live[0] = bundle
        figures = _run(config, hours, engine=engine, resume=bundle != "b1")
        waiting.append(figures["waiting"])
    assert all(waiting[:2])
    models = _models(config)
    assert [bundle for bundle, _ in models] == ["b1", "b2", "b3"]
    served = _served(config)
    for row in served.select(["partition", "position", "bundle_version", "score"]).to_pylist():
        begun = [b for b, since in models[1:] if row["position"] >= since[row["partition"]]]
        right = [models[0][0], *begun][-1]
        assert (row["bundle_version"], row["score"]) == (right, SCORES[str(right)])
    assert len(set(served["bundle_version"].to_pylist())) == 3
    assert _causes(config) == []


def test_requests_that_waited_are_scored_by_the_bundle_before(
    config: Configuration, live: list[str]
) -> None:
    waiting = _run(config, 8)["waiting"]
    answered = _served(config).num_rows
    live[0] = "b2"
    _run(config, None, resume=True)
    by = _served(config)["bundle_version"].to_pylist().count("b1")
    assert by == answered + waiting
    assert waiting > 0


def test_the_same_bundle_is_decided_once(config: Configuration, live: list[str]) -> None:
    _run(config, 5)
    _run(config, 9, resume=True)
    _run(config, None, resume=True)
    assert [bundle for bundle, _ in _models(config)] == ["b1"]
    assert _causes(config) == []


def test_a_stream_that_starts_over_decides_anew(config: Configuration, live: list[str]) -> None:
    _run(config, 5)
    live[0] = "b2"
    _run(config, None)
    assert [bundle for bundle, _ in _models(config)] == ["b2"]
    assert {*_served(config)["bundle_version"].to_pylist()} == {"b2"}


def test_a_stream_of_a_version_that_recorded_none_goes_on(
    config: Configuration, live: list[str]
) -> None:
    _run(config, 8)
    folder = stream_of(config.root)
    run = StreamRun.read(folder)
    assert run is not None
    replace(run, models=None).write(folder)
    live[0] = "b2"
    _run(config, None, resume=True)
    models = _models(config)
    assert [bundle for bundle, _ in models] == [None, "b2"]
    assert {*_served(config)["bundle_version"].to_pylist()} == {"b1", "b2"}
    assert _causes(config) == []


def test_another_bundle_than_the_one_of_its_place_is_found(
    config: Configuration, live: list[str]
) -> None:
    _run(config, 8)
    live[0] = "b2"
    _run(config, None, resume=True)

    def swapped(table: pa.Table) -> pa.Table:
        """All predictions of a file as the other bundle would have made them."""
        name = table["bundle_version"][0].as_py()
        other = "b1" if name == "b2" else "b2"
        columns = {
            "bundle_version": pa.array([other] * len(table)),
            "score": pa.array([SCORES[other]] * len(table), pa.float32()),
        }
        for column, values in columns.items():
            place = table.schema.get_field_index(column)
            table = table.set_column(place, table.schema.field(place), values)
        return table

    change_a_file(stream_of(config.root) / "predictions", swapped)
    assert "the stream had another bundle score the requests of this place" in _causes(config)


def test_a_decision_that_was_moved_is_found(config: Configuration, live: list[str]) -> None:
    _run(config, 8)
    live[0] = "b2"
    _run(config, None, resume=True)
    folder = stream_of(config.root)
    run = StreamRun.read(folder)
    assert run is not None
    assert run.models is not None
    first, second = run.models
    moved = {**second, "positions": [at + 3 for at in second["positions"]]}
    replace(run, models=[first, moved]).write(folder)
    assert "the stream had another bundle score the requests of this place" in _causes(config)
