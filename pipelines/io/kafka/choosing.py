"""Choosing the client library by name."""

from __future__ import annotations

import importlib.util

from tidemill.features.errors import ConfigurationError, nearest
from tidemill.pipelines.io.kafka.client import Client
from tidemill.pipelines.io.kafka.connection import CLIENTS, KAFKA_PYTHON


def choose_client(name: str = KAFKA_PYTHON) -> Client:
    """Return a client library.

    Args:
        name: ``kafka-python``, or ``confluent-kafka`` where it is installed.

    Raises:
        ConfigurationError: No client has this name, or it is not installed.
    """
    if name not in CLIENTS:
        raise ConfigurationError(f"kafka.client: found {name!r}: {nearest(name, CLIENTS)}")
    if name == KAFKA_PYTHON:
        from tidemill.pipelines.io.kafka.kafka_python.library import KafkaPython

        return KafkaPython()
    if importlib.util.find_spec("confluent_kafka") is None:
        raise ConfigurationError(
            "kafka.client: confluent-kafka is not installed; install tidemill[confluent], or use "
            f"{KAFKA_PYTHON}"
        )
    from tidemill.pipelines.io.kafka.confluent.library import ConfluentKafka

    return ConfluentKafka()
