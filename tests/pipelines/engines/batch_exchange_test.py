"""Backfills and analyses on a Flink cluster whose workers do not have the program's disk.

The workers see an empty folder where the root is (`tests.support.elsewhere`), and meet the program
in an exchange.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.pipelines.engines.exchange_test import WRONG_KEY
from tests.support import fork_server
from tests.support.elsewhere import command_elsewhere, elsewhere
from tests.support.exports import contents
from tests.support.flink_cluster import TestCluster
from tests.support.folders import build_of
from tests.support.markdown import ROOT
from tests.support.s3_server import S3Server
from tests.support.waiting import wait_until
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.run import paths

WITHIN_S = 500.0
NAMED = ("build.json", "states/handoff.json")
"""What names the generation, which has an id of its own."""


def shop(folder: Path, exchange: str) -> Path:
    """Write a project with a rejected record, whose workers meet it at a URL."""
    project = write_project("shop", folder)
    with (project / "events" / "orders.csv").open("a") as file:
        file.write("o-wrong,not a time,c-1,1.0\n")
    path = project / "tidemill.yaml"
    text = path.read_text().replace("stream: {", f'stream: {{exchange: "{exchange}", ')
    path.write_text(text.replace("epochs: 15", "epochs: 1").replace("seeds: 2", "seeds: 1"))
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


def bundles(root: Path) -> list[str]:
    return sorted(path.name for path in (root / paths.BUNDLES).iterdir() if path.is_dir())


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_backfill_and_a_training_have_the_bytes_of_those_on_fnapi(
    cluster: TestCluster, tmp_path: Path
) -> None:
    project = shop(tmp_path, f"file://{tmp_path / 'exchange'}")
    run(project, "backfill")
    run(project, "train")
    there = project / "there"
    with elsewhere(there, tmp_path / "pool") as pool:
        flags = [*cluster.flags, pool.flag, "--parallelism=2"]
        run(project, "backfill", "--root", "there", *flags)
        assert build(there) == build(project / "run")
        assert rejected(there) == rejected(project / "run")
        assert left(there / paths.REJECTED)
        run(project, "train", "--root", "there", *flags)
        assert bundles(there) == bundles(project / "run")
        assert pool.written() == []
    assert left(tmp_path / "exchange") == []
    assert list((there / paths.JOBS).iterdir()) == []
