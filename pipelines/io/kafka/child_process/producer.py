"""A producer in a process beside: messages go there many at a time.

What the child cannot write is told at the next `flush`, as with every producer. If the child ends,
the producer raises `MessagesNotWritten`: nobody knows then what was written, and another producer
with the same id ends the transaction.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Final, Literal, NamedTuple

from tidemill.features.errors import BrokerError, MessagesNotWritten
from tidemill.pipelines.io.kafka.child_process.process import ChildProcess, portable
from tidemill.pipelines.io.kafka.client import Failed, Producer, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.messages import Headers

_MOST: Final = 1_000
_MOST_BYTES: Final = 1 << 18
"""When messages go to the child: so many, or so many bytes."""
_MARGIN_S: Final = 10.0
"""How much longer than the producer itself its answer may take."""

_Message = tuple[tuple[str, int | None], bytes | None, bytes | None, Headers, int | None]
_Call = Literal["begin", "flush", "commit", "abort"]


class ProducerRequest(NamedTuple):
    """Asks for a producer.

    Attributes:
        connection: How to connect.
        settings: How to write.
    """

    connection: Connection
    settings: ProducerSettings


class _Answer(NamedTuple):
    """What became of a call.

    Attributes:
        error: What it has raised.
        failures: The messages since the last flush that were not written, by number, and why.
    """

    error: BaseException | None
    failures: list[tuple[int, BrokerError]]


class ChildProducer:
    """See `client.Producer`.

    Args:
        process: The process in which it runs.
        request: What it asks for.
    """

    def __init__(self, process: ChildProcess, request: ProducerRequest) -> None:
        self._within_s = request.settings.give_up_s + _MARGIN_S
        self._pipe = process.connect(request, request.settings.give_up_s)
        _wait_at_most(self._pipe, self._within_s)
        self._waiting: list[_Message] = []
        self._bytes = 0
        self._failed: list[Failed] = []
        self._is_lost = False

    def begin(self) -> None:
        """See `client.Producer.begin`."""
        self._ask("begin")

    def put(
        self,
        partition: tuple[str, int | None],
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
        failed: Failed,
    ) -> None:
        """See `client.Producer.put`."""
        self._waiting.append((partition, key, value, headers, timestamp_ms))
        self._failed.append(failed)
        self._bytes += len(key or b"") + len(value or b"")
        if len(self._waiting) >= _MOST or self._bytes >= _MOST_BYTES:
            self._send()

    def flush(self) -> None:
        """See `client.Producer.flush`."""
        self._send()
        told, self._failed = self._failed, []
        answer = self._answer("flush")
        for number, failure in answer.failures:
            told[number](failure)
        if answer.error is not None:
            raise answer.error

    def commit(self) -> None:
        """See `client.Producer.commit`."""
        self._ask("commit")

    def abort(self) -> None:
        """See `client.Producer.abort`."""
        self._waiting, self._failed, self._bytes = [], [], 0
        self._ask("abort")

    def close(self) -> None:
        """See `client.Producer.close`."""
        self._pipe.close()

    def _send(self) -> None:
        if self._waiting:
            self._tell(self._waiting)
            self._waiting, self._bytes = [], 0

    def _ask(self, what: _Call) -> None:
        if (error := self._answer(what).error) is not None:
            raise error

    def _answer(self, what: _Call) -> _Answer:
        self._tell(what)
        try:
            if self._pipe.poll(self._within_s):
                answer: _Answer = self._pipe.recv()
                return answer
        except (EOFError, OSError) as error:
            raise self._lost("has ended") from error
        raise self._lost(f"did not answer within {self._within_s:g} s")

    def _tell(self, what: _Call | list[_Message]) -> None:
        if self._is_lost or self._pipe.closed:
            raise self._lost("has ended")
        try:
            self._pipe.send(what)
        except OSError as error:
            raise self._lost("has ended, or takes nothing any more") from error

    def _lost(self, how: str) -> MessagesNotWritten:
        # An answer that comes later would be taken for that to another question.
        self._is_lost = True
        return MessagesNotWritten(
            f"the process that writes to topics {how}: what it was given may be written or not; "
            "open a new writer with the same transactional id, and look what was written"
        )


def _wait_at_most(pipe: Pipe, seconds: float) -> None:
    """Let writing to a pipe fail after so many seconds in which the other end takes nothing."""
    whole = int(seconds)
    with socket.socket(fileno=pipe.fileno()) as same:
        try:
            same.setsockopt(
                socket.SOL_SOCKET,
                socket.SO_SNDTIMEO,
                struct.pack("ll", whole, int((seconds - whole) * 1_000_000)),
            )
        finally:
            same.detach()


def serve_producer(pipe: Pipe, producer: Producer) -> None:
    """Do what the other end asks a producer for, until it closes.

    Raises:
        EOFError, OSError: The other end has closed.
    """
    failures: list[tuple[int, BrokerError]] = []
    refused: BrokerError | None = None
    count = 0

    def failed(number: int, error: BrokerError) -> None:
        failures.append((number, error))

    while True:
        told: _Call | list[_Message] = pipe.recv()
        if isinstance(told, list):
            for partition, key, value, headers, timestamp_ms in told:
                tell = functools.partial(failed, count)
                count += 1
                if refused is not None:
                    tell(refused)  # each would take its time to fail
                    continue
                try:
                    producer.put(partition, key, value, headers, timestamp_ms, tell)
                except BrokerError as error:
                    refused = error
                    tell(error)
            continue
        answer = _Answer(_raised(getattr(producer, told)), [])
        if told == "flush":
            answer.failures.extend(failures)
            failures.clear()
            refused, count = None, 0
        pipe.send(answer)


def _raised(call: Callable[[], None]) -> BaseException | None:
    """Return what a call raises."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - raised where it was asked for
        return portable(error)
    return None
