"""confluent-kafka as a client of the port."""

from __future__ import annotations

from tidemill.pipelines.io.kafka.client import Asker, Consumer, Producer, ProducerSettings
from tidemill.pipelines.io.kafka.confluent.asker import ConfluentAsker
from tidemill.pipelines.io.kafka.confluent.consumer import ConfluentConsumer
from tidemill.pipelines.io.kafka.confluent.producer import ConfluentProducer
from tidemill.pipelines.io.kafka.connection import Connection


class ConfluentKafka:
    """See `client.Client`."""

    def consumer(self, connection: Connection) -> Consumer:
        """See `client.Client.consumer`."""
        return ConfluentConsumer(connection)

    def asker(self, connection: Connection) -> Asker:
        """See `client.Client.asker`."""
        return ConfluentAsker(connection)

    def producer(self, connection: Connection, settings: ProducerSettings) -> Producer:
        """See `client.Client.producer`."""
        return ConfluentProducer(connection, settings)
