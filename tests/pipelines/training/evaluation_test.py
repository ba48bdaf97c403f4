from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidemill.features.errors import InputError
from tidemill.pipelines.training.evaluation import (
    RATE_PRIOR_ROWS,
    CalibrationBin,
    Effect,
    Evaluation,
    Metrics,
    Runs,
    calibration,
    measure,
    permutation_effects,
    rate_scores,
    roc_points,
)


def test_metrics_of_a_case_worked_by_hand() -> None:
    found = measure(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.8, 0.4, 0.3, 0.1]))
    assert found.rows == 4
    assert found.positive_rate == 0.5
    # Pairs (positive, negative): 0.8 > 0.4, 0.8 > 0.1, 0.3 < 0.4, 0.3 > 0.1.
    assert found.auc == 0.75
    loss = -(math.log(0.8) + math.log(0.6) + math.log(0.3) + math.log(0.9)) / 4
    assert found.log_loss == pytest.approx(loss)
    assert found.brier == pytest.approx((0.04 + 0.16 + 0.49 + 0.01) / 4)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"scores must be probabilities, found .*nan"):
        measure(np.array([0.0, 1.0]), np.array([0.5, np.nan]))
    with pytest.raises(InputError, match="labels must be 0 or 1"):
        measure(np.array([0.0, 2.0]), np.array([0.5, 0.5]))
    with pytest.raises(InputError, match="all 2 rows to measure have the label 1"):
        measure(np.ones(2), np.array([0.5, 0.5]))
    with pytest.raises(InputError, match="2 labels and 1 scores"):
        measure(np.ones(2), np.array([0.5]))


def test_calibration_bins_hold_every_row_and_one_is_in_the_last() -> None:
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    found = calibration(labels, np.array([0.05, 0.1, 1.0, 0.9375]), bins=10)
    assert found == (
        CalibrationBin(0.0, 0.1, 1, 0.05, 0.0),
        CalibrationBin(0.1, 0.2, 1, 0.1, 1.0),
        CalibrationBin(0.9, 1.0, 2, 0.96875, 0.5),
    )


def test_roc_runs_from_corner_to_corner() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(5000) < 0.3).astype(float)
    points = roc_points(labels, random.random(5000), points=50)
    assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert len(points) <= 50


def _groups(pairs: Sequence[tuple[str | None, int]]) -> pa.Table:
    return pa.table(
        {"carrier": pa.array([p[0] for p in pairs]), "hour": pa.array([p[1] for p in pairs])}
    )


def test_rates_lean_on_the_coarser_group_and_fall_back_to_it() -> None:
    train = _groups([("a", 1)] * 30 + [("a", 2)] * 10 + [("b", 1)] * 60)
    labels = np.array([1.0] * 30 + [0.0] * 10 + [0.0] * 60)
    overall = 30 / 100
    prior = RATE_PRIOR_ROWS
    a = (30 + prior * overall) / (40 + prior)
    b = (0 + prior * overall) / (60 + prior)
    evaluate = _groups([("a", 1), ("a", 2), ("a", 9), ("b", 2), ("z", 1), (None, 1)])
    found = rate_scores(("carrier", "hour"), train, labels, evaluate)
    expected = [(30 + prior * a) / (30 + prior), prior * a / (10 + prior), a, b, overall, overall]
    np.testing.assert_allclose(found, expected)


def test_null_is_a_group_of_its_own() -> None:
    train = _groups([(None, 1)] * 50 + [("a", 1)] * 50)
    labels = np.array([1.0] * 50 + [0.0] * 50)
    found = rate_scores(("carrier",), train, labels, _groups([(None, 1), ("a", 1)]))
    assert found[0] > 0.8
    assert found[1] < 0.2


def test_without_groups_the_rate_is_the_overall_one() -> None:
    train = _groups([("a", 1)] * 4)
    found = rate_scores((), train, np.array([1.0, 0.0, 0.0, 0.0]), _groups([("b", 2)] * 2))
    assert found.tolist() == [0.25, 0.25]


def test_rate_baseline_names_a_missing_column() -> None:
    train = _groups([("a", 1)])
    with pytest.raises(InputError, match="no column 'hours'; did you mean 'hour'"):
        rate_scores(("hours",), train, np.ones(1), train)


def test_the_column_that_decides_has_the_largest_effect_and_noise_has_none() -> None:
    random = np.random.default_rng(0)
    x = random.random(4000)
    table = pa.table({"noise": random.random(4000), "x": x})
    labels = (random.random(4000) < x).astype(float)
    done: list[None] = []

    def effects(seed: int) -> Any:
        return permutation_effects(
            lambda columns: columns["x"].to_numpy() * 0.98 + 0.01,
            table,
            labels,
            ("noise", "x"),
            sample_rows=2000,
            seed=seed,
            on_column=lambda: done.append(None),
        )

    found = effects(1)
    assert [e.name for e in found] == ["x", "noise"]
    assert found[0].log_loss_increase > 0.1
    assert found[1].log_loss_increase == 0.0
    assert effects(1) == found
    assert len(done) == 2 * 2


def _runs(name: str, *pairs: tuple[float, float]) -> Runs:
    metrics = tuple(Metrics(10, 0.5, loss, auc, 0.2) for loss, auc in pairs)
    return Runs(name, tuple(range(len(pairs))) if len(pairs) > 1 else (), metrics)


def _evaluation(*baselines: Runs) -> Evaluation:
    return Evaluation(
        model=_runs("model", (0.40, 0.80), (0.42, 0.79)),
        baselines=baselines,
        chosen_seed=0,
        calibration=(CalibrationBin(0.0, 0.1, 3, 0.05, 1 / 3),),
        roc=((0.0, 0.0), (1.0, 1.0)),
        effects=(Effect("x", 0.1),),
    )


def test_a_model_beats_a_baseline_only_with_its_worst_seed_on_both_measures() -> None:
    assert _evaluation(_runs("weak", (0.50, 0.70))).beats_baselines
    better_on_one_loss = _evaluation(_runs("b", (0.50, 0.70), (0.41, 0.70)))
    assert not better_on_one_loss.beats_baselines
    better_on_one_area = _evaluation(_runs("b", (0.50, 0.795), (0.50, 0.70)))
    assert not better_on_one_area.beats_baselines
    assert not _evaluation(_runs("equal", (0.42, 0.70))).beats_baselines
    verdict = better_on_one_loss.verdicts()[0]
    assert verdict.log_loss_margin == pytest.approx(-0.01)
    assert verdict.auc_margin == pytest.approx(0.09)


def test_mean_and_spread_over_seeds() -> None:
    runs = _evaluation().model
    assert runs.mean("log_loss") == pytest.approx(0.41)
    assert runs.spread("log_loss") == pytest.approx(0.02 / math.sqrt(2))
    assert _runs("one", (0.5, 0.5)).spread("auc") == 0.0


def test_an_evaluation_survives_json() -> None:
    evaluation = _evaluation(_runs("b", (0.5, 0.7)))
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation
