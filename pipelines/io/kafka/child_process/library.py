"""A client library whose consumers and producers run in processes beside."""

from __future__ import annotations

from contextlib import ExitStack

from tidemill.pipelines.io.kafka.child_process.consumer import ChildConsumer, ConsumerRequest
from tidemill.pipelines.io.kafka.child_process.process import ChildProcess
from tidemill.pipelines.io.kafka.child_process.producer import ChildProducer, ProducerRequest
from tidemill.pipelines.io.kafka.child_process.shares import Shares
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Asker, Consumer, Producer, ProducerSettings
from tidemill.pipelines.io.kafka.closing import Closing
from tidemill.pipelines.io.kafka.connection import Connection


class InChildProcess(Closing):
    """See `client.Client`; what it has made must be closed before it.

    Args:
        readers: The number of processes in which a consumer runs: each reads a share of its
            partitions. Producers run in the first.

    Attributes:
        processes: The processes.
    """

    def __init__(self, readers: int = 1) -> None:
        self.processes = tuple(ChildProcess() for _ in range(readers))

    def consumer(self, connection: Connection) -> Consumer:
        """See `client.Client.consumer`."""
        choose_client(connection.client)  # what is not installed is said here
        request = ConsumerRequest(connection)
        with ExitStack() as opened:
            consumers = []
            for process in self.processes:
                consumers.append(ChildConsumer(process, request))
                opened.callback(consumers[-1].close)
            opened.pop_all()
        return consumers[0] if len(consumers) == 1 else Shares(consumers)

    def asker(self, connection: Connection) -> Asker:
        """See `client.Client.asker`."""
        return choose_client(connection.client).asker(connection)

    def producer(self, connection: Connection, settings: ProducerSettings) -> Producer:
        """See `client.Client.producer`."""
        choose_client(connection.client)
        return ChildProducer(self.processes[0], ProducerRequest(connection, settings))

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.close()
