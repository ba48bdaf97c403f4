"""What the publishing stage reports: how long writes take, and how fresh values are then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tidemill.features.contract import SECOND
from tidemill.features.kernel import hashing
from tidemill.pipelines.stream.wire_format import Published
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.stage_figures import StageFigures
from tidemill.pipelines.telemetry.tracing import span


@contextmanager
def storing(figures: StageFigures, releases: Iterable[Published]) -> Iterator[None]:
    """Report the write to the online store that the block makes.

    Rows that repeat earlier ones, and those of a whole shard, are old on purpose: they do not count
    as fresh or stale.

    Args:
        figures: The figures of this process.
        releases: What is written.
    """
    rows = sum(one.rows.num_rows for one in releases)
    began = time.perf_counter()
    with span("publish", rows=rows):
        yield
    figures.observe(metrics.STORE_WRITE, time.perf_counter() - began)
    if rows:
        figures.observe(metrics.BATCH, rows, "publish")
    now_us = time.time_ns() // 1_000
    for one in releases:
        if one.is_news and one.rows.num_rows:
            figures.add(metrics.PUBLICATIONS, one.rows.num_rows, one.view)
        if one.is_news and one.mark_before is not None:
            held = hashing.bits(one.rows.column("event_timestamp"))
            figures.observe(metrics.TO_STORE, (now_us - held) / SECOND, one.view)
