"""Traces: an extra that costs nothing when it is off, and is refused by name when it is missing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.telemetry.run_id import RUN_ID
from tidemill.pipelines.telemetry.tracing import exporting, span, tracing


class Collected(SpanExporter):
    """Keeps spans, as a collector does."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


def operate() -> None:
    with span("operate", view="by_card", shard=1):
        pass


def test_spans_reach_the_exporter_before_the_block_ends() -> None:
    collected = Collected()
    with exporting(collected, "payments"):
        with span("segment", number=2), span("savepoint", number=2):
            pass
        thread = threading.Thread(target=operate)
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="broken"), span("score", requests=3):
            raise ValueError("broken")
    savepoint, segment, in_thread, score = collected.spans
    names = [one.name for one in collected.spans]
    assert names == ["savepoint", "segment", "operate", "score"]
    assert in_thread.parent is None
    assert savepoint.parent is not None
    assert savepoint.parent.span_id == segment.context.span_id
    assert dict(score.attributes or {}) == {"requests": 3}
    assert not score.status.is_ok
    assert segment.resource.attributes["service.instance.id"] == RUN_ID
    assert segment.resource.attributes["project"] == "payments"


def test_without_tracing_there_are_no_spans() -> None:
    with tracing(None, "payments"), span("segment") as found:
        assert found is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'tidemill\[tracing\]'"),
        tracing("http://localhost:4318", "payments"),
    ):
        raise AssertionError("it is not installed")
