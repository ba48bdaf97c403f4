"""Choosing the client library by name."""

from __future__ import annotations

import importlib.util
import sys

from tidemill.features.errors import ConfigurationError, nearest
from tidemill.pipelines.io.kafka.client import Client
from tidemill.pipelines.io.kafka.connection import CLIENTS, KAFKA_PYTHON


def choose_client(name: str = KAFKA_PYTHON) -> Client:
    """Return a client library.

    Args:
        name: ``kafka-python``, or ``confluent-kafka`` where it is installed.

    Raises:
        ConfigurationError: No client has this name, or it is not installed; or Python runs without
            assertions.
    """
    if sys.flags.optimize:
        # It reads on in an answer by `assert Type.decode(...) == 0` (kafka.protocol, 3.0.12).
        raise ConfigurationError(
            "Python runs without assertions (-O, or PYTHONOPTIMIZE), and kafka-python then "
            "misreads what brokers answer; run tidemill without it"
        )
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
