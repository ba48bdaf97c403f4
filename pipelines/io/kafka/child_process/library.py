"""A client library whose consumers and producers run in a process beside."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tidemill.pipelines.io.kafka.child_process.consumer import ChildConsumer, ConsumerRequest
from tidemill.pipelines.io.kafka.child_process.process import ChildProcess
from tidemill.pipelines.io.kafka.child_process.producer import ChildProducer, ProducerRequest
from tidemill.pipelines.io.kafka.choosing import KAFKA_PYTHON, choose_client
from tidemill.pipelines.io.kafka.client import Asker, Consumer, Producer, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection


class InChildProcess:
    """See `client.Client`; what it has made must be closed before it.

    Args:
        name: The client library (`choosing.choose_client`).

    Attributes:
        process: The process in which its consumers and producers run.

    Raises:
        ConfigurationError: No client has this name, or it is not installed.
    """

    def __init__(self, name: str = KAFKA_PYTHON) -> None:
        self._name, self._here = name, choose_client(name)
        self.process = ChildProcess()

    def consumer(self, connection: Connection) -> Consumer:
        """See `client.Client.consumer`."""
        return ChildConsumer(self.process, ConsumerRequest(self._name, connection))

    def asker(self, connection: Connection) -> Asker:
        """See `client.Client.asker`."""
        return self._here.asker(connection)

    def producer(self, connection: Connection, settings: ProducerSettings) -> Producer:
        """See `client.Client.producer`."""
        return ChildProducer(self.process, ProducerRequest(self._name, connection, settings))

    def close(self) -> None:
        """End the process."""
        self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
