"""confluent-kafka's settings for a connection."""

from __future__ import annotations

import logging
from typing import Any, Final

from tidemill.pipelines.io.kafka.client import BACKOFF_MS, METADATA_AGE_MS, REQUEST_MS
from tidemill.pipelines.io.kafka.connection import Connection, Secret
from tidemill.pipelines.io.kafka.wire import tls_context

_LOG: Final = logging.getLogger(__name__)


def options(connection: Connection) -> dict[str, Any]:
    """Return the settings that all of confluent-kafka's clients take.

    Raises:
        ConfigurationError: A file of ``connection.tls`` cannot be used.
    """
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(connection.servers),
        "client.id": connection.client_id,
        "security.protocol": connection.protocol,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": BACKOFF_MS,
        "topic.metadata.refresh.interval.ms": METADATA_AGE_MS,
        "socket.timeout.ms": REQUEST_MS,
        "allow.auto.create.topics": False,
        # Without a logger its library writes to the standard error.
        "logger": _LOG,
    }
    if connection.tls is not None:
        # Its library's own messages do not name the file that is wrong.
        tls_context(connection.tls)
        files = {
            "ssl.ca.location": connection.tls.ca,
            "ssl.certificate.location": connection.tls.certificate,
            "ssl.key.location": connection.tls.key,
        }
        found |= {name: str(path) for name, path in files.items() if path is not None}
        if connection.tls.key_password is not None:
            found["ssl.key.password"] = Secret(connection.tls.key_password)
    if connection.sasl is not None:
        found["sasl.mechanism"] = connection.sasl.mechanism.value
        found["sasl.username"] = connection.sasl.user
        found["sasl.password"] = Secret(connection.sasl.password)
    return found
