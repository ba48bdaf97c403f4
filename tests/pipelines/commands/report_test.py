"""`tidemill report` writes the page of any root: whichever stages have run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.commands.faults_test import PARCELS_YAML
from tests.pipelines.report.page_test import Page, evaluation, write_bundle
from tests.support.command_runs import Run, arguments, without_a_model
from tests.support.folders import stream_of
from tests.support.proof_run import rides_yaml, write_sources
from tests.support.times import other_times
from tidemill.pipelines.run.summary import read_summary, write_summary


def page(root: Path) -> Page:
    return Page((root / "report.html").read_text())


@pytest.fixture
def parcels(tmp_path: Path) -> Path:
    (tmp_path / "tidemill.yaml").write_text(PARCELS_YAML)
    return tmp_path


@pytest.fixture
def rides(tmp_path: Path) -> Path:
    write_sources(tmp_path)
    (tmp_path / "tidemill.yaml").write_text(rides_yaml())
    return tmp_path


def test_after_a_backfill_only(rides: Path, run: Run) -> None:
    assert run(*arguments("backfill", rides)).status == 0
    ended = run(*arguments("report", rides))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"report: {rides / 'run' / 'report.html'}\n"
    shown = page(rides / "run")
    assert shown.row("rides")[1] == "820"
    assert "There are no predictions yet; run `tidemill stream`" in shown.text.replace(
        " tidemill stream ", " `tidemill stream`"
    )
    assert other_times(shown.text) == []


def test_after_training(parcels: Path, run: Run) -> None:
    root = parcels / "run"
    version = write_bundle(root, evaluation())
    write_summary(root, "train", {"evaluation": evaluation().to_json(), "seconds": 1.0})
    assert run(*arguments("report", parcels)).status == 0
    shown = page(root)
    assert version in shown.text
    assert "rate by size" in shown.text
    assert other_times(shown.text) == []


def test_a_bundle_without_figures_has_a_report(parcels: Path, run: Run) -> None:
    version = write_bundle(parcels / "run", evaluation())
    assert run(*arguments("report", parcels)).status == 0
    assert version in page(parcels / "run").text


def test_after_a_stream_and_again_after_verify(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the page is of what the root holds now."""
    without_a_model(monkeypatch)
    root = project / "run"
    # The record of a request that the stream answered, which the root has for other tests.
    next((stream_of(root) / "rejected_by_stream").glob("00001-0*")).unlink()
    assert run(*arguments("report", project)).status == 0
    before = page(root)
    assert before.row("by_driver")[1].startswith("2026-01-03T11:5")
    assert run(*arguments("verify", project)).status == 0
    assert run(*arguments("report", project)).status == 0
    after = page(root)
    assert "0 mismatches in" in after.text
    assert "0 mismatches in" not in before.text
    assert other_times(after.text) == []
    once = (root / "report.html").read_bytes()
    assert run(*arguments("report", project)).status == 0
    assert (root / "report.html").read_bytes() == once


def test_another_root_is_reported_with_root(project: Path, run: Run) -> None:
    there = project / "run"
    moved = there.rename(project / "elsewhere")
    assert run(*arguments("report", project, root=moved)).status == 0
    assert (moved / "report.html").exists()
    assert not there.exists()


def test_a_root_without_anything_is_refused(rides: Path, run: Run) -> None:
    """And nothing is made, also where the folder is missing."""
    root = rides / "run"
    run(*arguments("report", rides)).is_explained(
        f"{root} holds nothing to report", "run `tidemill backfill`"
    )
    assert not root.exists()
    root.mkdir()
    run(*arguments("report", rides)).is_explained("holds nothing to report")
    assert list(root.iterdir()) == []


def test_a_damaged_summary_is_named(project: Path, run: Run) -> None:
    path = project / "run" / "summary.json"
    assert read_summary(project / "run")
    path.write_text("{")
    run(*arguments("report", project)).is_explained(str(path), "is damaged")
