"""Writing messages to one topic, each place once, in transactions.

The promises:

* A message is seen by readers of committed messages once, however often it is given: what the topic
  has of the stream is read back when a segment begins, and the places of what was committed are
  kept. What was written first stays.
* A writer whose process was replaced ends with `FencedWriter`, and so does one that would open
  another writer while the record beside the savepoints names another process.
* If it is not known whether a transaction was committed, because the broker went away, another
  writer is opened, which ends that transaction, and the topic is read: what is there is not written
  again.
* While the broker is away, writing is tried again for ``give_up_after``; then the run ends with the
  broker's error. A stream that is resumed goes on from there.
* A transaction has at most `MOST_MESSAGES` messages and about `MOST_BYTES` bytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeVar

from tidemill.features.contract import SECOND
from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    FencedWriter,
    MessagesNotWritten,
    RecreatedTopic,
    StateMismatch,
    UnknownBrokerHost,
)
from tidemill.pipelines.config.sink_section import KafkaSink
from tidemill.pipelines.delivery.outgoing import Outgoing, place_of, shortened
from tidemill.pipelines.delivery.places import Place, Places
from tidemill.pipelines.delivery.read_back import TopicEnds, check_retention, read_back
from tidemill.pipelines.delivery.record import Delivered
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Client, ProducerSettings
from tidemill.pipelines.io.kafka.reach import reach
from tidemill.pipelines.io.kafka.writer import Writer

MOST_MESSAGES: Final = 5_000
MOST_BYTES: Final = 8 << 20

_AWAY: Final = (MessagesNotWritten, BrokerUnreachable, UnknownBrokerHost)
"""What another try may mend."""
_ONE_TRY_S: Final = 20.0
"""How long a writer tries by itself: less than the time after which its transaction is aborted."""
_AGAIN_S: Final = 0.5
_LOOK_EVERY_S: Final = 30.0
"""How often it is looked where the topic ends, so that little has to be read back."""
_OVERHEAD: Final = 512
"""More than what a batch, a message and its headers add to their bytes."""
_LARGEST: Final = 1_000_000
"""The largest message, if the broker does not tell the topic's limit."""

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class TopicSink:
    """Writes a stream's messages to a topic; threads may share it.

    Args:
        name: The section of the configuration.
        sink: The topic.
        transactional_id: The id of its writers, of which the newest alone can write.
        is_owner: Tells whether this process is the one that writes for the stream.
        client: The client library that writes.

    Attributes:
        written: How many messages were written.
        already_there: How many were not written because they are there.

    Raises:
        BrokerError: The topic cannot be written to.
    """

    def __init__(
        self,
        name: str,
        sink: KafkaSink,
        transactional_id: str,
        is_owner: Callable[[], bool] = lambda: True,
        client: Client | None = None,
    ) -> None:
        self.name, self.sink = name, sink
        self._client = client or choose_client(sink.client)
        self._id, self._is_owner = transactional_id, is_owner
        self._give_up_s = sink.give_up_after_us / SECOND
        self._connection = sink.connection
        self._lock = threading.Lock()
        self._places, self._stream = Places(), ""
        self._known: tuple[int, ...] = ()
        self._looked_s = time.monotonic()
        self._failed: BrokerError | None = None
        self.written = self.already_there = 0
        self._largest, self.topic_id = _LARGEST, ""
        self._writer: Writer | None = self._connect()

    def _connect(self) -> Writer:
        reach(self._connection, reads=[self.sink.topic], writes=[self.sink.topic])
        asker = self._client.asker(self._connection)
        try:
            self.topic_id = asker.topics([self.sink.topic])[self.sink.topic].id
            self._largest = asker.largest_message(self.sink.topic) or _LARGEST
        finally:
            asker.close()
        return self._new_writer()

    def _new_writer(self) -> Writer:
        settings = ProducerSettings(
            transactional_id=self._id,
            compression=self.sink.compression,
            max_message_bytes=self._largest,
            give_up_s=min(_ONE_TRY_S, self._give_up_s),
        )
        return Writer(self._client, self._connection, settings)

    def begin(self, stream: str, segment: int, before: Delivered | None) -> Delivered:
        """Read back what a stream has written since its savepoint.

        Args:
            stream: The id of the stream.
            segment: The segment that begins.
            before: What the stream's record says of this topic; None if nothing.

        Returns:
            What the record must say before anything is written.

        Raises:
            RecreatedTopic: The topic was deleted and made again.
            PositionOutOfRange: The topic has not all messages any more that were written since.
            StateMismatch: The record does not have the savepoint.
            BrokerError: The topic cannot be read.
        """
        self._stream = stream
        ends = TopicEnds(self._connection, self.sink.topic)
        if before is None or before.topic != self.sink.topic or _is_over(before, segment):
            self._known = ends.highs
            return Delivered(
                topic=self.sink.topic,
                topic_id=ends.id,
                first_segment=segment,
                first=ends.highs,
                begun=segment,
                savepoints={segment - 1: ends.highs},
            )
        if before.topic_id != ends.id:
            raise RecreatedTopic(
                f"the topic {self.sink.topic!r} is not the one that the stream has written to: it "
                "was deleted and made again, or is another cluster's; name another topic in "
                f"{self.name}.kafka, or run `tidemill stream` without --resume to start over"
            )
        offsets = before.savepoints.get(segment - 1)
        if offsets is None:  # the folder has parts of different ages
            raise StateMismatch(
                f"the record of what was written to the topic {self.sink.topic!r} has the "
                f"savepoints {sorted(before.savepoints)}, and the stream resumes from "
                f"{segment - 1}: restore the stream's folder as a whole, or run `tidemill stream` "
                "without --resume to start over"
            )
        if before.begun >= segment:
            check_retention(self.sink.topic, offsets, ends)
        self._catch_up(offsets, ends)
        return replace(before, begun=segment, savepoints={segment - 1: offsets})

    def ends(self) -> tuple[int, ...]:
        """Return the offset of each partition after all that was written.

        Raises:
            BrokerError: The broker cannot be asked.
        """
        return TopicEnds(self._connection, self.sink.topic).highs

    def patiently(self, action: Callable[[], _Answer]) -> _Answer:
        """Call a function, and call it again while the broker is away, for ``give_up_after``.

        Raises:
            BrokerError: The broker was away for too long, or refuses.
        """
        deadline_s = time.monotonic() + self._give_up_s
        while True:
            try:
                return action()
            except _AWAY as error:
                self._wait(error, deadline_s)

    def _wait(self, error: BrokerError, deadline_s: float) -> None:
        """Wait before another try; raise the error after the deadline."""
        if time.monotonic() > deadline_s:
            raise type(error)(
                f"{error} (given up after {self._give_up_s:g} s: {self.name}.kafka.give_up_after); "
                "once the broker takes messages again, continue from the last savepoint: `tidemill "
                "stream --resume`"
            ) from error
        _log.warning(
            "the topic %r takes no messages (the stream waits, and gives up after %g s: "
            "%s.kafka.give_up_after): %s",
            self.sink.topic,
            self._give_up_s,
            self.name,
            error,
        )
        time.sleep(_AGAIN_S)

    def write(self, messages: Iterable[Outgoing]) -> None:
        """Write messages, except those that are there.

        Raises:
            FencedWriter: Another process writes for the stream.
            MessageTooLarge: The topic does not accept so large a message, shortened either.
            BrokerError: The broker was away for too long, or refuses.
        """
        with self._lock:
            if self._failed is not None:
                raise self._failed
            try:
                for transaction in _transactions(self._fitting(messages)):
                    self._commit(transaction)
            except BrokerError as error:
                self._failed = error
                raise

    def _fitting(self, messages: Iterable[Outgoing]) -> Iterator[Outgoing]:
        """Yield the messages that are not there, shortened where the topic asks for it."""
        given: set[Place] = set()
        for message in messages:
            if message.place in self._places or message.place in given:
                self.already_there += 1
                continue
            given.add(message.place)
            if message.size + _OVERHEAD > self._largest:
                yield shortened(self.name, message)
            else:
                yield message

    def _commit(self, messages: list[Outgoing]) -> None:
        deadline_s: float | None = None
        while True:
            try:
                self._write_once(messages)
                break
            except _AWAY as error:
                self._drop_writer()
                deadline_s = deadline_s or time.monotonic() + self._give_up_s
                self._wait(error, deadline_s)
            except BrokerError:
                self._drop_writer(abort=True)
                raise
        for message in messages:
            self._places.add(message.place)
        self.written += len(messages)
        self._look()

    def _write_once(self, messages: list[Outgoing]) -> None:
        if self._writer is None:
            self._reopen()
            messages = [message for message in messages if message.place not in self._places]
        writer = self._writer
        assert writer is not None
        if not messages:
            return  # the broker had committed them
        writer.begin()
        for one in messages:
            writer.send(self.sink.topic, None, one.key, one.value, one.headers, one.timestamp_us)
        writer.commit()

    def _reopen(self) -> None:
        """Open another writer, which ends the transaction of the one before, and look."""
        if not self._is_owner():
            raise FencedWriter(
                f"another process writes to the topic {self.sink.topic!r} for this stream, so this "
                "one has to end"
            )
        writer = self._new_writer()
        try:
            self._catch_up(self._known, TopicEnds(self._connection, self.sink.topic))
        except BaseException:
            writer.close()
            raise
        self._writer = writer

    def _catch_up(self, offsets: tuple[int, ...], ends: TopicEnds) -> None:
        """Add what the stream has written from given offsets on to what is there."""
        for messages in read_back(
            self._connection, self.sink.topic, offsets, ends, self._give_up_s
        ):
            for headers in messages.headers:
                if (place := place_of(headers, self._stream)) is not None:
                    self._places.add(place)
        self._known = ends.highs

    def _look(self) -> None:
        """Note, now and then, where the topic ends: all before is known."""
        if (now_s := time.monotonic()) - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        try:
            self._known = TopicEnds(self._connection, self.sink.topic).highs
        except BrokerError as error:
            _log.info("where the topic %r ends is not known: %s", self.sink.topic, error)

    def _drop_writer(self, *, abort: bool = False) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if abort:
            try:
                writer.abort()
            except BrokerError as error:
                _log.info("the transaction was not aborted: %s", error)
        writer.close()

    def close(self) -> None:
        """Disconnect; what was committed stays."""
        with self._lock:
            self._drop_writer()


def _is_over(before: Delivered, segment: int) -> bool:
    """Tell whether the segment before has ended without this topic."""
    return before.begun < segment and segment - 1 not in before.savepoints


def _transactions(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Divide messages into those of one transaction each."""
    waiting: list[Outgoing] = []
    size = 0
    for message in messages:
        waiting.append(message)
        size += message.size
        if len(waiting) >= MOST_MESSAGES or size >= MOST_BYTES:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting
