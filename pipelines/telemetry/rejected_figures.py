"""Counting rejected records, and warning of them at once."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.events import SAY_EVERY_S, RareWarning, log_event
from tidemill.pipelines.telemetry.stage_figures import FiguresPlace, StageFigures

_log: Final = logging.getLogger(__name__)
_warning: Final = RareWarning()


def report_rejected(
    figures: StageFigures, records: pa.RecordBatch, warning: RareWarning = _warning
) -> None:
    """Count rejected records by source, stage and reason; log them, at most every ten seconds.

    Args:
        figures: The figures of this process.
        records: Rejected records (`features.rows.rejected.SCHEMA`).
        warning: How often it is logged.
    """
    if not records.num_rows:
        return
    names = ("stream", "stage", "reason")
    counted = pa.Table.from_batches([records]).group_by(list(names)).aggregate([([], "count_all")])
    by_source: dict[str, Counter[str]] = {}
    for row in counted.to_pylist():
        count = row["count_all"]
        figures.add(metrics.ROWS_REJECTED, count, *(row[name] for name in names))
        by_source.setdefault(row["stream"], Counter())[row["reason"]] += count
    for source, reasons in by_source.items():
        if (due := warning.due(source, reasons.total())) is None:
            continue
        last = _last_of(records, source)
        what = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(3))
        log_event(
            _log,
            "rejected",
            f"{due:,} record{'s' * (due > 1)} of {source!r} rejected (the newest: {what}; such as "
            f"{last['origin']}: {last['detail']}); said at most every {SAY_EVERY_S:g} s",
            level=logging.WARNING,
            source=source,
            count=due,
            reasons=dict(reasons),
            example=last,
        )


def _last_of(records: pa.RecordBatch, source: str) -> dict[str, str]:
    place = records.column("stream").to_pylist().index(source)
    names = ("stage", "reason", "origin", "detail")
    return {name: str(records.column(name)[place])[:500] for name in names}


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class CountRejected(beam.DoFn):
    """Counts the rejected records that pass.

    Args:
        figures: Where the stage reports.
    """

    def __init__(self, figures: FiguresPlace) -> None:
        self._figures = figures

    def process(self, element: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Count the records of a batch, and pass it on."""
        report_rejected(self._figures.here(), element)
        return [element]
