"""A small root that the commands have made, and a way to run them on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.command_runs import HALF_WAY, Ended, Run, without_a_model
from tests.support.folders import stream_of
from tests.support.proof_run import rides_yaml, write_sources
from tidemill.features.rows import rejected
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.io.sinks import write_rows


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project whose root holds everything that the commands leave."""
    folder = tmp_path_factory.mktemp("rides")
    write_sources(folder)
    yaml = folder / "tidemill.yaml"
    yaml.write_text(rides_yaml(more="stream: {engine: fnapi}\n"))
    root = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_a_model(patch)
        for command in ("backfill --publish --quiet", "apply", f"stream {HALF_WAY} --quiet"):
            with pytest.raises(SystemExit) as left:
                main([*command.split(), "--config", str(yaml)])
            assert left.value.code == 0
    (root / "bundles").mkdir()
    (root / "bundles" / "current").write_text("0123456789abcdef\n")
    unanswered = rejected.batch(
        rejected.Stage.ANSWER, stream="quotes", partition=0, positions=np.array([9_999]),
        reasons=[rejected.Reason.NO_ANSWER], details=["too late"], origins=["quotes/0:9999"],
        payloads=[b"{}"],
    )  # fmt: skip
    write_rows(
        stream_of(root) / "rejected_by_stream", pa.Table.from_batches([unanswered]), "00001-0"
    )
    return folder


@pytest.fixture
def project(served: Path, tmp_path: Path) -> Path:
    """A copy of `served` for one test."""
    return shutil.copytree(served, tmp_path / "rides")
