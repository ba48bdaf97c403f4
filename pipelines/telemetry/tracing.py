"""Traces of a stream with OpenTelemetry: an extra, off unless the configuration names a collector.

Spans are ``segment``, and within a process ``operate``, ``publish`` and ``score``, one for each
bundle of a shard or of requests, and ``savepoint``. Without tracing `span` costs a look at a
variable.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.telemetry.run_id import RUN_ID

_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

_tracers: Final[list[Any]] = []


@contextmanager
def tracing(endpoint: str | None, project: str) -> Iterator[None]:
    """Send spans to a collector while the block runs; what is left is sent when it ends.

    Args:
        endpoint: The URL of an OTLP collector; None for no tracing.
        project: The name of the project.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield
        return
    try:
        module = importlib.import_module(_EXPORTER)
    except ImportError as error:
        raise ConfigurationError(
            f"tracing.endpoint needs the packages of OpenTelemetry ({error}): install them with "
            "`pip install 'tidemill[tracing]'`, or remove the section"
        ) from error
    exporter = module.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    with exporting(exporter, project):
        yield


@contextmanager
def exporting(exporter: Any, project: str) -> Iterator[None]:
    """Give spans to an exporter of OpenTelemetry while the block runs.

    Args:
        exporter: A ``SpanExporter``.
        project: The name of the project.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.name": "tidemill", "service.instance.id": RUN_ID, "project": project}
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("tidemill")
    _tracers.append(tracer)
    try:
        yield
    finally:
        _tracers.remove(tracer)
        provider.shutdown()


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[Any]:
    """Return a span for a block; nothing without tracing.

    Args:
        name: What the block does.
        **attributes: What it does it with.
    """
    if not _tracers:
        return nullcontext()
    found: AbstractContextManager[Any] = _tracers[-1].start_as_current_span(
        name, attributes=attributes
    )
    return found
