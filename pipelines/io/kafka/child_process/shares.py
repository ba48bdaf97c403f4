"""One consumer made of several, in a process each, of which each reads a share of the partitions.

A partition belongs to the consumer of its number, modulo how many there are; so the partitions of
a topic are divided evenly, and each keeps its own order.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from multiprocessing.connection import wait

from tidemill.pipelines.io.kafka.child_process.consumer import ChildConsumer
from tidemill.pipelines.io.kafka.client import Partition, Positions, Taken


class Shares:
    """See `client.Consumer`.

    Args:
        consumers: Those that have the shares; at least one.
    """

    def __init__(self, consumers: Sequence[ChildConsumer]) -> None:
        self._consumers = tuple(consumers)
        self._first = 0
        """The consumer whose turn it is, so that none waits for ever behind the others."""

    def assign(self, positions: Positions) -> None:
        """See `client.Consumer.assign`."""
        for number, consumer in enumerate(self._consumers):
            consumer.assign(
                {where: at for where, at in positions.items() if self._number(where) == number}
            )

    def take(self, wait_s: float, max_messages: int) -> Taken:
        """See `client.Consumer.take`."""
        taken = self._take(max_messages)
        if not (taken.messages or taken.lost) and wait_s > 0:
            if pipes := [one.pipe for one in self._consumers if one.pipe is not None]:
                wait(pipes, wait_s)
            else:
                time.sleep(wait_s)  # they have all ended, and are connected to again
            taken = self._take(max_messages)
        return taken

    def _take(self, max_messages: int) -> Taken:
        taken, left = Taken([], {}), max_messages
        turn = [*self._consumers[self._first :], *self._consumers[: self._first]]
        self._first = (self._first + 1) % len(turn)
        for consumer in turn:
            if left <= 0:
                break
            found = consumer.take(0.0, left)
            taken.messages.extend(found.messages)
            taken.lost.update(found.lost)
            left -= sum(map(len, found.messages))
        return taken

    def position(self, partition: Partition) -> int:
        """See `client.Consumer.position`."""
        return self._of(partition).position(partition)

    def pause(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.pause`."""
        for where in partitions:
            self._of(where).pause([where])

    def resume(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.resume`."""
        for where in partitions:
            self._of(where).resume([where])

    def close(self) -> None:
        """See `client.Consumer.close`."""
        for consumer in self._consumers:
            consumer.close()

    def _number(self, where: Partition) -> int:
        return where.partition % len(self._consumers)

    def _of(self, where: Partition) -> ChildConsumer:
        return self._consumers[self._number(where)]
