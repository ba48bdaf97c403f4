"""All stages in a row, from raw files to verified predictions, on one machine without servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.report.page import write_report
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.run_record import remember, sampled
from tidemill.pipelines.run.summary import write_summary
from tidemill.pipelines.run.tables import Table
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.training.evaluation import Evaluation, Runs
from tidemill.pipelines.training.train import check_trainable, train
from tidemill.pipelines.verify.verify import verify


def demo(
    config: Configuration,
    progress: Progress,
    sample: bool = False,
    speed: float | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Backfill, train, stream, verify, report.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        sample: Whether to use the configuration's sample.
        speed: How many times faster than real time the stream runs; None is as fast as it can.
        engine: The stream's engine; None is the configured one.

    Returns:
        The figures and the seconds of each step, by name, and the path of the report.

    Raises:
        DefinitionError: The project has no label or no model; nothing has been done.
    """
    check_trainable(config.project)
    remember(config.root, sample)
    if sample:
        config = sampled(config)
    summary: dict[str, Any] = {}
    steps: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("backfill", lambda: backfill(config, progress)),
        ("train", lambda: train(config, progress)),
        ("stream", lambda: stream(config, progress, speed=speed, engine=engine)),
        ("verify", lambda: verify(config, progress)),
    )
    for name, step in steps:
        began = time.perf_counter()
        result = step()
        summary[name] = {**result, "seconds": round(time.perf_counter() - began, 3)}
        write_summary(config.root, name, summary[name])
    summary["report"] = str(write_report(config, summary))
    return summary


def overview(summary: Mapping[str, Any]) -> Table:
    """Return a table with the time and the main figures of each step."""
    sources = summary["backfill"]["sources"].values()
    read = sum(source["read"] for source in sources)
    refused = sum(source["rejected"] for source in sources)
    stream_, proof = summary["stream"], summary["verify"]
    evaluation = Evaluation.from_json(summary["train"]["evaluation"])
    trained = "\n".join(map(_quality, (evaluation.model, *evaluation.baselines)))
    results = {
        "backfill": f"{read:,} rows read, {refused:,} of them rejected\n"
        f"{summary['backfill']['training']['rows']:,} requests with their features",
        "train": f"{trained}\n"
        f"beats both baselines: {'yes' if evaluation.beats_baselines else 'no'}",
        "stream": f"{stream_['why']}\n"
        f"{stream_['events']:,} events and {stream_['requests']:,} requests in, "
        f"{stream_['rejected']:,} rejected\n"
        f"{stream_['predictions']:,} predictions and {stream_['publications']:,} publications out",
        "verify": f"{proof['feature_mismatches']:,} mismatches in {proof['values']:,} values "
        f"({proof['predictions']:,} predictions x {proof['features']} features)\n"
        f"{proof['oracle_mismatches']:,} in {proof['oracle_values']:,} by the plain-Python oracle\n"
        f"{proof['store_mismatches']:,} in {proof['store_values']:,} read back from the store "
        f"({proof['store_entities']:,} entities)",
    }
    rows = []
    for step, text in results.items():
        first, *others = text.split("\n")
        rows.append((step, f"{summary[step]['seconds']:,.1f}", first))
        rows += [("", "", other) for other in others]
    return Table("summary", ("step", "seconds", "result"), rows, frozenset([1]))


def _quality(runs: Runs) -> str:
    seeds = f", mean of {len(runs.seeds)} seeds" if len(runs.seeds) > 1 else ""
    return f"{runs.name}: log loss {runs.mean('log_loss'):.4f}, AUC {runs.mean('auc'):.4f}{seeds}"
