"""Demo: the whole loop, from raw files to proven predictions, on one machine without servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipelines.backfill import backfill
from pipelines.configuration import Configuration
from pipelines.progress import Progress
from pipelines.report import write_report
from pipelines.run_record import remember, sampled
from pipelines.stream import stream
from pipelines.summary import write_summary
from pipelines.train import train
from pipelines.verify import verify


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
        sample: Use the configuration's sample.
        speed: Times real time for the stream; None for as fast as possible.
        engine: The stream's engine; None for the configured one.

    Returns:
        What each step returned, and the seconds it took.
    """
    remember(config, sample)
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
