"""The report of a run, ``root/report.html``: results, and how to read them.

Promises: the file refers to no other file or server, so it can be read offline; it shows the
figures of the stages and of the bundle, and computes only the quality of the streamed predictions;
and where something is missing (a stage that has not run, a project without a label) it says so.
Text from the user's data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.contract import write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, InputError
from tidemill.pipelines.config.configuration import Configuration, Splits
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.report.page_templates import page_template
from tidemill.pipelines.report.pictures import (
    QUANTILES,
    Curve,
    draw_calibration,
    draw_latency,
    draw_roc,
    write_ms,
)
from tidemill.pipelines.report.scores import (
    STREAMED,
    StreamedPredictions,
    StreamQuality,
    read_streamed,
    stream_quality,
)
from tidemill.pipelines.report.tables import (
    count_table,
    frontier_table,
    listed,
    mapping,
    number,
    proof_table,
    proof_verdict,
    reason_table,
    source_table,
    stage_table,
)
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.run.tables import Table, figure_tables, write_value
from tidemill.pipelines.training.evaluation import Evaluation, Metrics, Runs
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import current_bundle
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.generations.current import Current, find_current

EVALUATED: Final = "evaluation split"
_SHOWN_EFFECTS: Final = 15
_METRICS: Final = ("log_loss", "auc", "brier")


def write_report(config: Configuration, summary: Mapping[str, Any]) -> Path:
    """Write the report of a run.

    Args:
        config: The configuration; its root holds bundle, log and predictions.
        summary: The figures of each stage by its name (`pipelines.run.summary.read_summary`);
            entries that are not mappings are ignored.

    Returns:
        The file.
    """
    path = config.root / paths.REPORT
    with atomic_write(path) as unfinished:
        unfinished.write_text(render_report(config, summary), encoding="utf-8")
    return path


def report_of_root(config: Configuration) -> Path:
    """Write the report of what a root holds now.

    Returns:
        The file.

    Raises:
        InputError: The root holds nothing that a report shows.
        DamagedFile: A file of the root is damaged.
    """
    root = config.root
    summary = read_summary(root)
    if not summary and find_current(root) is None and not (root / paths.BUNDLES).exists():
        raise InputError(
            f"{root} holds nothing to report: no figures ({paths.SUMMARY}), no build and no "
            "bundle; run `tidemill backfill`, or name another folder with --root"
        )
    return write_report(config, summary)


def render_report(config: Configuration, summary: Mapping[str, Any]) -> str:
    """Return the report as an HTML document; arguments as for `write_report`."""
    stages = {name: found for name, found in summary.items() if isinstance(found, Mapping)}
    stream, verify = mapping(stages, "stream"), mapping(stages, "verify")
    backfill = mapping(stages, "backfill")
    bundle, no_bundle = _bundle(config.root)
    evaluation = None if bundle is None else Evaluation.from_json(bundle.evaluation)
    # A root without a build has a report, too.
    current = config.pinned or find_current(config.root)
    streamed = None if current is None else read_streamed(current.stream_folder)
    outcome, no_outcome = _outcome(config.project, current, streamed)
    return page_template("report.html").render(
        project=config.project.name,
        verdict=proof_verdict(verify),
        first_mismatches=listed(verify.get("first_mismatches", ())),
        tiles=_tiles(stream, streamed, outcome),
        facts=_facts(config.splits, stream, bundle, streamed),
        no_bundle=no_bundle,
        evaluation=None if evaluation is None else _evaluation_table(evaluation),
        beats=None if evaluation is None else evaluation.beats_baselines,
        outcome=outcome,
        no_outcome=no_outcome,
        horizon="" if config.project.label is None else config.project.label.horizon,
        scores=_score_table(evaluation, outcome),
        **_curves(evaluation, outcome),
        effects=[] if evaluation is None else _bars(evaluation),
        other_effects=0 if evaluation is None else len(evaluation.effects) - _SHOWN_EFFECTS,
        stages=stage_table(stages, bundle),
        counts=count_table(stream),
        latency=_latency(streamed),
        quantiles={q: write_ms(took) for q, took in _quantiles(streamed).items()},
        speed=_speed(stream),
        frontiers=frontier_table(stream, config.splits.stream_until_us),
        sources=source_table(backfill),
        reasons=reason_table(backfill),
        proof=proof_table(verify),
        unanswered=[
            (name, table)
            for name in ("lost", "unfinished", "waiting")
            if (table := listed(verify.get(f"first_{name}", ()))) is not None
        ],
        late=listed(verify.get("first_late", ())),
        lost=[str(one["said"]) for one in verify.get("lost", ())],
        everything=list(_everything(stages)),
    )


def _bundle(root: Path) -> tuple[Bundle | None, str]:
    """Return the live bundle, or why there is none."""
    try:
        return Bundle.load(current_bundle(root)), ""
    except BundleError as error:
        return None, str(error)


def _outcome(
    project: Project, current: Current | None, streamed: StreamedPredictions | None
) -> tuple[StreamQuality | None, str]:
    """Return the quality of the predictions, or why it is unknown."""
    if current is None or streamed is None:
        return None, "There are no predictions yet; run `tidemill stream`."
    if project.label is None:
        return None, "This project has no label, so its predictions cannot be judged."
    try:
        return stream_quality(project, stream_log(current, project), streamed), ""
    except InputError as error:
        return None, str(error)


# --- headline ------------------------------------------------------------------------------------


def _tiles(
    stream: Mapping[str, Any], streamed: StreamedPredictions | None, outcome: StreamQuality | None
) -> list[tuple[str, str]]:
    """Return the main figures, each with its name."""
    tiles = []
    if streamed is not None:
        tiles.append((f"{streamed.rows.num_rows:,}", "predictions"))
    if outcome is not None and outcome.metrics is not None:
        tiles.append((f"{outcome.metrics.auc:.3f}", f"AUC, {STREAMED}"))
        tiles.append((f"{outcome.metrics.log_loss:.3f}", f"log loss, {STREAMED}"))
    if rate := number(stream, "rows_per_s"):
        tiles.append((f"{rate:,.0f}", "rows/s through the stream"))
    latency = _quantiles(streamed)
    if latency:
        tiles.append((write_ms(latency[50]), "median latency of the replay"))
    return tiles


def _facts(
    splits: Splits,
    stream: Mapping[str, Any],
    bundle: Bundle | None,
    streamed: StreamedPredictions | None,
) -> list[tuple[str, str]]:
    """Return splits, engine, bundle and versions of the run, by name."""
    facts = [
        ("Training split", f"requests before {write_instant(splits.train_until_us)}"),
        ("Evaluation split", _period(splits.train_until_us, splits.evaluate_until_us)),
        ("Streamed period", _period(splits.evaluate_until_us, splits.stream_until_us)),
    ]
    if engine := stream.get("engine"):
        why = f": {stream['why']}" if stream.get("why") else ""
        facts.append(("Engine", f"{engine}{why}"))
    if mode := stream.get("mode"):
        facts.append(("Mode", str(mode)))
    stamps = {} if streamed is None else streamed.stamps
    made = "" if bundle is None else f", made {bundle.created_at}"
    if bundle is not None:
        facts.append(("Bundle", bundle.version + made))
        if generation := bundle.lineage.get("generation"):
            facts.append(("Trained on", f"generation {generation}"))
        facts.append(("Feature-spec hash", bundle.feature_spec_hash))
    if (versions := stamps.get("bundle_version")) and (
        bundle is None or versions != (bundle.version,)
    ):
        facts.append(("Predicted with", f"bundle {', '.join(versions)}"))
    if stamps.get("tensorflow"):
        facts.append(("TensorFlow", ", ".join(stamps["tensorflow"])))
    if stamps.get("device"):
        xla = " with XLA" if stamps.get("xla") == ("True",) else ""
        facts.append(("Device", ", ".join(stamps["device"]) + xla))
    return facts


def _period(start_us: int, stop_us: int) -> str:
    return f"{write_instant(start_us)} to {write_instant(stop_us)}"


# --- quality -------------------------------------------------------------------------------------


def _evaluation_table(evaluation: Evaluation) -> Table:
    """Return a table of the model and its baselines, over all seeds."""
    rows = [_runs_row(evaluation.model, "the model")]
    for baseline, found in zip(evaluation.baselines, evaluation.verdicts(), strict=True):
        margins = f"by {found.log_loss_margin:.4f} log loss, {found.auc_margin:.4f} AUC"
        rows.append(_runs_row(baseline, f"{'yes' if found.beats else 'no'}, {margins}"))
    return Table(
        "",
        ("scores of", "seeds", "log loss", "AUC", "Brier", "beaten by the model?"),
        rows,
        frozenset((1, 2, 3, 4)),
    )


def _runs_row(runs: Runs, beaten: str) -> tuple[str, ...]:
    figures = (
        f"{runs.mean(m):.4f} ± {runs.spread(m):.4f}" if len(runs.metrics) > 1 else
        f"{runs.mean(m):.4f}"
        for m in _METRICS
    )  # fmt: skip
    return (runs.name, write_value(len(runs.seeds) or None), *figures, beaten)


def _score_table(evaluation: Evaluation | None, outcome: StreamQuality | None) -> Table | None:
    """Return a table of the model on the evaluation split and on the streamed period."""
    rows = []
    if evaluation is not None:
        chosen = evaluation.model.seeds.index(evaluation.chosen_seed)
        rows.append(_metrics_row(EVALUATED, evaluation.model.metrics[chosen]))
    if outcome is not None and outcome.metrics is not None:
        rows.append(_metrics_row(STREAMED, outcome.metrics))
    if not rows:
        return None
    columns = ("scores on", "labelled rows", "label is 1", "log loss", "AUC", "Brier")
    return Table("", columns, rows, frozenset(range(1, len(columns))))


def _metrics_row(name: str, metrics: Metrics) -> tuple[str, ...]:
    figures = (f"{getattr(metrics, m):.4f}" for m in _METRICS)
    return (name, f"{metrics.rows:,}", f"{metrics.positive_rate:.1%}", *figures)


def _curves(evaluation: Evaluation | None, outcome: StreamQuality | None) -> dict[str, Any]:
    """Return the pictures of calibration and ROC curve, and the table of the calibration."""
    curves = []
    if outcome is not None and outcome.curve is not None:
        curves.append(outcome.curve)
    if evaluation is not None:
        curves.append(Curve(EVALUATED, evaluation.calibration, evaluation.roc))
    with_bins = [curve for curve in curves if curve.calibration]
    with_roc = [curve for curve in curves if curve.roc]
    return {
        "calibration": draw_calibration(with_bins) if with_bins else "",
        "roc": draw_roc(with_roc) if with_roc else "",
        "bins": _bin_table(with_bins) if with_bins else None,
    }


def _bin_table(curves: Sequence[Curve]) -> Table:
    rows = [
        (
            curve.name,
            f"{b.low:.0%} to {b.high:.0%}",
            f"{b.rows:,}",
            f"{b.mean_score:.1%}",
            f"{b.rate:.1%}",
        )
        for curve in curves
        for b in curve.calibration
    ]
    columns = ("scores on", "prediction between", "rows", "mean prediction", "label is 1")
    return Table("", columns, rows, frozenset((1, 2, 3, 4)))


@dataclass(frozen=True)
class Bar:
    """A bar of the chart of effects.

    Attributes:
        name: The model input.
        value: Its effect as text.
        percent: The bar's length in percent; 0 for an effect of 0 or less.
    """

    name: str
    value: str
    percent: float


def _bars(evaluation: Evaluation) -> list[Bar]:
    shown = evaluation.effects[:_SHOWN_EFFECTS]
    most = max((effect.log_loss_increase for effect in shown), default=0.0)
    return [
        Bar(
            effect.name,
            f"{effect.log_loss_increase:+.5f}",
            round(max(effect.log_loss_increase, 0.0) / most * 100, 2) if most > 0 else 0.0,
        )
        for effect in shown
    ]


# --- throughput and freshness --------------------------------------------------------------------


def _quantiles(streamed: StreamedPredictions | None) -> dict[int, float]:
    """Return quantiles of the latency in milliseconds; empty if it is unknown."""
    import numpy as np

    took = () if streamed is None else streamed.latency_ms()
    return {q: float(np.percentile(took, q)) for q in QUANTILES} if len(took) else {}


def _latency(streamed: StreamedPredictions | None) -> str:
    """Return the picture of the latency; empty if it is unknown."""
    took = None if streamed is None else streamed.latency_ms()
    return "" if took is None or not len(took) else draw_latency(took)


def _speed(stream: Mapping[str, Any]) -> str:
    """Return a sentence about the speed of the replay; empty if it is unknown."""
    if "speed" not in stream:
        return ""
    speed = number(stream, "speed")
    if speed is None:
        return (
            "This replay ran as fast as it could, so rows waited in queues: the latency is that "
            "of a stream under full load."
        )
    return f"This replay ran at {speed:g} times real time."


def _everything(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Yield tables of all figures, except those of the evaluation, which the page shows above."""
    for stage, figures in stages.items():
        yield from figure_tables(stage, {k: v for k, v in figures.items() if k != "evaluation"})
