"""How a stream shows itself, in the YAML file.

```yaml
metrics: {listen: "localhost:9464"}            # optional: serves /metrics and /healthz
logging: {format: json, level: info}           # optional: text (default) or json, and a level
tracing: {endpoint: "http://localhost:4318"}   # optional: spans to an OpenTelemetry collector
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.choices import LOG_FORMATS, LOG_LEVELS
from tidemill.pipelines.config.strict_yaml import Section, Value, or_null

T = TypeVar("T")

METRICS_KEYS: Final = ("listen",)
LOGGING_KEYS: Final = ("format", "level")
TRACING_KEYS: Final = ("endpoint",)
_HIGHEST_PORT: Final = 65_535


@dataclass(frozen=True)
class MetricsPage:
    """Where a stream that runs serves ``/metrics`` for Prometheus, and ``/healthz``.

    Attributes:
        listen: The host and the port, ``host:port``. Whoever can connect to it can read the
            figures; the host ``0.0.0.0`` lets other machines connect.
    """

    listen: str

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and int(port) <= _HIGHEST_PORT):
            raise ConfigurationError(
                f"found {self.listen!r}, expected host:port such as localhost:9464"
            )

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port; 0 for a free one."""
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


@dataclass(frozen=True)
class LogOptions:
    """How the log is written.

    Attributes:
        format: ``text``, or ``json`` for one JSON object in a line.
        level: The least level of what Tidemill and the project log; null is ``warning`` for texts
            and ``info`` for JSON.
    """

    format: str = LOG_FORMATS[0]
    level: str | None = None


@dataclass(frozen=True)
class TraceOptions:
    """Where a stream sends its traces; this needs the extra ``tidemill[tracing]``.

    Attributes:
        endpoint: The URL of an OpenTelemetry collector that takes OTLP over HTTP.
    """

    endpoint: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigurationError(
                f"found {self.endpoint!r}, expected a URL such as http://localhost:4318"
            )


def read_metrics(top: Section) -> MetricsPage | None:
    """Read the section ``metrics``; None if there is none.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    return _read(top, "metrics", METRICS_KEYS, MetricsPage)


def _read(top: Section, name: str, keys: tuple[str], make: Callable[[str], T]) -> T | None:
    """Read a section with one text, if it is there."""
    if name not in top.values:
        return None
    value = top.values[name].section(keys).required(*keys)
    text = value.text()
    try:
        return make(text)
    except ConfigurationError as error:
        raise value.wrong(str(error)) from None


def read_logging(top: Section) -> LogOptions:
    """Read the section ``logging``.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    readers: dict[str, Callable[[Value], Any]] = {
        "format": lambda value: value.one_of(LOG_FORMATS),
        "level": or_null(lambda value: value.one_of(LOG_LEVELS)),
    }
    if "logging" not in top.values:
        return LogOptions()
    return LogOptions(**top.values["logging"].section(LOGGING_KEYS).read(readers))


def read_tracing(top: Section) -> TraceOptions | None:
    """Read the section ``tracing``; None if there is none.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    return _read(top, "tracing", TRACING_KEYS, TraceOptions)
