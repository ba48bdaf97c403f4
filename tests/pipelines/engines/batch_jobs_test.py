"""What is in batch, on Prism: the same bytes as on FnApiRunner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import trained_bundle as given
from tests.support.exports import contents
from tests.support.folders import build_of
from tidemill.features.errors import UnknownEngine, WrongBeamFlag
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training.transform import analyse


def test_a_backfill_on_prism_has_the_bytes_of_one_on_fnapi(tmp_path: Path) -> None:
    config = load(write_project("shop", tmp_path) / "tidemill.yaml")
    found = {}
    for engine in ("fnapi", "prism"):
        of_engine = replace(config, root=tmp_path / engine)
        backfill(of_engine, QuietProgress(), engine=engine)
        found[engine] = contents(build_of(of_engine.root))
    # A generation has an id of its own, which these name.
    named = {"build.json", "states/handoff.json"}
    files = {
        engine: {name: data for name, data in of_engine.items() if name not in named}
        for engine, of_engine in found.items()
    }
    assert len(files["fnapi"]) > 8
    assert files["prism"] == files["fnapi"]
    assert found["prism"].keys() == found["fnapi"].keys()


def test_an_analysis_on_prism_has_the_graph_of_one_on_fnapi(tmp_path: Path) -> None:
    rows, inputs = given.rows(20_000), model_inputs(given.PROJECT)
    graphs = [
        analyse(given.preprocess, inputs, rows, tmp_path / engine, BatchJobs.on(engine, "test"))
        for engine in ("fnapi", "prism")
    ]
    assert graphs[0].hash == graphs[1].hash


@pytest.mark.parametrize("engine", ["flink", "dataflow"])
def test_engines_of_streams_are_refused(engine: str) -> None:
    with pytest.raises((UnknownEngine, WrongBeamFlag)):
        BatchJobs.on(engine, "test")
