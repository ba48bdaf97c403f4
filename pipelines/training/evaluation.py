"""How good a model is, compared with baselines.

scikit-learn computes losses, areas and Brier scores. A model is trained with several seeds, and
each run is compared with every run of every baseline; no seed is chosen for its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn import metrics as sklearn_metrics

from tidemill.features.errors import InputError, nearest

FloatArray = npt.NDArray[np.floating[Any]]

RATE_PRIOR_ROWS: Final = 20.0
"""The weight of the coarser group's rate in a group's rate, in rows."""


@dataclass(frozen=True)
class Metrics:
    """The quality of a set of scores.

    Attributes:
        rows: How many were scored.
        positive_rate: The share of them whose label is 1.
        log_loss: Mean negative log likelihood, natural logarithm; less is better.
        auc: Area under the ROC curve; more is better, 0.5 is chance.
        brier: Mean squared error of the probability; less is better.
    """

    rows: int
    positive_rate: float
    log_loss: float
    auc: float
    brier: float


def measure(labels: FloatArray, scores: FloatArray) -> Metrics:
    """Measure scores.

    Args:
        labels: ``(rows,)``: 0 and 1, both of them present.
        scores: ``(rows,)``: probabilities.

    Raises:
        InputError: The lengths differ, a score is no probability, or the labels are not 0 and 1.
    """
    labels, scores = _checked(labels, scores)
    if (positive := float(labels.mean())) in (0.0, 1.0):
        raise InputError(
            f"all {len(labels)} rows to measure have the label {positive:g}; no area under a ROC "
            "curve can be computed: take a longer split"
        )
    return Metrics(
        rows=len(labels),
        positive_rate=positive,
        log_loss=float(sklearn_metrics.log_loss(labels, scores, labels=[0.0, 1.0])),
        auc=float(sklearn_metrics.roc_auc_score(labels, scores)),
        brier=float(sklearn_metrics.brier_score_loss(labels, scores)),
    )


def _checked(
    labels: FloatArray, scores: FloatArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    labels64 = np.asarray(labels, np.float64)
    scores64 = np.asarray(scores, np.float64)
    if len(labels) != len(scores64) or len(labels64) == 0:
        raise InputError(
            f"{len(labels64)} labels and {len(scores64)} scores; need as many, and some"
        )
    if not np.isin(labels64, (0.0, 1.0)).all():
        odd = labels64[~np.isin(labels64, (0.0, 1.0))][0]
        raise InputError(f"labels must be 0 or 1, found {odd:g}; give the label a condition")
    if not ((scores64 >= 0.0) & (scores64 <= 1.0)).all():
        odd = scores64[~((scores64 >= 0.0) & (scores64 <= 1.0))][0]
        raise InputError(
            f"scores must be probabilities, found {odd:g}; end the model in a sigmoid, and fill "
            "nulls in preprocessing_fn"
        )
    return labels64, scores64


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with scores in ``[low, high)``; the last bin includes 1.

    Attributes:
        low: The lowest score.
        high: The bin's end.
        rows: How many rows are in it, at least one.
        mean_score: Their mean score.
        rate: The share of them whose label is 1.
    """

    low: float
    high: float
    rows: int
    mean_score: float
    rate: float


def calibration(
    labels: FloatArray, scores: FloatArray, bins: int = 10
) -> tuple[CalibrationBin, ...]:
    """Compare scores with labels in bins of equal width; leave out empty bins.

    Args:
        labels: ``(rows,)``: 0 and 1.
        scores: ``(rows,)``: probabilities.
        bins: How many bins.
    """
    labels, scores = _checked(labels, scores)
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index, minlength=bins)
    score_sums = np.bincount(index, scores, bins)
    label_sums = np.bincount(index, labels, bins)
    return tuple(
        CalibrationBin(
            low=i / bins,
            high=(i + 1) / bins,
            rows=int(rows[i]),
            mean_score=float(score_sums[i] / rows[i]),
            rate=float(label_sums[i] / rows[i]),
        )
        for i in range(bins)
        if rows[i]
    )


def roc_points(
    labels: FloatArray, scores: FloatArray, points: int = 200
) -> tuple[tuple[float, float], ...]:
    """Return (false positive rate, true positive rate) pairs along the ROC curve, for a picture."""
    labels, scores = _checked(labels, scores)
    false_rate, true_rate, _ = sklearn_metrics.roc_curve(labels, scores)
    pick = np.unique(np.linspace(0, len(false_rate) - 1, points).round().astype(np.int64))
    return tuple((float(false_rate[i]), float(true_rate[i])) for i in pick)


def rate_scores(
    groups: Sequence[str], train: pa.Table, labels: FloatArray, evaluate: pa.Table
) -> npt.NDArray[np.float64]:
    """Score rows by the rate of their group in the training split: a baseline without a model.

    To the rate of ``("carrier", "hour")`` the carrier's rate is added with the weight of
    `RATE_PRIOR_ROWS` rows, and to the carrier's rate the overall rate. So a small group's rate is
    close to that of the coarser group, and an unseen group has the coarser group's rate. Null is a
    value like any other.

    Args:
        groups: Columns, the coarsest first; without any, all scores are the overall rate.
        train: The training split, with the columns.
        labels: ``(train rows,)``: its labels, 0 and 1.
        evaluate: The rows to score, with the columns.

    Returns:
        float64, ``(evaluate rows,)``.

    Raises:
        InputError: A column is missing, or there are no training rows.
    """
    labels = np.asarray(labels, np.float64)
    if len(labels) == 0 or len(labels) != train.num_rows:
        raise InputError(f"{train.num_rows} training rows with {len(labels)} labels; need as many")
    rates = np.array([labels.mean()])
    train_group = np.zeros(train.num_rows, np.int64)
    group = np.zeros(evaluate.num_rows, np.int64)
    scores = np.full(evaluate.num_rows, rates[0])
    for name in groups:
        for table in (train, evaluate):
            if name not in table.column_names:
                raise InputError(
                    f"rate baseline: no column {name!r}; {nearest(name, table.column_names)}"
                )
        values = pc.unique(train[name])
        codes = _codes(train[name], values)
        # One number for each pair of coarser group and value in the training split.
        pairs, train_next = np.unique(train_group * len(values) + codes, return_inverse=True)
        rows = np.bincount(train_next)
        prior = rates[pairs // len(values)]
        rates = (np.bincount(train_next, labels) + RATE_PRIOR_ROWS * prior) / (
            rows + RATE_PRIOR_ROWS
        )
        codes = _codes(evaluate[name], values)
        wanted = group * len(values) + codes
        place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        seen = (group >= 0) & (codes >= 0) & (pairs[place] == wanted)
        scores[seen] = rates[place[seen]]
        group = np.where(seen, place, -1)
        train_group = train_next
    return scores


def _codes(column: pa.ChunkedArray, values: pa.Array) -> npt.NDArray[np.int64]:
    """Return the index of each row's value among ``values`` (null equals null), or -1."""
    codes: npt.NDArray[np.int64] = (
        pc.fill_null(pc.index_in(column, value_set=values), -1)
        .to_numpy(zero_copy_only=False)
        .astype(np.int64)
    )
    return codes


@dataclass(frozen=True)
class Effect:
    """The effect of a column: the increase in log loss when it is shuffled."""

    name: str
    log_loss_increase: float


def permutation_effects(
    predict: Callable[[pa.Table], FloatArray],
    columns: pa.Table,
    labels: FloatArray,
    names: Sequence[str],
    *,
    sample_rows: int = 5000,
    seed: int = 0,
    on_column: Callable[[], None] = lambda: None,
) -> tuple[Effect, ...]:
    """Measure each column's effect by shuffling it (Breiman, "Random Forests", 2001, section 10).

    Columns with the same information share their effect, so the effect of each may be small.

    Args:
        predict: Takes model inputs, returns probabilities, ``(rows,)``.
        columns: The model inputs.
        labels: ``(rows,)``: 0 and 1.
        names: The columns to shuffle.
        sample_rows: The size of the sample of rows.
        seed: The seed of the sample and of the shuffles.
        on_column: Called after each column.

    Returns:
        One effect per name, the largest first.
    """
    random = np.random.default_rng(seed)
    rows = min(sample_rows, columns.num_rows)
    chosen = np.sort(random.choice(columns.num_rows, rows, replace=False))
    sample = columns.take(pa.array(chosen))
    truth = np.asarray(labels, np.float64)[chosen]

    def loss(table: pa.Table) -> float:
        checked = _checked(truth, predict(table))
        return float(sklearn_metrics.log_loss(*checked, labels=[0.0, 1.0]))

    base = loss(sample)
    effects = []
    for name in names:
        index = sample.schema.get_field_index(name)
        shuffled = sample[name].take(pa.array(random.permutation(rows)))
        effects.append(Effect(name, loss(sample.set_column(index, name, shuffled)) - base))
        on_column()
    return tuple(sorted(effects, key=lambda e: (-e.log_loss_increase, e.name)))


@dataclass(frozen=True)
class Runs:
    """The runs of one kind of model: one per seed, or one if it uses no random numbers.

    Attributes:
        name: The kind of model.
        seeds: The seeds, as declared; empty if it uses no random numbers.
        metrics: One per run, in the order of the seeds.
    """

    name: str
    seeds: tuple[int, ...]
    metrics: tuple[Metrics, ...]

    def values(self, metric: str) -> npt.NDArray[np.float64]:
        """Return a metric over the runs, float64 ``(runs,)``."""
        return np.array([getattr(m, metric) for m in self.metrics], np.float64)

    def mean(self, metric: str) -> float:
        """Return a metric's mean over the runs."""
        return float(self.values(metric).mean())

    def spread(self, metric: str) -> float:
        """Return a metric's standard deviation (ddof 1) over the runs; 0 for one run."""
        return float(self.values(metric).std(ddof=1)) if len(self.metrics) > 1 else 0.0


@dataclass(frozen=True)
class BaselineVerdict:
    """Whether every run of a model beats every run of a baseline.

    Attributes:
        baseline: The baseline's name.
        log_loss_margin: The baseline's least log loss minus the model's greatest.
        auc_margin: The model's least area minus the baseline's greatest.
    """

    baseline: str
    log_loss_margin: float
    auc_margin: float

    @property
    def beats(self) -> bool:
        """Whether both margins are above zero."""
        return self.log_loss_margin > 0 and self.auc_margin > 0


@dataclass(frozen=True)
class Evaluation:
    """A model compared with its baselines on the evaluation split.

    Attributes:
        model: The runs of the model with windowed features.
        baselines: The runs of each baseline.
        chosen_seed: The seed of the model in the bundle: the first declared, never the best.
        calibration: The chosen model's calibration.
        roc: The points of the chosen model's ROC curve.
        effects: The effects of the chosen model's inputs, the largest first.
    """

    model: Runs
    baselines: tuple[Runs, ...]
    chosen_seed: int
    calibration: tuple[CalibrationBin, ...]
    roc: tuple[tuple[float, float], ...]
    effects: tuple[Effect, ...]

    def verdicts(self) -> tuple[BaselineVerdict, ...]:
        """Compare the model's worst run with the best run of each baseline."""
        return tuple(
            BaselineVerdict(
                baseline=b.name,
                log_loss_margin=float(
                    b.values("log_loss").min() - self.model.values("log_loss").max()
                ),
                auc_margin=float(self.model.values("auc").min() - b.values("auc").max()),
            )
            for b in self.baselines
        )

    @property
    def beats_baselines(self) -> bool:
        """Whether every seed beats every baseline on log loss and on AUC."""
        return all(verdict.beats for verdict in self.verdicts())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        content = asdict(self)
        content["verdicts"] = [{**asdict(v), "beats": v.beats} for v in self.verdicts()]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Read the result of `to_json`; the verdicts are computed again."""
        return cls(
            model=_runs(content["model"]),
            baselines=tuple(_runs(b) for b in content["baselines"]),
            chosen_seed=content["chosen_seed"],
            calibration=tuple(CalibrationBin(**b) for b in content["calibration"]),
            roc=tuple((x, y) for x, y in content["roc"]),
            effects=tuple(Effect(**e) for e in content["effects"]),
        )


def _runs(content: Mapping[str, Any]) -> Runs:
    return Runs(
        content["name"],
        tuple(content["seeds"]),
        tuple(Metrics(**m) for m in content["metrics"]),
    )
