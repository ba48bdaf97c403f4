"""What the oracle recomputes: a sample by predicted cost, and a deadline as a net."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.proof_run import (
    PROJECT,
    Server,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify import prove_stream as module
from tidemill.pipelines.verify.compare_oracle import (
    MOST_STEPS,
    Sample,
    affordable,
    check_with_oracle,
)
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.verify import verify

FEATURES = sum(len(view.features) for view in PROJECT.views)
Compared = tuple[list[Any], Any, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Verdicts, evidence and predictions of a run without faults."""
    folder = tmp_path_factory.mktemp("oracle")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    Server(config).serve()
    taken: list[Compared] = []
    check = module.check_with_oracle

    def kept(verdicts: Any, evidence: Any, served: Any, *arguments: Any, **options: Any) -> Any:
        taken.append((verdicts, evidence, served))
        return check(verdicts, evidence, served, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_with_oracle", kept)
        score_without_models(patch)
        assert verify(config, QuietProgress(), sample=5)["mismatches"] == 0
    return taken[0]


def run(compared: Compared, sample: Sample, **options: Any) -> tuple[Any, Findings, int]:
    findings = Findings()
    with QuietProgress().stage("oracle", sample.steps, "steps") as stage:
        advanced: list[int] = []
        stage.advance = advanced.append  # type: ignore[method-assign]
        found = check_with_oracle(*compared, sample, findings, stage, **options)
    return found, findings, sum(advanced)


def test_the_predicted_cost_is_the_cost(compared: Compared) -> None:
    rows = np.arange(0, compared[2].count, 2)
    sample = affordable(compared[0], rows)
    assert sample.rows.tolist() == rows.tolist()
    assert sample.costly == 0
    found, findings, steps = run(compared, sample)
    assert findings.count == 0
    assert found.requests == len(rows)
    assert found.values == len(rows) * len(PROJECT.columns)
    assert steps == sample.steps


def test_what_costs_too_much_is_left_out_and_always_the_same(compared: Compared) -> None:
    rows = np.arange(compared[2].count)
    whole = affordable(compared[0], rows)
    half = affordable(compared[0], rows, whole.steps // 2)
    assert 0 < len(half.rows) < len(rows)
    assert half.costly == len(rows) - len(half.rows)
    assert half.steps <= whole.steps // 2 < MOST_STEPS
    again = affordable(compared[0], rows, whole.steps // 2)
    assert again.rows.tolist() == half.rows.tolist()
    # Unknown keys cost their features alone, so something fits into very little.
    assert affordable(compared[0], rows, FEATURES).steps <= FEATURES
    assert affordable(compared[0], rows, 0).costly == len(rows)


def test_the_deadline_ends_between_keys_and_says_what_it_has_not_reached(
    compared: Compared,
) -> None:
    sample = affordable(compared[0], np.arange(compared[2].count))
    ticks = itertools.count()
    found, findings, _ = run(compared, sample, deadline_s=3, clock=lambda: float(next(ticks)))
    assert findings.count == 0
    assert 0 < found.values < len(sample.rows) * len(PROJECT.columns)
    # Three keys of the first view were reached, and none of the second.
    assert found.requests == 0
    found, _, _ = run(compared, sample, deadline_s=0, clock=lambda: float(next(ticks)))
    assert found == (0, 0)


def test_figures_say_what_was_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources(tmp_path)
    config = configuration(tmp_path, tmp_path / "run")
    backfill(config, QuietProgress())
    Server(config).serve()
    score_without_models(monkeypatch)
    said: list[str] = []
    progress = QuietProgress()
    monkeypatch.setattr(progress, "say", said.append)
    figures = verify(config, progress, sample=30, deadline_s=0)
    assert (figures["oracle_requests"], figures["oracle_values"]) == (0, 0)
    assert (figures["oracle_not_reached"], figures["oracle_too_costly"]) == (30, 0)
    assert figures["mismatches"] == 0
    assert said[-1] == (
        "the oracle recomputed 0 of 30 sampled requests; 0 more cost too much, 30 did not fit in "
        "0 s"
    )
