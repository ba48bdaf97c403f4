"""kafka-python as a client of the port."""

from __future__ import annotations

from tidemill.pipelines.io.kafka.client import Asker, Consumer, Producer, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.kafka_python.asker import KafkaPythonAsker
from tidemill.pipelines.io.kafka.kafka_python.consumer import KafkaPythonConsumer
from tidemill.pipelines.io.kafka.kafka_python.producer import KafkaPythonProducer


class KafkaPython:
    """See `client.Client`."""

    def consumer(self, connection: Connection) -> Consumer:
        """See `client.Client.consumer`."""
        return KafkaPythonConsumer(connection)

    def asker(self, connection: Connection) -> Asker:
        """See `client.Client.asker`."""
        return KafkaPythonAsker(connection)

    def producer(self, connection: Connection, settings: ProducerSettings) -> Producer:
        """See `client.Client.producer`."""
        return KafkaPythonProducer(connection, settings)
