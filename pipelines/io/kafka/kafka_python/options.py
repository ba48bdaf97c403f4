"""kafka-python's settings for a connection."""

from __future__ import annotations

from typing import Any

from tidemill.pipelines.io.kafka.client import BACKOFF_MS, METADATA_AGE_MS, REQUEST_MS
from tidemill.pipelines.io.kafka.connection import Connection, Secret
from tidemill.pipelines.io.kafka.quiet_logs import hide_what_is_sent
from tidemill.pipelines.io.kafka.wire import tls_context


def options(connection: Connection) -> dict[str, Any]:
    """Return the keyword arguments that all of kafka-python's clients take."""
    found: dict[str, Any] = {
        "bootstrap_servers": list(connection.servers),
        "client_id": connection.client_id,
        "security_protocol": connection.protocol,
        "reconnect_backoff_max_ms": BACKOFF_MS,
        "metadata_max_age_ms": METADATA_AGE_MS,
        "request_timeout_ms": REQUEST_MS,
        "bootstrap_timeout_ms": REQUEST_MS,
    }
    if connection.tls is not None:
        found["ssl_context"] = tls_context(connection.tls)
    if connection.sasl is not None:
        hide_what_is_sent()
        found["sasl_mechanism"] = connection.sasl.mechanism.value
        found["sasl_plain_username"] = connection.sasl.user
        # kafka-python logs its settings.
        found["sasl_plain_password"] = Secret(connection.sasl.password)
    return found
