"""What is in batch: on Prism the bytes of FnApiRunner; lost jobs of a cluster are run again.

`flink_cluster_test.py` has what needs a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import trained_bundle as given
from tests.support.exports import contents
from tests.support.folders import build_of
from tidemill.features.errors import ClusterUnreachable, EngineLost
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.engines.batch_jobs import MOST, BatchJobs, Wire
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.history import builds
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.ports import ReservedPort
from tidemill.pipelines.training.train import train
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


class _Unlucky(BatchJobs):
    """Loses its first jobs."""

    def _run_attempt(self, attempt: Attempt, step: str, wire: Wire, _: object) -> Any:
        assert attempt.is_submitted
        found = self.attempts / "lost"
        lost = int(found.read_text()) if found.exists() else 0
        found.write_text(str(lost + 1))
        if lost < int(step):
            raise EngineLost(f"the job of {attempt.name} is lost")
        return "done"


@pytest.mark.parametrize("losses", [0, MOST, MOST + 1])
def test_a_job_that_is_lost_is_run_again_from_its_beginning_a_few_times(
    losses: int, tmp_path: Path
) -> None:
    said: list[str] = []
    cleared: list[int] = []
    choice = choose_engine("flink", streaming=False)
    jobs = _Unlucky(choice, "test", "a:b", "", tmp_path, said.append)

    def run() -> Any:
        return jobs.run(str(losses), lambda *_: None, lambda: cleared.append(len(said)))

    if losses > MOST:
        with pytest.raises(EngineLost, match=f"is lost; the job '{losses}' was lost {losses} time"):
            run()
    else:
        assert run() == "done"
    assert len(said) == min(losses, MOST)
    assert cleared == list(range(1, len(said) + 1))
    assert [path.name for path in jobs.attempts.iterdir()] == ["lost"]


@pytest.mark.parametrize("stage", [backfill, train])
def test_a_cluster_that_is_not_there_is_named_before_anything_is_done(
    stage: Callable[..., Any], tmp_path: Path
) -> None:
    config = load(write_project("shop", tmp_path) / "tidemill.yaml")
    with ReservedPort(HOST) as nobody:
        flags = [f"--flink_master={HOST}:{nobody.port}"]
        with pytest.raises(ClusterUnreachable, match=f"no JobManager .*{nobody.port}.*up --flink"):
            stage(config, QuietProgress(), engine="flink", beam_flags=flags)
    assert not config.root.exists()


def test_a_build_begins_when_no_worker_of_an_abandoned_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(builds, "end_abandoned", ended.append)
    with builds.building(tmp_path):
        assert ended == [tmp_path / paths.JOBS]
