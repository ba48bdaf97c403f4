"""A consumer in a process beside: it reads ahead, and this process takes what has come.

What is read ahead is bounded by what the connection holds: the child waits until its parent takes.
So positions are those of what was *taken*: each batch brings the positions after it.

If the child ends, another one goes on from there: nothing is lost or given twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from multiprocessing.connection import Connection as Pipe
from typing import Final, NamedTuple

from tidemill.features.errors import BrokerError, BrokerUnreachable
from tidemill.pipelines.io.kafka.child_process.process import ChildProcess, portable
from tidemill.pipelines.io.kafka.client import Consumer, Lost, Partition, Positions, Taken
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.messages import Messages, joined

_WAIT_S: Final = 0.05
"""How long the child waits for messages before it looks whether it is asked for something."""
_MOST: Final = 2_000
"""The most messages of a batch."""
_AGAIN_S: Final = 0.5
"""How long nothing is asked of a child that could not be started, in seconds."""

_log: Final = logging.getLogger(__name__)


class ConsumerRequest(NamedTuple):
    """Asks for a consumer.

    Attributes:
        connection: How to connect.
    """

    connection: Connection


class _Assign(NamedTuple):
    """Read these partitions; batches of earlier assignments do not count."""

    number: int
    positions: Positions


class _Pause(NamedTuple):
    """Give no messages of these partitions, or give them again."""

    partitions: tuple[Partition, ...]
    is_paused: bool


class _Batch(NamedTuple):
    """What a consumer has taken, and its positions after that.

    Attributes:
        assignment: The number of the assignment.
        messages: As in `client.Taken`.
        lost: As in `client.Taken`.
        positions: Those that have moved.
        error: What `take` raised; then there is nothing else.
    """

    assignment: int
    messages: list[Messages]
    lost: dict[Partition, Lost]
    positions: Positions
    error: BaseException | None = None


class ChildConsumer:
    """See `client.Consumer`.

    Args:
        process: The process in which it runs.
        request: What it asks for.

    Attributes:
        pipe: What it comes by, while there is a process.
    """

    def __init__(self, process: ChildProcess, request: ConsumerRequest) -> None:
        self._process, self._request = process, request
        self._assignment = 0
        self._positions: dict[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        self._error: BaseException | None = None
        self._again_s = 0.0
        self.pipe: Pipe | None = process.connect(request)

    def assign(self, positions: Positions) -> None:
        """See `client.Consumer.assign`."""
        self._positions, self._paused, self._error = dict(positions), frozenset(), None
        self._assignment += 1
        self._tell(_Assign(self._assignment, positions))

    def take(self, wait_s: float, max_messages: int) -> Taken:
        """See `client.Consumer.take`."""
        messages: list[Messages] = []
        taken = Taken([], {})
        deadline_s, count = time.monotonic() + wait_s, 0
        while count < max_messages and self._error is None:
            left_s = 0.0 if messages else max(deadline_s - time.monotonic(), 0.0)
            if (batch := self._next(left_s)) is None:
                break
            self._error = batch.error
            self._positions.update(batch.positions)
            messages.extend(batch.messages)
            taken.lost.update(batch.lost)
            count += sum(map(len, batch.messages))
        # The child gives messages as they come, and every part of them costs those who decode it.
        taken.messages.extend(joined(messages))
        if self._error is not None and not (taken.messages or taken.lost):
            error, self._error = self._error, None
            raise error
        return taken

    def position(self, partition: Partition) -> int:
        """See `client.Consumer.position`."""
        return self._positions[partition]

    def pause(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.pause`."""
        self._paused |= frozenset(partitions)
        self._tell(_Pause(tuple(partitions), is_paused=True))

    def resume(self, partitions: Collection[Partition]) -> None:
        """See `client.Consumer.resume`."""
        self._paused -= frozenset(partitions)
        self._tell(_Pause(tuple(partitions), is_paused=False))

    def close(self) -> None:
        """See `client.Consumer.close`."""
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None

    def _next(self, wait_s: float) -> _Batch | None:
        """Return the next batch of the assignment; None if none has come in time."""
        pipe = self._connected()
        if pipe is None:
            time.sleep(wait_s)
            return None
        try:
            while pipe.poll(wait_s):
                batch: _Batch = pipe.recv()
                if batch.assignment == self._assignment:
                    return batch
        except (EOFError, OSError):
            self._lose(pipe)
        return None

    def _tell(self, what: _Assign | _Pause) -> None:
        if (pipe := self._connected()) is None:
            return  # it is told when it is connected again
        try:
            pipe.send(what)
        except OSError:
            self._lose(pipe)

    def _lose(self, pipe: Pipe) -> None:
        _log.warning("the process that reads topics has ended; another one goes on")
        pipe.close()
        self.pipe = None

    def _connected(self) -> Pipe | None:
        """Return the connection; connect to another process, which goes on, if one has ended."""
        if self.pipe is None and time.monotonic() >= self._again_s:
            try:
                pipe = self._process.connect(self._request)
            except BrokerUnreachable as error:
                _log.warning("%s; it is tried again", error)
                self._again_s = time.monotonic() + _AGAIN_S
                return None
            self.pipe = pipe
            self._assignment += 1
            self._tell(_Assign(self._assignment, self._positions))
            if self._paused:
                self._tell(_Pause(tuple(self._paused), is_paused=True))
        return self.pipe


def serve_consumer(pipe: Pipe, consumer: Consumer) -> None:
    """Send what a consumer takes, until the other end closes.

    Raises:
        EOFError, OSError: The other end has closed.
    """
    assignment, positions = 0, dict[Partition, int]()
    while True:
        while pipe.poll(None if assignment == 0 else 0.0):
            told: _Assign | _Pause = pipe.recv()
            if isinstance(told, _Assign):
                consumer.assign(told.positions)
                assignment, positions = told.number, dict(told.positions)
            elif told.is_paused:
                consumer.pause(told.partitions)
            else:
                consumer.resume(told.partitions)
        try:
            taken = consumer.take(_WAIT_S, _MOST)
        except BaseException as error:
            pipe.send(_Batch(assignment, [], {}, {}, portable(error)))
            if not isinstance(error, BrokerError):
                raise EOFError from error
            time.sleep(_WAIT_S)
            continue
        now = {where: consumer.position(where) for where in positions}
        moved = {where: offset for where, offset in now.items() if offset != positions[where]}
        if taken.messages or taken.lost or moved:
            pipe.send(_Batch(assignment, taken.messages, taken.lost, moved))
            positions = now
