"""The demo through the command line, as a user runs it.

The loop of a new project runs from the wheel in `tests/packaging/wheel_test.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.folders import stream_of
from tests.support.times import other_times
from tidemill.pipelines.commands.cli import main

TIDEMILL = Path(sys.executable).parent / "tidemill"


def tidemill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TIDEMILL, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def last_line(printed: str) -> str:
    return printed.strip().splitlines()[-1]


@pytest.mark.timeout(900)
def test_the_demo_sample_ends_with_zero_mismatches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tidemill("demo", "--sample", "--seeds", "1", folder=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert last_line(run.stdout).startswith("0 mismatches in ")
    assert int(last_line(run.stdout).split()[3].replace(",", "")) > 50_000
    assert "of them rejected" in run.stdout
    assert "by the plain-Python oracle" in run.stdout
    root = tmp_path / "demo"
    assert (root / "report.html").stat().st_size > 10_000
    summary = json.loads((root / "summary.json").read_text())
    assert summary["stream"]["predictions"] == summary["stream"]["requests"] > 1_000
    assert summary["verify"]["mismatches"] == 0
    assert summary["train"]["evaluation"]["model"]["seeds"] == [1]
    assert other_times(run.stdout + run.stderr) == []
    # `tidemill report` writes the same page again.
    page = (root / "report.html").read_bytes()
    (root / "report.html").unlink()
    with pytest.raises(SystemExit) as left:
        main(["report", "--config", str(_flights()), "--root", str(root)])
    assert left.value.code == 0
    assert (root / "report.html").read_bytes() == page
    # Damage a prediction: `verify` must find it.
    path = sorted((stream_of(root) / "predictions").glob("*.parquet"))[0]
    table = pq.read_table(path)
    column = next(name for name in table.column_names if "__" in name and "mean" in name)
    values = table.column(column).to_pylist()
    values[0] = 1e9 if values[0] is None else values[0] + 1
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, [values]), path)
    with pytest.raises(SystemExit) as left:
        main(["verify", "--sample", "100", "--config", str(_flights()), "--root", str(root)])
    printed = capsys.readouterr()
    assert left.value.code == 1, printed.out + printed.err
    assert not last_line(printed.out).startswith("0 mismatches in ")
    found = json.loads((root / "summary.json").read_text())["verify"]
    # The oracle's sample may hold the damaged prediction too.
    assert found["feature_mismatches"] == 1
    assert found["mismatches"] == 1 + found["oracle_mismatches"] <= 2


def _flights() -> Path:
    import tidemill.examples.flights

    return Path(tidemill.examples.flights.__file__).parent / "tidemill.yaml"
