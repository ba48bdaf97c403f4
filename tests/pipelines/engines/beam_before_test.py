"""The Beam before ours translates a stream's job to the same steps: those of the golden file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution, distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from locks.closure import read_lock
from tests.pipelines.engines.dataflow_test import GOLDEN
from tests.support.live_project import instant
from tests.support.markdown import ROOT
from tests.support.replayed import BEGIN, REQUESTS, Replayed
from tests.support.translated import parcels_root, translate_elsewhere
from tidemill.features.contract import HOUR
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream_run.translation import STEPS

(LOCKED,) = read_lock(ROOT / "locks" / "beam-before.lock")
BEFORE = ROOT / ".tidemill" / f"beam-{LOCKED.version}"
"""`make beam-before` installs it there; `make test` does."""
UNUSED = {"cryptography"}
"""What it wants in another version than ours, and a translation does not import."""


def test_it_is_the_one_before_ours_and_our_packages_fit_it() -> None:
    ours = distribution("apache-beam").version.split(".")
    assert str(LOCKED.version).split(".")[:2] == [ours[0], str(int(ours[1]) - 1)]
    (before,) = distributions(name="apache-beam", path=[str(BEFORE)])
    assert before.version == str(LOCKED.version)
    required = map(Requirement, before.requires or [])
    unfit = {
        one.name
        for one in required
        if (one.marker is None or one.marker.evaluate({"extra": "gcp"}))
        and not one.specifier.contains(version(one.name), prereleases=True)
    }
    assert unfit <= UNUSED


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parcels_root(tmp_path_factory.mktemp("parcels")).root


def test_it_translates_to_the_same_steps(root: Path, tmp_path: Path) -> None:
    translate_elsewhere(root, tmp_path, BEFORE)
    assert (tmp_path / "beam").read_text() == str(LOCKED.version)
    assert json.loads((tmp_path / STEPS).read_text())["steps"] == json.loads(GOLDEN.read_text())


_COMMAND = """
import sys
import apache_beam
from tidemill.pipelines.commands.cli import main
assert apache_beam.__version__ == sys.argv.pop(1), apache_beam.__version__
sys.exit(main())
"""


def run_under_it(folder: Path, *arguments: str) -> None:
    """Run a command of `tidemill` under the Beam before ours."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(LOCKED.version), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{BEFORE}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stream_goes_on_under_it_and_back(tmp_path: Path) -> None:
    project = Replayed(tmp_path / "replayed")
    project.run("stream", "--quiet")
    whole = project.outputs()
    project.run("stream", "--quiet", "--until", instant(BEGIN + 5 * HOUR))
    until = instant(BEGIN + 5 * HOUR + HOUR // 2)
    run_under_it(project.folder, "stream", "--quiet", "--resume", "--until", until)
    project.verify()
    project.run("stream", "--quiet", "--resume")
    project.verify()
    run_under_it(project.folder, "verify", "--quiet")
    parts = project.outputs()
    assert len(whole[paths.PREDICTIONS]) == REQUESTS
    for one, other in zip(parts[paths.PREDICTIONS], whole[paths.PREDICTIONS], strict=True):
        # Polls end at the savepoints, too, so releases differ.
        names = ["request_id", *(name for name in one if name.startswith("by_card__"))]
        assert [one[name] for name in names] == [other[name] for name in names]
