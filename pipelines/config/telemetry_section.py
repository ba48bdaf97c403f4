"""How a stream shows itself, in the YAML file.

```yaml
metrics: {listen: "localhost:9464"}            # optional: serves /metrics and /healthz
logging: {format: json}                        # optional: text (default) or json
tracing: {endpoint: "http://localhost:4318"}   # optional: spans to an OpenTelemetry collector
```
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from tidemill.pipelines.config.strict_yaml import Section, Value

LOG_FORMATS: Final = ("text", "json")
METRICS_KEYS: Final = ("listen",)
LOGGING_KEYS: Final = ("format",)
TRACING_KEYS: Final = ("endpoint",)
_HIGHEST_PORT: Final = 65_535


def read_listen(top: Section) -> tuple[str, int] | None:
    """Read the host and the port that ``/metrics`` is served on; None if it is not served.

    Raises:
        ConfigurationError: The value is not ``host:port``.
    """
    if "metrics" not in top.values:
        return None
    value = top.values["metrics"].section(METRICS_KEYS).required("listen")
    host, _, port = value.text().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and int(port) <= _HIGHEST_PORT
    if not host or not is_port:
        raise value.wrong(
            f"found {value.text()!r}, expected host:port such as localhost:9464 or 0.0.0.0:9464"
        )
    return host, int(port)


def read_log_format(top: Section) -> str:
    """Read the format of the log.

    Raises:
        ConfigurationError: It is not one of `LOG_FORMATS`.
    """
    if "logging" not in top.values:
        return LOG_FORMATS[0]
    section = top.values["logging"].section(LOGGING_KEYS)
    return section.optional("format", lambda value: value.one_of(LOG_FORMATS), LOG_FORMATS[0])


def read_trace_endpoint(top: Section) -> str | None:
    """Read where spans are sent; None for no tracing.

    Raises:
        ConfigurationError: The value is not a URL.
    """
    if "tracing" not in top.values:
        return None
    value: Value = top.values["tracing"].section(TRACING_KEYS).required("endpoint")
    parts = urlsplit(value.text())
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise value.wrong(f"found {value.text()!r}, expected a URL such as http://localhost:4318")
    return value.text()
