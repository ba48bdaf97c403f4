"""Backfills and analyses on a Flink cluster whose workers do not have the program's disk.

The workers see an empty folder where the root is (`tests.support.elsewhere`), and meet the program
in an exchange.
"""

from __future__ import annotations

from pathlib import Path

from tests.support import fork_server
from tests.support import trained_bundle as given
from tests.support.elsewhere import elsewhere
from tests.support.exports import contents
from tests.support.flink_cluster import TestCluster
from tests.support.folders import build_of
from tests.support.s3_server import S3Server
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.run import paths
from tidemill.pipelines.training.transform import analyse

WITHIN_S = 500.0
NAMED = ("build.json", "states/handoff.json")
"""What names the generation, which has an id of its own."""


def shop(folder: Path, exchange: str | None) -> Path:
    """Write a project with a rejected record, whose workers meet it at a URL."""
    project = write_project("shop", folder)
    with (project / "events" / "orders.csv").open("a") as file:
        file.write("o-wrong,not a time,c-1,1.0\n")
    path = project / "tidemill.yaml"
    if exchange is not None:
        text = path.read_text().replace("stream: {", f'stream: {{exchange: "{exchange}", ')
        path.write_text(text)
    return project


def run(project: Path, *arguments: str) -> str:
    done = fork_server.run_command(arguments, project, WITHIN_S)
    assert done.status == 0, f"status {done.status}: {done.printed}"
    return done.printed


def build(root: Path) -> dict[str, bytes]:
    """Return the files of the build of a root, but for those that name its generation."""
    found = contents(build_of(root))
    for name in NAMED:
        assert found.pop(name)
    assert len(found) > 4
    return found


def rejected(root: Path) -> dict[str, bytes]:
    return contents(root / paths.REJECTED)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def graphs(jobs: BatchJobs, folder: Path) -> list[str]:
    """Return the hashes of the graphs of an analysis here, and of one by some jobs."""
    rows, inputs = given.rows(20_000), model_inputs(given.PROJECT)
    return [
        analyse(given.preprocess, inputs, rows, folder / name, of).hash
        for name, of in (("here", BatchJobs.on("fnapi", "test")), ("there", jobs))
    ]


def test_a_backfill_has_the_bytes_of_one_on_fnapi(cluster: TestCluster, tmp_path: Path) -> None:
    project = shop(tmp_path, f"file://{tmp_path / 'exchange'}")
    run(project, "backfill")
    there = project / "there"
    with elsewhere(there, tmp_path / "pool") as pool:
        run(project, "backfill", "--root", "there", *cluster.flags, pool.flag, "--parallelism=2")
        assert pool.written() == []
    assert build(there) == build(project / "run")
    assert rejected(there) == rejected(project / "run")
    assert left(there / paths.REJECTED)
    assert left(tmp_path / "exchange") == []
    assert list((there / paths.JOBS).iterdir()) == []


def test_an_analysis_has_the_graph_of_one_on_fnapi(
    cluster: TestCluster, s3: S3Server, tmp_path: Path
) -> None:
    root, module = tmp_path / "root", "tests.support.trained_bundle:PROJECT"
    with elsewhere(root, tmp_path / "pool", s3.environment) as pool:
        choice = choose_engine("flink", streaming=False, flags=[*cluster.flags[3:], pool.flag])
        jobs = BatchJobs(choice, "test", module, given.PROJECT.hash, root, exchange=s3.url)
        here, there = graphs(jobs, root)
        assert pool.written() == []
    assert there == here
    assert s3.objects() == []
